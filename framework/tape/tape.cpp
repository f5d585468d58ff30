#include "framework/tape/tape.h"

#include <utility>

#include "kernels/device.h"
#include "kernels/pointwise.h"

namespace osprey {

Tape::Tape(const Queue& queue, Arena& activations, Pool& pool)
    : queue_(queue), arena_(activations), pool_(pool) {
  slots_.reserve(4096);
  records_.reserve(1024);
}

Tape::Slot& Tape::slot(Var v) {
  require(v.slot >= 0 && v.slot < static_cast<int>(slots_.size()), "tape", "a Var that is not on the tape");
  return slots_[static_cast<size_t>(v.slot)];
}
const Tape::Slot& Tape::slot(Var v) const { return const_cast<Tape*>(this)->slot(v); }

Var Tape::new_slot(const Tensor& value, bool needs_grad) {
  Slot s;
  s.value = value;
  s.needs_grad = needs_grad;
  slots_.push_back(s);
  return Var{static_cast<int>(slots_.size()) - 1};
}

Var Tape::input(const Tensor& t) { return new_slot(t, false); }

Var Tape::source(const Tensor& t) { return new_slot(t, recording_); }

Var Tape::leaf(Parameter& p) {
  const Var v = new_slot(p.value, recording_ && p.trainable);
  slot(v).param = &p;
  saw_trainable_ = saw_trainable_ || p.trainable;
  return v;
}

Tensor Tape::value(Var v) const {
  const Slot& s = slot(v);
  return s.param ? s.param->value : s.value;
}

bool Tape::needs_grad(Var v) const { return v.valid() && slot(v).needs_grad; }
Parameter* Tape::parameter(Var v) const { return slot(v).param; }

void Tape::give_buffer(Slot& s, int buffer) {
  s.buffer = buffer;
  s.grad = make_tensor(pool_.data(buffer), s.value.shape, s.value.dtype, queue_.device);
}

void Tape::release_grad(Slot& s) {
  if (s.buffer >= 0) pool_.release(s.buffer);
  s.buffer = -1;
  s.grad = {};
}

void Tape::move_grad(Var from, Var to) {
  Slot &source = slot(from), &target = slot(to);
  target.buffer = std::exchange(source.buffer, -1);
  target.grad = std::exchange(source.grad, Tensor{});
}

Accum Tape::grad(Var v) {
  if (!needs_grad(v)) return {};
  Slot& s = slot(v);
  if (s.param) return s.param->accumulate();
  if (s.buffer < 0) {
    give_buffer(s, pool_.acquire(s.value.bytes()));
    return {s.grad, false};
  }
  if (pool_.references(s.buffer) > 1) {  // somebody else still reads this buffer
    const Tensor shared = s.grad;
    const int old = s.buffer;
    give_buffer(s, pool_.acquire(s.value.bytes()));
    kernels::copy(queue_, {.y = s.grad, .x = shared});
    pool_.release(old);
  }
  return {s.grad, true};
}

void Tape::pass_grad(Var v, const Tensor& d) {
  if (!needs_grad(v)) return;
  Slot& s = slot(v);
  require(!s.param, "tape", "a gradient cannot be passed straight into parameter {}",
          s.param ? s.param->name.c_str() : "");
  require(d.numel() == s.value.numel() && d.dtype == s.value.dtype, "tape",
          "gradient {} passed to a value that is {}", d, s.value);
  if (s.buffer < 0 && running_buffer_ >= 0 && d.data == pool_.data(running_buffer_)) {
    pool_.retain(running_buffer_);
    give_buffer(s, running_buffer_);
    return;
  }
  const Accum g = grad(v);
  if (g.add)
    kernels::add(queue_, {.y = g.tensor, .a = g.tensor, .b = d.view(g.tensor.shape)});
  else
    kernels::copy(queue_, {.y = g.tensor, .x = d.view(g.tensor.shape)});
}

Tensor Tape::take_grad(Var v, const Tensor& d) {
  require(needs_grad(v) && slot(v).buffer < 0, "tape",
          "an op that works in place must be the only user of its input");
  pass_grad(v, d);
  Slot& s = slot(v);
  // Two references are v and the output of the running op, which nobody reads after it.
  return pool_.references(s.buffer) > (s.buffer == running_buffer_ ? 2 : 1) ? grad(v).tensor : s.grad;
}

Var Tape::second_output(const Tensor& t, std::initializer_list<Var> inputs) {
  bool wanted = false;
  for (Var v : inputs) wanted = wanted || needs_grad(v);
  return new_slot(t, recording_ && wanted);
}

void Tape::hand_on(Var from, std::initializer_list<Var> to) {
  if (slot(from).buffer < 0) return;
  const int outer = std::exchange(running_buffer_, slot(from).buffer);
  for (Var v : to) pass_grad(v, slot(from).grad);
  running_buffer_ = outer;
  release_grad(slot(from));
}

Tensor Tape::gradient_of(Var v) const { return slot(v).grad; }

Var Tape::record(const char* op, const Tensor& out, std::initializer_list<Var> inputs,
                 const Backward& backward) {
  bool wanted = false;
  for (Var v : inputs) wanted = wanted || needs_grad(v);
  return record_if(recording_ && wanted, op, out, backward);
}

Var Tape::record_if(bool wanted, const char* op, const Tensor& out, const Backward& backward) {
  const Var v = new_slot(out, wanted);
  if (wanted) {
    records_.push_back({op, v.slot, layer_, op_mark_, backward});
    op_mark_ = arena_.mark();
  }
  if (profiler_) profiler_->forward(op);
  return v;
}

/// Forward without a record: the block's own activations are freed, only its output stays.
Var Tape::run_compact(Var x, RunBlock run, const void* block) {
  const bool was_recording = recording_;
  recording_ = false;
  const Tensor y = arena_.alloc(value(x).shape, value(x).dtype);
  const int64_t mark = arena_.mark();
  const size_t slots = slots_.size();
  const Tensor out = value(run(block, *this, x));
  require(out.shape == y.shape && out.dtype == y.dtype, "tape", "a layer must keep its shape {}, got {}", y,
          out);
  kernels::copy(queue_, {.y = y, .x = out});
  arena_.rewind(mark);
  slots_.resize(slots);
  recording_ = was_recording;
  return new_slot(y, false);
}

/// Compactly now, and with records when backward comes to it.
Var Tape::run_twice(int index, Var x, RunBlock run, const void* block) {
  const bool outer = std::exchange(saw_trainable_, false);
  const Var compact = run_compact(x, run, block);
  const bool wanted = needs_grad(x) || saw_trainable_;
  saw_trainable_ = saw_trainable_ || outer;
  const Tensor out = value(compact);
  slots_.pop_back();
  return record_if(wanted, "layer", out, [=, this](Tensor dy) { replay(index, x, run, block, dy); });
}

Var Tape::layer_impl(int index, Var x, RunBlock run, const void* block) {
  const int outer = layer_;
  layer_ = index;
  const kernels::NamedRange range("layer", index);
  if (hook_) hook_->before_forward(index);
  Var y;
  if (!recording_) {
    y = run_compact(x, run, block);
  } else {
    records_.push_back({"layer_end", -1, index, op_mark_, Backward([](Tensor) {})});
    y = recompute_ == Recompute::block ? run_twice(index, x, run, block) : run(block, *this, x);
  }
  if (hook_) hook_->after_forward(index);
  layer_ = outer;
  return y;
}

void Tape::replay(int index, Var x, RunBlock run, const void* block, const Tensor& dy) {
  const int outer = layer_;
  const int dy_buffer = running_buffer_;
  const size_t first = records_.size(), slots = slots_.size();
  const int64_t mark = arena_.mark();
  layer_ = index;
  replaying_ = recording_ = true;
  op_mark_ = mark;
  const Var inner = new_slot(value(x), needs_grad(x));
  move_grad(x, inner);  // what x has already is added to as without a replay, with the same roundings
  const Var out = run(block, *this, inner);
  Slot& s = slot(out);
  pool_.retain(dy_buffer);
  s.buffer = dy_buffer;
  s.grad = make_tensor(dy.data, s.value.shape, s.value.dtype, queue_.device);
  unwind(first);
  replaying_ = recording_ = false;
  move_grad(inner, x);
  running_buffer_ = dy_buffer;
  arena_.rewind(mark);
  slots_.resize(slots);
  layer_ = outer;
}

void Tape::unwind(size_t first) {
  while (records_.size() > first) {
    Record r = records_.back();
    records_.pop_back();
    layer_ = r.layer;
    if (r.out < 0) {
      if (hook_) hook_->after_backward(r.layer);
      if (profiler_) profiler_->backward(r.op);
      continue;
    }
    Slot& s = slots_[static_cast<size_t>(r.out)];
    if (s.buffer >= 0) {  // otherwise nobody used this output
      const int outer = running_buffer_;
      running_buffer_ = s.buffer;
      const int64_t temps = arena_.mark();
      const kernels::NamedRange range(r.op, r.layer);
      r.backward(s.grad);
      running_buffer_ = outer;
      arena_.rewind(temps);
      release_grad(slots_[static_cast<size_t>(r.out)]);
    }
    arena_.rewind(r.mark);
    if (profiler_) profiler_->backward(r.op);
  }
}

void Tape::backward(Var loss) {
  require(value(loss).numel() == 1, "tape", "backward starts from a scalar, got {}", value(loss));
  kernels::fill(queue_, {.y = first_gradient(loss), .value = 1});
  run_backward();
}

void Tape::backward_from(Var v, const Tensor& dv) {
  const Tensor first = first_gradient(v);
  kernels::copy(queue_, {.y = first, .x = dv.view(first.shape)});
  run_backward();
}

/// Memory for the gradient that backward starts from.
Tensor Tape::first_gradient(Var v) {
  require(needs_grad(v), "tape", "nothing on the tape needs a gradient");
  Slot& s = slot(v);
  give_buffer(s, pool_.acquire(s.value.bytes()));
  return s.grad;
}

void Tape::run_backward() {
  const bool was_recording = recording_;
  recording_ = false;
  unwind(0);
  recording_ = was_recording;
  layer_ = -1;
  op_mark_ = arena_.mark();
  if (hook_) hook_->after_backward(-1);
}

void Tape::reset(int64_t mark) {
  for (Slot& s : slots_) release_grad(s);
  slots_.clear();
  records_.clear();
  arena_.rewind(mark);
  op_mark_ = mark;
  layer_ = -1;
}

}  // namespace osprey
