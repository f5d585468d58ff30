#include "framework/ops/magnitude.h"

#include <algorithm>
#include <array>

#include "framework/ops/pack_cache.h"
#include "kernels/magnitude.h"
#include "kernels/pointwise.h"

namespace osprey {

namespace {

struct Changes {
  std::array<LengthChange, most_stacked_weights> of{};
  size_t count = 0;
};

Tensor columns_of(const LengthChange& c, const Tensor& t) {
  return t.columns(c.begin, c.begin + c.base.numel());
}

void scale(Tape& t, const LengthChange& c, const Tensor& whole) {
  kernels::scale_lengths(
      t.queue(), {.y = columns_of(c, whole), .base = c.base, .norm = c.norm, .change = t.value(c.change)});
}

}  // namespace

Var change_lengths(Tape& t, Var y, std::span<const LengthChange> changes) {
  if (changes.empty()) return y;
  require(changes.size() <= most_stacked_weights, "change_lengths", "at most {} changes, got {}",
          most_stacked_weights, changes.size());
  Changes all;
  for (const LengthChange& c : changes) all.of[all.count++] = c;
  const Tensor out = t.value(y);
  for (const LengthChange& c : changes) scale(t, c, out);
  // Whoever comes next may work in place, as positions and biases do.
  Tensor kept;
  if (std::any_of(changes.begin(), changes.end(),
                  [&](const LengthChange& c) { return t.needs_grad(c.change); })) {
    kept = t.alloc(out.shape, out.dtype);
    kernels::copy(t.queue(), {.y = kept, .x = out});
  }
  const auto& o = all.of;
  return t.record("change_lengths", out, {y, o[0].change, o[1].change, o[2].change, o[3].change},
                  [=, &t](Tensor dy) {
                    for (size_t i = 0; i < all.count; ++i) {
                      const LengthChange& c = all.of[i];
                      if (!t.needs_grad(c.change)) continue;
                      kernels::length_gradient(t.queue(), {.dchange = t.grad(c.change),
                                                           .dy = columns_of(c, dy),
                                                           .y = columns_of(c, kept),
                                                           .base = c.base,
                                                           .change = t.value(c.change)});
                    }
                    if (!t.needs_grad(y)) return;
                    const Tensor dx = t.take_grad(y, dy);
                    for (size_t i = 0; i < all.count; ++i) scale(t, all.of[i], dx);
                  });
}

}  // namespace osprey
