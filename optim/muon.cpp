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

namespace {

/// What matrices orthogonalised together may take on a GPU: enough of the small ones to fill it, and little
/// beside what a model that needs a GPU takes. A larger matrix comes alone.
constexpr int64_t batch_bytes = int64_t{1} << 30;

constexpr int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t small_side(const ParamPiece& p) { return std::min(p.full_shape[0], p.full_shape[1]); }
int64_t large_side(const ParamPiece& p) { return std::max(p.full_shape[0], p.full_shape[1]); }

/// Working memory of `count` pieces like this one: their sums of squares, then the buffers.
int64_t memory_bytes(const ParamPiece& p, int64_t count) {
  return align(count * size_bytes(DType::f64)) +
         align(NewtonSchulzBuffers::elements(count, small_side(p), large_side(p)) *
               size_bytes(p.value.dtype));
}

bool alike(const ParamPiece& a, const ParamPiece& b) {
  return small_side(a) == small_side(b) && large_side(a) == large_side(b) && a.value.dtype == b.value.dtype;
}

/// Calls body(pieces) for pieces that stand together, are alike and together take at most `bytes`, or for
/// one.
template <class Body>
void for_each_batch(std::span<const ParamPiece> pieces, int64_t bytes, const Body& body) {
  while (!pieces.empty()) {
    const auto most = static_cast<size_t>(std::max<int64_t>(1, bytes / memory_bytes(pieces[0], 1)));
    size_t count = 1;
    while (count < std::min(most, pieces.size()) && alike(pieces[0], pieces[count])) ++count;
    body(pieces.first(count));
    pieces = pieces.subspan(count);
  }
}

void require_matrices(std::span<const ParamPiece> pieces) {
  for (const ParamPiece& p : pieces)
    if (p.full_shape.rank != 2)
      fail("muon",
           "{} has shape {}, and Muon orthogonalises matrices; give it to adamw in an earlier optim group",
           p.name, p.full_shape.str());
}

int64_t largest_slot_bytes(std::span<const ParamPiece> pieces) {
  int64_t bytes = 0;
  for (const ParamPiece& p : pieces) bytes = std::max(bytes, memory_bytes(p, 1));
  return bytes;
}

Layout layout_of(const ParamPiece& p) {
  return p.full_shape[0] > p.full_shape[1] ? Layout::transposed : Layout::same;
}

/// The matrix at `index` of (B, M, N).
Tensor matrix_at(const Tensor& batch, int64_t index) {
  return make_tensor(static_cast<char*>(batch.data) + index * batch.strides[0] * size_bytes(batch.dtype),
                     {batch.shape[1], batch.shape[2]}, batch.dtype, batch.device);
}

}  // namespace

Muon::Muon(const Settings& settings) : settings_(settings) {
  require(settings.newton_schulz != NewtonSchulz::polar_express || settings.steps == 5, "muon",
          "polar_express is a schedule of exactly five steps, got {}; drop ns_steps or choose keller",
          settings.steps);
  require(settings.steps >= 1, "muon", "Newton-Schulz needs at least one step, got {}", settings.steps);
}

std::vector<StateSpec> Muon::states() const { return {{"momentum", DType::f32}}; }

int64_t Muon::workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const {
  require_matrices(pieces);
  if (queue.target() == DeviceKind::cuda) {
    int64_t bytes = 0;
    for_each_batch(pieces, batch_bytes, [&](std::span<const ParamPiece> batch) {
      bytes = std::max(bytes, memory_bytes(batch[0], static_cast<int64_t>(batch.size())));
    });
    return bytes;
  }
  const int64_t slots = static_cast<int64_t>(pieces.size()) >= queue.threads ? queue.threads : 1;
  return largest_slot_bytes(pieces) * slots;
}

double Muon::cost(const Shape& full_shape) const {
  if (full_shape.rank != 2) return static_cast<double>(full_shape.numel());
  return newton_schulz_flops(full_shape[0], full_shape[1], settings_.steps) +
         10.0 * static_cast<double>(full_shape.numel());
}

void Muon::step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  if (pieces.empty()) return;
  require_matrices(pieces);
  // Here, because an error may not leave the parallel region of step_on_cpu.
  for (const ParamPiece& p : pieces)
    for (const Tensor* t : {&p.value, &p.master, &p.grad, &p.state[0]})
      if (t->shape != p.full_shape || !t->contiguous())
        fail("muon", "{} must come whole, as {}, got {}", p.name, p.full_shape.str(), t->str());
  require(info.workspace.bytes() >= largest_slot_bytes(pieces), "muon",
          "the workspace holds {} bytes, one matrix needs {}", info.workspace.bytes(),
          largest_slot_bytes(pieces));
  if (queue.device.kind == DeviceKind::cuda)
    step_on_gpu(queue, pieces, info);
  else
    step_on_cpu(queue, pieces, info);
}

void Muon::step_on_gpu(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  // The products of one matrix do not fill a GPU.
  for_each_batch(pieces, std::min(batch_bytes, info.workspace.bytes()),
                 [&](std::span<const ParamPiece> batch) { update(queue, batch, info, info.workspace.data); });
}

void Muon::step_on_cpu(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  const int64_t count = static_cast<int64_t>(pieces.size()), slot = largest_slot_bytes(pieces);
  char* memory = static_cast<char*>(info.workspace.data);
  // Matrices side by side, one thread each, beat all threads on one matrix: the products are small.
  const int64_t workers = std::min<int64_t>({queue.threads, info.workspace.bytes() / slot, count});
  const auto at = [&](int64_t i) { return pieces.subspan(static_cast<size_t>(i), 1); };
  if (workers < queue.threads || workers == 1) {
    for (int64_t i = 0; i < count; ++i) update(queue, at(i), info, memory);
    return;
  }
  Queue alone = queue;
  alone.threads = 1;
  std::atomic<int64_t> next{0};
  parallel_for(queue, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t i = next++; i < count; i = next++) update(alone, at(i), info, memory + worker * slot);
  });
}

void Muon::update(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info,
                  void* memory) const {
  const int64_t count = static_cast<int64_t>(pieces.size());
  const Tensor sums = make_tensor(memory, {count, 1}, DType::f64, queue.device);
  const auto sum_at = [&](int64_t i) { return sums.row_range(i, i + 1).view({1}); };
  const auto buffers =
      NewtonSchulzBuffers::cut(static_cast<char*>(memory) + align(sums.bytes()), count, small_side(pieces[0]),
                               large_side(pieces[0]), pieces[0].value.dtype, queue.device);
  for (int64_t i = 0; i < count; ++i) {
    const ParamPiece& p = pieces[static_cast<size_t>(i)];
    kernels::muon_momentum(queue, {.momentum = p.state[0],
                                   .grad = p.grad,
                                   .beta = settings_.momentum,
                                   .form = settings_.form,
                                   .sum_of_squares = sum_at(i),
                                   .control = info.control});
    kernels::muon_direction(queue, {.x = matrix_at(buffers.x, i),
                                    .momentum = p.state[0],
                                    .grad = p.grad,
                                    .beta = settings_.momentum,
                                    .form = settings_.form,
                                    .sum_of_squares = sum_at(i),
                                    .safety = newton_schulz_safety(settings_.newton_schulz),
                                    .layout = layout_of(p),
                                    .control = info.control});
  }
  const Tensor orthogonal = newton_schulz(queue, buffers, settings_.newton_schulz, settings_.steps);
  for (int64_t i = 0; i < count; ++i) {
    const ParamPiece& p = pieces[static_cast<size_t>(i)];
    kernels::muon_update(queue, {.value = p.value,
                                 .master = p.master,
                                 .x = matrix_at(orthogonal, i),
                                 .step_size = settings_.learning_rate *
                                              muon_scale(settings_.scale, p.full_shape[0], p.full_shape[1]),
                                 .decay = settings_.learning_rate * settings_.weight_decay,
                                 .layout = layout_of(p),
                                 .control = info.control});
  }
}

}  // namespace osprey
