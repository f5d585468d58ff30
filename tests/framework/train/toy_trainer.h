#pragma once
// A trainer whose evaluation has losses that are known: each sequence's targets have the loss that its first
// token says. Nothing is trained.

#include <cmath>
#include <memory>
#include <vector>

#include "framework/parallel/communicator.h"
#include "framework/train/trainer.h"

namespace osprey::test {

class ToyModel final : public LanguageModel {
 public:
  void declare(ParamStore&) override {}
  Var hidden(Tape&, const BatchView&) override { return {}; }
  Var loss(Tape&, const BatchView& batch, const LossArgs& args) override {
    const int64_t rows = batch.tokens.shape[0], length = batch.tokens.shape[1];
    for (int64_t b = 0; b < rows; ++b) {
      if (batch.targets.as<int32_t>()[b * length] < 0) continue;
      args.sums.as<double>()[0] += batch.tokens.as<int32_t>()[b * length] * static_cast<double>(length);
      args.sums.as<double>()[1] += static_cast<double>(length);
    }
    return {};
  }
  Tensor decode(Tape&, const Tensor&, const Tensor&, DecodeCache&) override { return {}; }
  DecodeCache make_cache(Arena&, int64_t, int64_t) override { return {}; }
  double flops_per_token(int64_t) const override { return 1; }
  int64_t vocabulary() const override { return 100; }
};

/// Sequence i of the validation data has the loss `losses[i]`.
class ToySource final : public BatchSource {
 public:
  ToySource(std::vector<int32_t> losses, const Communicator& world)
      : losses_(std::move(losses)), world_(world) {}
  int64_t fill(int64_t, int64_t round, int64_t, const BatchView& into) override {
    const int64_t rows = into.tokens.shape[0], length = into.tokens.shape[1];
    for (int64_t b = 0; b < rows; ++b) {
      const size_t i = static_cast<size_t>((round * world_.size() + world_.rank()) * rows + b);
      for (int64_t t = 0; t < length; ++t) {
        into.tokens.as<int32_t>()[b * length + t] = i < losses_.size() ? losses_[i] : 0;
        into.targets.as<int32_t>()[b * length + t] = i < losses_.size() ? 0 : -1;
      }
    }
    return 0;
  }

 private:
  std::vector<int32_t> losses_;
  const Communicator& world_;
};

/// Sequences of 8 tokens, `micro_batch` at a time on each rank.
struct ToyTrainer {
  explicit ToyTrainer(std::vector<int32_t> of_sequences = {3, 5, 4, 8, 1, 2},
                      Communicator* of_ranks = nullptr, int64_t micro_batch = 1)
      : own(make_self_comm()),
        world(of_ranks ? of_ranks : own.get()),
        losses(of_sequences),
        source(losses, *world) {
    TrainSpec spec;
    spec.steps = 4;
    spec.micro_batch_size = micro_batch;
    spec.global_batch_tokens = 8 * micro_batch * world->size();
    TrainerParts parts;
    parts.queue = queue, parts.model = &model, parts.params = &params, parts.tape = &tape,
    parts.world = world, parts.device_world = world, parts.plan = &plan, parts.validation = &source;
    parts.validation_sequences = static_cast<int64_t>(losses.size());
    parts.sequence_len = 8;
    trainer = std::make_unique<Trainer>(spec, parts);
  }
  double mean_loss() const {
    double sum = 0;
    for (const int32_t loss : losses) sum += loss;
    return sum / static_cast<double>(losses.size());
  }

  Queue queue;
  std::unique_ptr<Communicator> own;
  Communicator* world;
  std::vector<int32_t> losses;
  ToySource source;
  Arena arena{"activations", Device{}, 1 << 20};
  Pool pool{"gradients", Device{}};
  Tape tape{queue, arena, pool};
  ParamStore params;
  ToyModel model;
  ShardPlan plan;  // of nothing
  std::unique_ptr<Trainer> trainer;
};

}  // namespace osprey::test
