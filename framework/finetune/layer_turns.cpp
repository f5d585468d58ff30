#include "framework/finetune/layer_turns.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "framework/files/json.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {

std::vector<double> read_layer_scores(const std::string& path, int64_t layers) {
  const nlohmann::json file = read_json(path, int64_t{1} << 24, 8);
  const bool has = file.is_object() && file.contains("scores") && file["scores"].is_array();
  require(has, path,
          "is no file of layer scores: it has no list \"scores\"; osprey inspect --lod writes one");
  std::vector<double> scores;
  for (const nlohmann::json& value : file["scores"]) {
    require(value.is_number() && std::isfinite(value.get<double>()) && value.get<double>() >= 0, path,
            "score {} is {}; scores are numbers that are not negative", scores.size(), value.dump());
    scores.push_back(value.get<double>());
  }
  require(
      static_cast<int64_t>(scores.size()) == layers, path,
      "holds scores of {} layers, and the model has {}; compute them for this model with osprey inspect --lod",
      scores.size(), layers);
  return scores;
}

LayerTurns::LayerTurns(const Setup& setup) : setup_(setup) {
  const auto positive = setup.scores.empty() ? setup.layers
                                             : std::count_if(setup.scores.begin(), setup.scores.end(),
                                                             [](double score) { return score > 0; });
  require(setup.active >= 1 && setup.active <= setup.layers, "finetune.active_layers",
          "{} layers cannot be active in a model of {}", setup.active, setup.layers);
  require(setup.order != FinetuneSpec::Order::drawn || setup.active <= positive, "finetune.active_layers",
          "{} layers are to be drawn, and only {} have a score above zero", setup.active, positive);
  require(setup.interval >= 1, "finetune.interval", "must be at least 1, got {}", setup.interval);
}

std::vector<int> LayerTurns::shuffled(int64_t cycle) const {
  std::vector<int> order(static_cast<size_t>(setup_.layers));
  std::iota(order.begin(), order.end(), 0);
  const uint64_t stream = stream_of("order of layers");
  for (size_t i = order.size(); i-- > 1;) {
    const uint64_t at = static_cast<uint64_t>(cycle) * order.size() + i;
    std::swap(order[i], order[random_u64(setup_.seed, stream, at) % (i + 1)]);
  }
  return order;
}

std::vector<int> LayerTurns::draw(int64_t k) const {
  using Order = FinetuneSpec::Order;
  const int64_t layers = setup_.layers, active = setup_.active;
  std::vector<int> chosen;
  if (setup_.order == Order::drawn) {
    std::vector<double> weights = setup_.scores;
    if (weights.empty()) weights.assign(static_cast<size_t>(layers), 1.0);
    const uint64_t stream = stream_of("layers");
    for (int64_t i = 0; i < active; ++i) {
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      const uint64_t bits = random_u64(setup_.seed, stream, static_cast<uint64_t>(k * active + i));
      double left = static_cast<double>(bits >> 11) * 0x1p-53 * sum;
      int last = -1;  // with a weight: what is left after rounding falls to it
      for (int l = 0; l < static_cast<int>(layers); ++l) {
        const double weight = weights[static_cast<size_t>(l)];
        if (weight <= 0) continue;
        last = l;
        if (left < weight) break;
        left -= weight;
      }
      weights[static_cast<size_t>(last)] = 0;
      chosen.push_back(last);
    }
  } else {
    for (int64_t i = k * active; i < (k + 1) * active; ++i) {
      const int64_t cycle = i / layers, at = i % layers;
      const int layer = setup_.order == Order::shuffled    ? shuffled(cycle)[static_cast<size_t>(at)]
                        : setup_.order == Order::ascending ? static_cast<int>(at)
                                                           : static_cast<int>(layers - 1 - at);
      // Where one cycle ends and the next begins, a layer may come twice in a row.
      if (std::find(chosen.begin(), chosen.end(), layer) == chosen.end()) chosen.push_back(layer);
    }
    for (int l = 0; static_cast<int64_t>(chosen.size()) < active; ++l)
      if (std::find(chosen.begin(), chosen.end(), l) == chosen.end()) chosen.push_back(l);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

const std::vector<ActiveLayer>& LayerTurns::at(int64_t step) {
  const int64_t wanted = step / setup_.interval + 1;
  if (wanted < draws_) {
    draws_ = 0;
    turns_.clear();
  }
  if (draws_ == 0) steps_.assign(static_cast<size_t>(setup_.layers), 0);
  for (; draws_ < wanted; ++draws_) {
    std::vector<int> entering = draw(draws_);
    for (const ActiveLayer& t : turns_) steps_[static_cast<size_t>(t.layer)] += setup_.interval;
    if (turns_.empty()) {
      for (const int layer : entering) turns_.push_back({layer, 0});
      continue;
    }
    std::vector<ActiveLayer*> leaving;
    for (ActiveLayer& t : turns_)
      if (std::erase(entering, t.layer) == 0) leaving.push_back(&t);
    const bool all_turns = setup_.counting == Setup::Counting::all_turns;
    for (size_t i = 0; i < leaving.size(); ++i) {
      const int64_t before = all_turns ? steps_[static_cast<size_t>(entering[i])] : 0;
      *leaving[i] = {entering[i], draws_ * setup_.interval - before};
    }
  }
  return turns_;
}

}  // namespace osprey
