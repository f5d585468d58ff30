#include "framework/eval/round_to_nearest.h"

#include <cstdio>

#include "framework/config/glob.h"
#include "kernels/device.h"

namespace osprey {

bool is_block_linear(const std::string& parameter) {
  static const Glob attention("layers.*.attn.{q,k,v,o}.weight"), mlp("layers.*.mlp.{gate,up,down}.weight");
  return attention.matches(parameter) || mlp.matches(parameter);
}

IntegerFormat parse_integer_format(const std::string& text) {
  int weights = 0, activations = 0;
  char end = 0;
  const bool read = std::sscanf(text.c_str(), "w%2da%2d%c", &weights, &activations, &end) == 2;
  auto fits = [](int bits) { return bits == 16 || (2 <= bits && bits <= 8); };
  require(read && fits(weights) && fits(activations), "eval",
          "'{}' is no format; write w8a8, w4a16 or w4a4 (2 to 8 bits, or 16 to leave as it is)", text);
  IntegerFormat format;
  format.name = text;
  if (weights != 16) format.weight_bits = weights;
  if (activations != 16) format.activation_bits = activations;
  return format;
}

QuantizedScope::QuantizedScope(Tape& tape, ParamStore& params, const IntegerFormat& format,
                               kernels::ClipSearch clip)
    : tape_(tape), format_(format) {
  for (const auto& p : params.all()) {
    if (!format_.weight_bits || !is_block_linear(p->name)) continue;
    saved_.emplace_back(p.get(), std::vector<char>(static_cast<size_t>(p->value.bytes())));
    kernels::download(tape.queue(), saved_.back().second.data(), p->value);
    kernels::round_to_nearest(tape.queue(), {.y = p->value,
                                             .x = p->value,
                                             .bits = *format_.weight_bits,
                                             .grid = kernels::RowGrid::symmetric,
                                             .clip = clip});
    ++p->version;
  }
  if (format_.activation_bits) tape_.set_linear_input(this);
}

QuantizedScope::~QuantizedScope() {
  if (format_.activation_bits) tape_.set_linear_input(nullptr);
  for (auto& [parameter, bytes] : saved_) {
    kernels::upload(tape_.queue(), parameter->value, bytes.data());
    ++parameter->version;
  }
}

Tensor QuantizedScope::linear_input(Tape& t, const std::string& weight, const Tensor& x) {
  if (!is_block_linear(weight)) return x;
  const Tensor y = t.alloc({x.rows(), x.cols()}, x.dtype);
  kernels::round_to_nearest(t.queue(), {.y = y,
                                        .x = x,
                                        .bits = *format_.activation_bits,
                                        .grid = kernels::RowGrid::asymmetric,
                                        .clip = kernels::ClipSearch::none});
  return y;
}

}  // namespace osprey
