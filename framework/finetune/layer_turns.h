#pragma once
// Which layers train when: a pure function of (settings, seed, step).

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "framework/finetune/spec.h"

namespace osprey {

/// Scores of all layers from a file that `osprey inspect --lod` wrote.
/// Errors: not such a file, another number of layers, a score that is negative or not finite.
std::vector<double> read_layer_scores(const std::string& path, int64_t layers);

/// A layer in its place. Places are what optimizer state belongs to: a layer that stays active keeps its
/// place.
struct ActiveLayer {
  int layer = 0;
  int64_t since = 0;  // the step at which it became active, or as Setup::counting says
  bool operator==(const ActiveLayer&) const = default;
};

class LayerTurns {
 public:
  struct Setup {
    int64_t layers = 0, active = 0, interval = 0;
    FinetuneSpec::Order order = FinetuneSpec::Order::drawn;
    std::vector<double> scores;  // empty: all alike
    uint64_t seed = 0;
    /// What `since` counts from: waking up; or as if all steps of the layer, of earlier turns too, had come
    /// right before now, for layers whose optimizer state goes on where it stood.
    enum class Counting { this_turn, all_turns } counting = Counting::this_turn;
  };
  /// Errors: more active layers than there are, or than have a score above zero.
  explicit LayerTurns(const Setup& setup);

  /// Who is active in `step`, by place. Steps may be asked for in any order; ascending ones cost least.
  const std::vector<ActiveLayer>& at(int64_t step);
  /// The layers of draw k, ascending.
  /// drawn: successive sampling without replacement, each draw in proportion to the scores of those left; the
  /// chance of a layer to be among them is therefore not active * score / sum (see OwLore's published code).
  std::vector<int> draw(int64_t k) const;
  int64_t interval() const { return setup_.interval; }

 private:
  std::vector<int> shuffled(int64_t cycle) const;
  Setup setup_;
  int64_t draws_ = 0;           // that `turns_` has seen
  std::vector<int64_t> steps_;  // of every layer in these draws
  std::vector<ActiveLayer> turns_;
};

}  // namespace osprey
