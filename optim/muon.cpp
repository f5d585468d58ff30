#include "optim/muon.h"

#include <atomic>
#include <cmath>

namespace osprey {

using kernels::Layout;

double muon_scale(MuonScale rule, int64_t out, int64_t in) {
  const double rows = static_cast<double>(out), cols = static_cast<double>(in);
  switch (rule) {
    case MuonScale::match_rms_adamw:
      return 0.2 * std::sqrt(std::max(rows, cols));
    case MuonScale::keller:
      return std::sqrt(std::max(1.0, rows / cols));
    case MuonScale::spectral:
      return std::sqrt(rows / cols);
  }
  return 0;
}

constexpr int64_t sum_bytes = 64;  // the norm of a direction stands before its buffers

static int64_t slot_bytes(const ParamPiece& piece) {
  const int64_t rows = piece.full_shape[0], cols = piece.full_shape[1];
  return sum_bytes + NewtonSchulzBuffers::elements(std::min(rows, cols), std::max(rows, cols)) *
         size_bytes(piece.value.dtype);
}

static int64_t largest_slot_bytes(std::span<const ParamPiece> pieces) {
  int64_t bytes = 0;
  for (const ParamPiece& p : pieces) {
    if (p.full_shape.rank != 2)
      fail("muon",
           "{} has shape {}, and Muon orthogonalises matrices; give it to adamw in an earlier optim group",
           p.name, p.full_shape.str());
    bytes = std::max(bytes, slot_bytes(p));
  }
  return (bytes + 63) / 64 * 64;
}

Muon::Muon(const Settings& settings) : settings_(settings) {
  require(settings.newton_schulz != NewtonSchulz::polar_express || settings.steps == 5, "muon",
          "polar_express is a schedule of exactly five steps, got {}; drop ns_steps or choose keller",
          settings.steps);
  require(settings.steps >= 1, "muon", "Newton-Schulz needs at least one step, got {}", settings.steps);
}

std::vector<StateSpec> Muon::states() const { return {{"momentum", DType::f32}}; }

int64_t Muon::workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const {
  const int64_t slots = static_cast<int64_t>(pieces.size()) >= queue.threads ? queue.threads : 1;
  return largest_slot_bytes(pieces) * slots;
}

double Muon::cost(const Shape& full_shape) const {
  if (full_shape.rank != 2) return static_cast<double>(full_shape.numel());
  return newton_schulz_flops(full_shape[0], full_shape[1], settings_.steps) +
         10.0 * static_cast<double>(full_shape.numel());
}

void Muon::step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  const int64_t count = static_cast<int64_t>(pieces.size());
  if (count == 0) return;
  const int64_t slot = largest_slot_bytes(pieces);
  // Here, because an error may not leave the parallel region below.
  for (const ParamPiece& p : pieces)
    for (const Tensor* t : {&p.value, &p.master, &p.grad, &p.state[0]})
      if (t->shape != p.full_shape || !t->contiguous())
        fail("muon", "{} must come whole, as {}, got {}", p.name, p.full_shape.str(), t->str());
  const int64_t granted = info.workspace.bytes() / slot;
  require(granted >= 1, "muon", "the workspace holds {} bytes, one matrix needs {}", info.workspace.bytes(),
          slot);
  char* memory = static_cast<char*>(info.workspace.data);
  // Matrices side by side, one thread each, beat all threads on one matrix: the products are small.
  const int64_t workers = std::min<int64_t>({queue.threads, granted, count});
  if (queue.device.kind != DeviceKind::cpu || workers < queue.threads || workers == 1) {
    for (const ParamPiece& p : pieces) update(queue, p, info, memory);
    return;
  }
  Queue alone = queue;
  alone.threads = 1;
  std::atomic<int64_t> next{0};
  parallel_for(queue, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t i = next++; i < count; i = next++)
      update(alone, pieces[static_cast<size_t>(i)], info, memory + worker * slot);
  });
}

void Muon::update(const Queue& queue, const ParamPiece& p, const StepInfo& info, void* memory) const {
  const int64_t out = p.full_shape[0], in = p.full_shape[1];
  const Layout layout = out > in ? Layout::transposed : Layout::same;
  const Tensor sum_of_squares = make_tensor(memory, {1}, DType::f64, queue.device);
  kernels::muon_momentum(queue, {.momentum = p.state[0],
                                 .grad = p.grad,
                                 .beta = settings_.momentum,
                                 .form = settings_.form,
                                 .sum_of_squares = sum_of_squares,
                                 .control = info.control});
  const auto buffers =
      NewtonSchulzBuffers::cut(static_cast<char*>(memory) + sum_bytes, std::min(out, in), std::max(out, in), p.value.dtype, queue.device);
  kernels::muon_direction(queue, {.x = buffers.x,
                                  .momentum = p.state[0],
                                  .grad = p.grad,
                                  .beta = settings_.momentum,
                                  .form = settings_.form,
                                  .sum_of_squares = sum_of_squares,
                                  .safety = newton_schulz_safety(settings_.newton_schulz),
                                  .layout = layout,
                                  .control = info.control});
  const Tensor orthogonal = newton_schulz(queue, buffers, settings_.newton_schulz, settings_.steps);
  kernels::muon_update(queue, {.value = p.value,
                               .master = p.master,
                               .x = orthogonal,
                               .step_size = settings_.learning_rate * muon_scale(settings_.scale, out, in),
                               .decay = settings_.learning_rate * settings_.weight_decay,
                               .layout = layout,
                               .control = info.control});
}

}  // namespace osprey
