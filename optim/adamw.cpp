#include "optim/adamw.h"

#include <algorithm>
#include <array>

#include "kernels/adamw.h"
#include "kernels/compact_adam.h"
#include "kernels/core/random.h"
#include "kernels/numerics/dynamic_code.h"

namespace osprey {

std::vector<StateSpec> adam_states(MomentFormat format) {
  switch (format) {
    case MomentFormat::fp32:
      return {{"adam_m", DType::f32}, {"adam_v", DType::f32}};
    case MomentFormat::bf16:
      return {{"adam_m", DType::bf16}, {"adam_v", DType::bf16}};
    case MomentFormat::int8:
      return {{"adam_m", DType::u8},
              {"adam_v", DType::u8},
              {"adam_m_scale", DType::f32, dynamic_block},
              {"adam_v_scale", DType::f32, dynamic_block}};
  }
  return {};
}

int64_t AdamW::workspace_bytes(const Queue&, std::span<const ParamPiece>) const { return 0; }

double AdamW::cost(const Shape& full_shape) const { return 15.0 * static_cast<double>(full_shape.numel()); }

namespace {

Tensor flat(const Tensor& t) { return t.defined() ? t.view({t.numel()}) : t; }

/// Does the fast kernel update it? It keeps everything but values in fp32.
bool all_fp32(const ParamPiece& p, MomentFormat moments) {
  return moments == MomentFormat::fp32 && p.master.dtype == DType::f32;
}

}  // namespace

void AdamW::step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  std::array<kernels::AdamWPiece, 64> some;
  for (size_t begin = 0, end; begin < pieces.size(); begin = end) {
    const ParamPiece& first = pieces[begin];
    end = begin + 1;
    if (!all_fp32(first, settings_.moments)) {
      step_compact(queue, first, info);
      continue;
    }
    while (end < pieces.size() && end - begin < some.size() && pieces[end].since == first.since &&
           all_fp32(pieces[end], settings_.moments))
      ++end;
    const auto part = pieces.subspan(begin, end - begin);
    std::transform(part.begin(), part.end(), some.begin(), [](const ParamPiece& p) {
      return kernels::AdamWPiece{
          .value = p.value, .master = p.master, .grad = p.grad, .m = p.state[0], .v = p.state[1]};
    });
    kernels::adamw(queue, {.pieces = {some.data(), part.size()},
                           .learning_rate = settings_.learning_rate,
                           .beta1 = settings_.beta1,
                           .beta2 = settings_.beta2,
                           .eps = settings_.eps,
                           .weight_decay = settings_.weight_decay,
                           .eps_place = settings_.eps_place,
                           .since = first.since,
                           .control = info.control});
  }
}

void AdamW::step_compact(const Queue& queue, const ParamPiece& p, const StepInfo& info) const {
  const bool master = p.master.data != p.value.data;
  kernels::compact_adam(queue, {.weight = flat(p.master),
                                .rounded = master ? flat(p.value) : Tensor{},
                                .grad = flat(p.grad),
                                .m = {flat(p.state[0]), p.state[2]},
                                .v = {flat(p.state[1]), p.state[3]},
                                .learning_rate = settings_.learning_rate,
                                .beta1 = settings_.beta1,
                                .beta2 = settings_.beta2,
                                .eps = settings_.eps,
                                .weight_decay = settings_.weight_decay,
                                .eps_place = settings_.eps_place,
                                .since = p.since,
                                .seed = info.seed,
                                .stream = stream_of(std::string(p.name)),
                                .first_element = p.begin,
                                .control = info.control});
}

}  // namespace osprey
