#include "framework/quant/freezer.h"

#include "framework/ops/quantized_weights.h"
#include "kernels/device.h"
#include "kernels/freezing.h"

namespace osprey {

WeightFreezer::WeightFreezer(const Queue& queue, const ParamStore& params, const Updater& updater)
    : queue_(queue) {
  for (const Updater::Group& g : updater.groups())
    for (const ParamPiece& p : g.pieces)
      held_.push_back({&p, params.find(std::string(p.name)), nullptr, {}, {}});
}

void WeightFreezer::hold(const Tensor& step) {
  for (Held& h : held_) {
    if (!stands(h)) continue;
    const ParamPiece& p = *h.piece;
    if (!h.memory) {
      h.memory = std::make_unique<Arena>("frozen weights", queue_.device, p.master.numel() * 4 + 192);
      h.master = h.memory->alloc(p.master.shape, DType::f32);
      h.frozen = h.memory->alloc({1}, DType::f64);
    }
    kernels::hold_frozen(queue_, {.held = h.master,
                                  .grad = p.grad,
                                  .master = p.master,
                                  .y = packed_now(*h.parameter),
                                  .first = p.begin,
                                  .schedule = h.parameter->freezing->schedule,
                                  .step = step,
                                  .frozen = h.frozen});
  }
}

void WeightFreezer::restore() {
  for (const Held& h : held_)
    if (stands(h))
      kernels::restore_frozen(queue_, {.value = h.piece->value, .master = h.piece->master, .held = h.master});
}

std::vector<WeightFreezer::Count> WeightFreezer::counts() const {
  std::vector<Count> all;
  for (const Held& h : held_) {
    if (!stands(h) || !h.memory) continue;
    Count c{.weight = h.parameter->name, .elements = static_cast<double>(h.master.numel())};
    kernels::download(queue_, &c.frozen, h.frozen);
    all.push_back(c);
  }
  return all;
}

int64_t WeightFreezer::bytes() const {
  int64_t sum = 0;
  for (const Held& h : held_) sum += h.memory ? h.memory->used_bytes() : 0;
  return sum;
}

}  // namespace osprey
