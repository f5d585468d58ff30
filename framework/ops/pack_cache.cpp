#include "framework/ops/pack_cache.h"

#include <array>
#include <list>

namespace osprey {

namespace {
using Stack = std::array<Parameter*, most_stacked_weights>;
using Versions = std::array<uint64_t, most_stacked_weights>;
}  // namespace

class PackCache {
 public:
  struct Entry {
    Stack weights;
    kernels::PackFor use;
    Versions versions{};
    std::unique_ptr<Arena> memory;
    Tensor pack;
  };

  Entry& find(const Queue& queue, const Stack& weights, std::span<const Tensor> values,
              kernels::PackFor use) {
    for (Entry& e : entries_)
      if (e.weights == weights && e.use == use) return e;
    Entry& e = entries_.emplace_back();
    e.weights = weights;
    e.use = use;
    const int64_t bytes = kernels::linear_pack_bytes(queue, values, use);
    if (bytes > 0) {
      e.memory = std::make_unique<Arena>("packed weights", queue.device, bytes + 64);
      e.pack = e.memory->alloc({bytes / 2}, DType::bf16);
    }
    return e;
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const Entry& e : entries_) sum += e.pack.defined() ? e.pack.bytes() : 0;
    return sum;
  }

 private:
  std::list<Entry> entries_;
};

Tensor packed_weights(const Queue& queue, std::span<Parameter* const> weights, kernels::PackFor use) {
  require(!weights.empty() && weights.size() <= most_stacked_weights, "linear", "1 to {} weights, got {}",
          most_stacked_weights, weights.size());
  Stack stack{};
  Versions versions{};
  std::array<Tensor, most_stacked_weights> values;
  for (size_t i = 0; i < weights.size(); ++i) {
    stack[i] = weights[i];
    versions[i] = weights[i]->version;
    values[i] = weights[i]->value;
  }
  const std::span<const Tensor> views(values.data(), weights.size());
  std::shared_ptr<PackCache>& cache = weights[0]->packs;
  if (!cache) cache = std::make_shared<PackCache>();
  PackCache::Entry& entry = cache->find(queue, stack, views, use);
  if (entry.pack.defined() && entry.versions != versions) {
    kernels::linear_pack(queue, {.pack = entry.pack, .weights = views, .use = use});
    entry.versions = versions;
  }
  return entry.pack;
}

int64_t packed_bytes(const ParamStore& params) {
  int64_t sum = 0;
  for (const auto& p : params.all())
    if (p->packs) sum += p->packs->bytes();
  return sum;
}

}  // namespace osprey
