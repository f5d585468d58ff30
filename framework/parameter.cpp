#include "framework/parameter.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/random.h"
#include "kernels/device.h"

namespace osprey {

Accum Parameter::accumulate() {
  const bool add = grad_written;
  grad_written = true;
  return {grad, add};
}

Parameter& ParamStore::add(std::string name, int layer, const Shape& shape, Init init) {
  require(!by_name_.contains(name), "parameters", "{} is declared twice", name);
  require(!values_, "parameters", "{} is declared after memory was taken", name);
  auto p = std::make_unique<Parameter>();
  p->name = std::move(name);
  p->layer = layer;
  p->shape = shape;
  p->init = init;
  params_.push_back(std::move(p));
  by_name_[params_.back()->name] = params_.back().get();
  return *params_.back();
}

Parameter* ParamStore::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

Parameter& ParamStore::at(const std::string& name) {
  if (Parameter* p = find(name)) return *p;
  std::string known;
  for (const auto& p : params_) known += " " + p->name;
  fail("parameters", "no parameter {}; there are{}", name, known);
}

Bucket& ParamStore::bucket(int layer) {
  for (Bucket& b : buckets_)
    if (b.layer == layer) return b;
  fail("parameters", "no bucket for layer {}", layer);
}

namespace {

int64_t padded(int64_t elements) { return (elements + 31) / 32 * 32; }

/// `numel` elements of a flat buffer from `offset` on, in another shape; null memory stays null.
Tensor view_at(const Tensor& flat, int64_t offset, const Shape& shape) {
  Tensor t = make_tensor(flat.data, shape, flat.dtype, flat.device);
  if (flat.data) t.data = static_cast<char*>(flat.data) + offset * size_bytes(flat.dtype);
  require(offset + shape.numel() <= flat.numel(), "parameters", "a view {} leaves its bucket", shape);
  return t;
}

}  // namespace

void ParamStore::materialize(Device device, DType dtype, Gradients gradients, std::optional<int> slots) {
  require(!values_, "parameters", "materialized twice");
  dtype_ = dtype;
  for (const auto& p : params_) {
    // From the end: parameters are declared layer by layer, and there may be many layers.
    const auto last = std::find_if(buckets_.rbegin(), buckets_.rend(),
                                   [&](const Bucket& b) { return b.layer == p->layer; });
    auto it = last == buckets_.rend() ? buckets_.end() : std::prev(last.base());
    if (it == buckets_.end()) {
      it = buckets_.insert(buckets_.end(), Bucket());
      it->layer = p->layer;
    }
    it->params.push_back(p.get());
    if (p->stored_format) continue;
    p->offset = it->numel;
    it->numel += padded(p->shape.numel());
  }
  std::sort(buckets_.begin(), buckets_.end(),
            [](const Bucket& a, const Bucket& b) { return a.layer < b.layer; });
  int64_t total = 0, packed_total = 0;
  for (const Bucket& b : buckets_) {
    total += b.numel;
    for (const Parameter* p : b.params)
      if (p->stored_format) packed_total += packed_bytes(*p->stored_format, p->shape[0], p->shape[1]);
  }
  values_ = std::make_unique<Arena>("parameters", device, total * size_bytes(dtype));
  packed_ = std::make_unique<Arena>("packed weights", device, packed_total);
  for (Bucket& b : buckets_) {
    b.values = values_->alloc({b.numel}, dtype);
    for (Parameter* p : b.params) {
      if (!p->stored_format) {
        p->value = view_at(b.values, p->offset, p->shape);
        continue;
      }
      require(gradients == Gradients::off || !p->trainable, "parameters",
              "{} is stored packed, which nothing can train", p->name);
      p->value.dtype = dtype;
      p->packed = make_packed(*p->stored_format, p->shape[0], p->shape[1],
                              [&](const Shape& s, DType d) { return packed_->alloc(s, d); });
    }
  }
  if (gradients != Gradients::off)
    allocate_gradients(device, gradients, slots);
  else
    grads_ = std::make_unique<Arena>("gradients", device, 0);
}

namespace {

/// Rows of a table whose gradient is formed at a time: about 64 MiB, in multiples of 256 rows, so that blocks
/// of whatever optimizers keep for several elements begin where a block of rows does.
int64_t rows_at_a_time(const Shape& table) {
  const int64_t most = std::max<int64_t>(256, (int64_t{16} << 20) / table[1] / 256 * 256);
  return std::min(table[0], most);
}

void require_same_gradients(const Bucket& a, const Bucket& b) {
  const auto same = [](const Parameter* p, const Parameter* q) {
    return p->shape == q->shape && p->trainable == q->trainable && p->grad_offset == q->grad_offset;
  };
  require(std::equal(a.params.begin(), a.params.end(), b.params.begin(), b.params.end(), same), "parameters",
          "layers {} and {} differ in shape, so they cannot take turns in the same memory", a.layer, b.layer);
}

}  // namespace

void ParamStore::allocate_gradients(Device device, Gradients gradients, std::optional<int> slots) {
  const bool brief = gradients == Gradients::brief;
  int64_t row_numel = 0;
  for (Bucket& b : buckets_)
    for (Parameter* p : b.params) {
      if (!p->trainable) continue;
      if (brief && p->by_rows) {
        row_numel = std::max(row_numel, rows_at_a_time(p->shape) * p->shape[1]);
        continue;
      }
      p->grad_offset = b.grad_numel;
      b.grad_numel += padded(p->grad_shape().numel());
    }
  const Bucket* first_layer = nullptr;
  int64_t outside = 0, all_layers = 0, largest_layer = 0;
  for (const Bucket& b : buckets_) {
    if (b.layer < 0) {
      outside += b.grad_numel;
      continue;
    }
    if (!first_layer) first_layer = &b;
    if (slots) require_same_gradients(*first_layer, b);
    all_layers += b.grad_numel;
    largest_layer = std::max(largest_layer, b.grad_numel);
  }
  const int64_t layers = brief ? largest_layer : slots ? largest_layer * *slots : all_layers;
  grads_ = std::make_unique<Arena>("gradients", device, (outside + layers + padded(row_numel)) * 4);
  const auto alloc = [&](int64_t numel) { return grads_->alloc({numel}, DType::f32); };
  const Tensor shared = brief ? alloc(largest_layer) : Tensor{}, rows = alloc(row_numel);
  for (Bucket& b : buckets_) {
    if (slots && b.layer >= 0) continue;
    for (Parameter* p : b.params)
      if (brief && p->by_rows && p->trainable)
        p->row_gradient = view_at(rows, 0, {rows_at_a_time(p->shape), p->shape[1]});
    bind(b, brief && b.layer >= 0 ? view_at(shared, 0, {b.grad_numel}) : alloc(b.grad_numel));
  }
  for (int i = 0; i < slots.value_or(0); ++i) slots_.push_back(brief ? shared : alloc(largest_layer));
  slot_owner_.assign(slots_.size(), nullptr);
}

void ParamStore::bind(Bucket& bucket, const Tensor& grads) {
  bucket.grads = grads;
  for (Parameter* p : bucket.params)
    if (p->trainable && !p->row_gradient.defined()) p->grad = view_at(grads, p->grad_offset, p->grad_shape());
}

void ParamStore::bind_gradients(int slot, int layer) {
  Bucket*& owner = slot_owner_.at(static_cast<size_t>(slot));
  if (owner) {
    owner->grads = {};
    for (Parameter* p : owner->params) p->grad = {};
  }
  owner = &bucket(layer);
  bind(*owner, slots_[static_cast<size_t>(slot)]);
}

/// Gram-Schmidt in double on normal draws, twice for orthogonality to rounding; rows are orthonormal
/// (columns, for a tall matrix).
static void orthogonal(const Parameter& p, uint64_t seed, float* out) {
  const bool tall = p.shape[0] > p.shape[1];
  const int64_t m = std::min(p.shape[0], p.shape[1]), n = std::max(p.shape[0], p.shape[1]);
  std::vector<double> q(static_cast<size_t>(m * n));
  const uint64_t stream = stream_of(p.name);
  for (int64_t i = 0; i < m * n; ++i)
    q[static_cast<size_t>(i)] = random_normal(seed, stream, static_cast<uint64_t>(i));
  for (int64_t i = 0; i < m; ++i) {
    double* row = q.data() + i * n;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double* other = q.data() + j * n;
        double dot = 0;
        for (int64_t k = 0; k < n; ++k) dot += row[k] * other[k];
        for (int64_t k = 0; k < n; ++k) row[k] -= dot * other[k];
      }
      double norm = 0;
      for (int64_t k = 0; k < n; ++k) norm += row[k] * row[k];
      norm = 1 / std::sqrt(norm);
      for (int64_t k = 0; k < n; ++k) row[k] *= norm;
    }
  }
  for (int64_t i = 0; i < m; ++i)
    for (int64_t k = 0; k < n; ++k)
      out[tall ? k * m + i : i * n + k] = static_cast<float>(q[static_cast<size_t>(i * n + k)]);
}

void ParamStore::initial_value(const Queue& queue, const Parameter& p, uint64_t seed, float* out) {
  const uint64_t stream = stream_of(p.name);
  switch (p.init.kind) {
    case Init::Kind::constant:
      std::fill(out, out + p.shape.numel(), static_cast<float>(p.init.value));
      return;
    case Init::Kind::normal:
      parallel_for(queue, p.shape.numel(), 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          out[i] = static_cast<float>(p.init.value) * random_normal(seed, stream, static_cast<uint64_t>(i));
      });
      return;
    case Init::Kind::orthogonal:
      require(p.shape.rank == 2, "parameters", "{} cannot be orthogonal: its shape is {}", p.name, p.shape);
      orthogonal(p, seed, out);
      return;
  }
}

void ParamStore::initialize(const Queue& queue, uint64_t seed) {
  if (queue.meta()) return;
  std::vector<float> scratch;
  std::vector<bf16> rounded;
  for (const auto& p : params_) {
    if (p->stored_format) continue;
    ++p->version;
    scratch.resize(static_cast<size_t>(p->shape.numel()));
    initial_value(queue, *p, seed, scratch.data());
    if (dtype_ == DType::f32) {
      kernels::upload(queue, p->value, scratch.data());
      continue;
    }
    rounded.resize(scratch.size());
    for (size_t i = 0; i < scratch.size(); ++i) rounded[i] = to_bf16(scratch[i]);
    kernels::upload(queue, p->value, rounded.data());
  }
}

void ParamStore::begin_step() {
  for (const auto& p : params_) p->grad_written = false;
}

int64_t ParamStore::numel() const {
  int64_t n = 0;
  for (const auto& p : params_) n += p->shape.numel();
  return n;
}

}  // namespace osprey
