#pragma once
// The `finetune` section of a recipe: one word chooses a method, its keys tune it.

#include <cstdint>
#include <optional>
#include <string>

#include "framework/config/fields.h"

namespace osprey {

struct FinetuneSpec {
  enum class Method { full, lora, dora, galore, lisa, owlore, badam, apollo };
  enum class Order { drawn, ascending, descending, shuffled };
  enum class Basis { randomized, exact };
  enum class Scaling { channel, tensor };

  Method method = Method::full;
  // Layers that take turns: lisa, owlore, badam. What is absent is what the method published.
  std::optional<int64_t> active_layers, interval;
  std::optional<Order> order;
  std::string scores;
  std::optional<bool> train_embedding, train_head, train_final_norm;
  // Subspaces (galore, owlore), projections (apollo) and adapters (lora, dora).
  int64_t rank = 128;
  std::string targets = "layers.*.{attn,mlp}.{q,k,v,o,gate,up,down}.weight";
  int64_t refresh_every = 200;
  double scale = 1.0;
  Basis basis = Basis::randomized;
  Scaling scaling = Scaling::channel;
  bool reference = false;  // owlore as its published code does it
  double alpha = 16;
  bool rank_stabilized = false;
  std::string adapter;      // directory of adapters to go on from; empty: new ones
  std::string base_format;  // of the frozen matrices of layers; empty: as they are

  bool takes_turns() const {
    return method == Method::lisa || method == Method::owlore || method == Method::badam;
  }
  bool in_subspaces() const { return method == Method::galore || method == Method::owlore; }
  /// Are gradients whole, and moments those of random projections?
  bool scales_gradients() const { return method == Method::apollo; }
  bool adapts() const { return method == Method::lora || method == Method::dora; }

  int64_t layers_at_a_time() const {
    return active_layers.value_or(method == Method::owlore ? 5 : method == Method::lisa ? 2 : 1);
  }
  int64_t steps_of_a_turn() const {
    return interval.value_or(method == Method::owlore ? 50 : method == Method::lisa ? 20 : 100);
  }
  Order turn_order() const {
    return order.value_or(method == Method::badam ? Order::shuffled : Order::drawn);
  }
  /// Do parameters outside the layers train? BAdam leaves them as they are.
  bool trains(const std::optional<bool>& part) const { return part.value_or(method != Method::badam); }

  void fields(Fields& f);
};

}  // namespace osprey
