#include "framework/ops/quantized_weights.h"

#include <list>

#include "framework/quant/step_sizes.h"
#include "kernels/block_matmul.h"
#include "kernels/core/random.h"

namespace osprey {

namespace {
using Stack = std::array<Parameter*, most_stacked_weights>;
using Versions = std::array<uint64_t, most_stacked_weights>;
constexpr int64_t alignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment + alignment; }
}  // namespace

class QuantCache {
 public:
  struct Entry {
    Stack weights;
    const QuantScheme* scheme;
    Versions versions{};
    std::unique_ptr<Arena> memory;
    QuantizedWeights result;
  };

  Entry& find(const Queue& queue, const Stack& weights, size_t count, const QuantScheme& scheme) {
    for (Entry& e : entries_)
      if (e.weights == weights && e.scheme == &scheme) return e;
    Entry& e = entries_.emplace_back();
    e.weights = weights;
    e.scheme = &scheme;
    e.result.count = count;
    allocate(queue, e);
    return e;
  }
  /// `scheme` is that of the first of the weights that share an input: where rotations are measured, each
  /// weight has its own.
  const Packed* packed(const Parameter& weight, const QuantScheme* scheme) const {
    for (const Entry& e : entries_)
      for (size_t i = 0; i < e.result.count; ++i)
        if (e.weights[i] == &weight && e.scheme == scheme) return &e.result.packed[i];
    return nullptr;
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const Entry& e : entries_) sum += e.memory ? e.memory->used_bytes() : 0;
    return sum;
  }

 private:
  static void allocate(const Queue& queue, Entry& e) {
    const QuantGroupSpec& spec = *e.scheme->spec;
    if (!spec.weights) return;
    const BlockFormat& format = spec.weights->block_format();
    const bool masked = spec.gradient_mask == QuantGroupSpec::GradientMask::unclipped;
    const bool packed_product = multiplies_packed(spec), dense = !packed_product && spec.activations;
    int64_t bytes = 0;
    for (size_t i = 0; i < e.result.count; ++i) {
      const Shape& s = e.weights[i]->shape;
      if (!e.weights[i]->stored_format) bytes += packed_bytes(format, s[0], s[1]) + 3 * alignment;
      if (masked) bytes += aligned(s.numel() / 8);
      if (dense) bytes += aligned(s.numel() * size_bytes(e.weights[i]->value.dtype));
    }
    const auto place = [&](const Shape& shape, DType dtype) { return e.memory->alloc(shape, dtype); };
    const auto shapes_only = [&](const Shape& shape, DType dtype) {
      return make_tensor(nullptr, shape, dtype, queue.device);
    };
    QuantizedWeights& r = e.result;
    for (size_t i = 0; i < r.count; ++i)
      r.packed[i] = make_packed(format, e.weights[i]->shape[0], e.weights[i]->shape[1], shapes_only);
    const int64_t pack_bytes = packed_product ? kernels::block_pack_bytes(queue, r.all_packed()) : 0;
    e.memory = std::make_unique<Arena>("quantized weights", queue.device, bytes + aligned(pack_bytes));
    for (size_t i = 0; i < r.count; ++i) {
      const Parameter& p = *e.weights[i];
      const Shape& s = p.shape;
      r.packed[i] = p.stored_format ? p.packed : make_packed(format, s[0], s[1], place);
      if (masked) r.masks[i] = place({s[0], s[1] / 8}, DType::u8);
      if (dense) r.images[i] = place(s, p.value.dtype);
    }
    if (pack_bytes > 0) r.block_pack = place({pack_bytes}, DType::u8);
  }

  std::list<Entry> entries_;
};

bool multiplies_packed(const QuantGroupSpec& spec) {
  if (!spec.weights || !spec.activations) return false;
  const BlockFormat &w = spec.weights->block_format(), &a = spec.activations->block_format();
  return w.granularity == a.granularity && w.block == a.block && w.scale == a.scale;
}

kernels::Rotation forward_rotation(const QuantScheme& scheme) {
  kernels::Rotation rotation = forward_rotation(*scheme.spec, scheme.seed);
  if (!scheme.rotated.forward) rotation.size = 0;
  return rotation;
}

const QuantizedWeights& quantized_weights(const Queue& queue, std::span<Parameter* const> weights,
                                          const QuantScheme& scheme) {
  Stack stack{};
  Versions versions{};
  for (size_t i = 0; i < weights.size(); ++i) {
    stack[i] = weights[i];
    versions[i] = weights[i]->version;
    if (const Parameter* step = weights[i]->weight_step) versions[i] += step->version;  // both only grow
  }
  std::shared_ptr<QuantCache>& cache = weights[0]->quantized;
  if (!cache) cache = std::make_shared<QuantCache>();
  QuantCache::Entry& entry = cache->find(queue, stack, weights.size(), scheme);
  QuantizedWeights& r = entry.result;
  if (entry.versions == versions) return r;
  entry.versions = versions;
  const auto& spec = scheme.spec->weights;
  for (size_t i = 0; i < r.count; ++i) {
    if (!spec) {
      r.images[i] = weights[i]->value;
      continue;
    }
    if (!weights[i]->stored_format)
      kernels::quantize(queue, {.y = r.packed[i],
                                .x = weights[i]->value,
                                .rule = spec->scale,
                                .rotation = forward_rotation(scheme),
                                .mask = r.masks[i],
                                .step = learns_step(spec) ? weights[i]->weight_step->value : Tensor{}});
    if (r.images[i].defined()) kernels::dequantize(queue, {.y = r.images[i], .x = r.packed[i]});
  }
  if (r.block_pack.defined()) kernels::block_pack(queue, {.pack = r.block_pack, .b = r.all_packed()});
  return r;
}

const Packed& packed_now(const Parameter& weight) {
  const Parameter& first = weight.first_of_input ? *weight.first_of_input : weight;
  const Packed* packed = first.quantized ? first.quantized->packed(weight, first.scheme) : nullptr;
  require(packed, "quant", "{} was quantized by no forward pass", weight.name);
  return *packed;
}

int64_t quantized_bytes(const ParamStore& params) {
  int64_t sum = 0;
  for (const auto& p : params.all())
    if (p->quantized) sum += p->quantized->bytes();
  return sum;
}

}  // namespace osprey
