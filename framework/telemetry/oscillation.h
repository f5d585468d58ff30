#pragma once
// Which weights of four bits jump back and forth while they are trained: one look in every step at the codes
// that the step computes with.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/memory/arena.h"
#include "framework/quant/scheme.h"

namespace osprey {

class OscillationTracker {
 public:
  /// Memory of the state of these weights: five bytes for each element and one for each scale of a block,
  /// unless scales are f32.
  static int64_t bytes(std::span<const WeightInFormat> weights);

  /// Takes the memory and forgets everything: a run that goes on begins anew too.
  /// Errors: throws where a format has no four bits.
  OscillationTracker(const Queue& queue, std::span<const WeightInFormat> weights);

  void begin_step();
  /// Looks at a weight once a step; weights it was not made for are ignored. Puts work on the queue.
  void look(const std::string& weight, const Packed& codes);

  struct Shares {
    double oscillated = 0;   // of the elements, in the last step that looked
    double oscillating = 0;  // those that did in more than 0.5% of the steps, by a running mean
  };
  /// By the names of the weights. Waits for the queue's work.
  std::map<std::string, Shares> result() const;

 private:
  struct State {
    Tensor last, rate, scales, sums;
    bool looked_at = false;  // in this step
  };
  Queue queue_;
  std::unique_ptr<Arena> memory_;
  Tensor sums_;  // (weights, 2) f64
  std::map<std::string, State> states_;
};

}  // namespace osprey
