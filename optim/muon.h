#pragma once
// Muon: momentum, orthogonalised.

#include "framework/optimizer.h"
#include "kernels/muon.h"
#include "optim/newton_schulz.h"

namespace osprey {

/// How long an orthogonalised step is, from the shape (out, in) of the whole matrix. The three differ by up
/// to ten times, and each wants its own learning rate.
///   match_rms_adamw  0.2 sqrt(max(out, in)): entries of RMS 0.2 like AdamW's, whose learning rate then fits
///   keller           sqrt(max(1, out / in)); learning rates near 0.02
///   spectral         sqrt(out / in): the step's effect on activations is independent of width
enum class MuonScale { match_rms_adamw, keller, spectral };
double muon_scale(MuonScale rule, int64_t out, int64_t in);

/// For each matrix W (out, in) with gradient G:
///   M <- momentum M + G,  U = G + momentum M (nesterov) or M,
///   W <- W - lr (scale(out, in) NewtonSchulz(U / |U|) + weight_decay W).
/// The decay uses the plain learning rate. The averaging form of the momentum, M <- mu M + (1 - mu) G, gives
/// the same U up to the factor 1 - mu, which the norm removes: there is one form here. Numerics: momentum and
/// norm in fp32 (sums in double) before the cast; Newton-Schulz in the dtype of `value`, on the smaller Gram
/// side. |U| below 1e-30 counts as zero and moves nothing but the decay. Every matrix is updated from its own
/// data alone, so results do not depend on threads, ranks or neighbours (on a GPU: as far as its library
/// computes a product alike in batches of all sizes). Async: nothing waits for the device. Reference: Jordan
/// et al., "Muon" (2024); Liu et al., "Muon is scalable" (arXiv 2502.16982) for match_rms_adamw.
class Muon final : public Optimizer {
 public:
  struct Settings {
    double learning_rate = 5e-4;
    double weight_decay = 0.01;
    double momentum = 0.95;
    kernels::Momentum form = kernels::Momentum::nesterov;
    NewtonSchulz newton_schulz = NewtonSchulz::polar_express;
    int steps = 5;
    MuonScale scale = MuonScale::match_rms_adamw;
  };
  /// Errors: throws for polar_express with other than five steps.
  explicit Muon(const Settings& settings);

  const char* kind() const override { return "muon"; }
  ShardGranularity granularity() const override { return ShardGranularity::matrix; }
  std::vector<StateSpec> states() const override;
  double learning_rate() const override { return settings_.learning_rate; }
  /// On a CPU one set of Newton-Schulz buffers a thread, or one in all when there are fewer matrices than
  /// threads. On a GPU one for as many matrices of a shape as are orthogonalised together: up to 1 GiB.
  int64_t workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const override;
  double cost(const Shape& full_shape) const override;
  /// Errors: throws when a parameter is not a matrix or the workspace is too small for one of them.
  void step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const override;

 private:
  void step_on_cpu(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const;
  void step_on_gpu(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const;
  /// Pieces of one shape, up to transposition, and one dtype.
  void update(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info,
              void* memory) const;

  Settings settings_;
};

}  // namespace osprey
