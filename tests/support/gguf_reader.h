#pragma once
// A small reader of GGUF files, written from ggml's docs/gguf.md; shares no code with the writer.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace osprey::test {

struct GgufFile {
  struct Tensor {
    std::vector<uint64_t> dims;  // the fastest first, as in the file
    uint32_t type = 0;
    uint64_t offset = 0;
  };
  std::map<std::string, nlohmann::json> keys;
  std::map<std::string, Tensor> tensors;
  std::string text;
  uint64_t data_begin = 0;

  explicit GgufFile(std::string bytes) : text(std::move(bytes)) {
    if (take(4) != "GGUF" || number<uint32_t>() != 3) throw std::runtime_error("no GGUF 3");
    const auto tensor_count = number<uint64_t>(), key_count = number<uint64_t>();
    for (uint64_t i = 0; i < key_count; ++i) {
      const std::string key = string();
      if (!keys.emplace(key, value(number<uint32_t>())).second)
        throw std::runtime_error("a key twice: " + key);
    }
    for (uint64_t i = 0; i < tensor_count; ++i) {
      const std::string name = string();
      Tensor t;
      t.dims.resize(number<uint32_t>());
      for (uint64_t& d : t.dims) d = number<uint64_t>();
      t.type = number<uint32_t>();
      t.offset = number<uint64_t>();
      if (t.offset % 32 != 0) throw std::runtime_error("not aligned: " + name);
      tensors[name] = t;
    }
    data_begin = (at_ + 31) / 32 * 32;
  }

  /// The values of a tensor of type F32, F16, BF16, Q8_0 or MXFP4.
  std::vector<double> values(const std::string& name) const {
    const Tensor& t = tensors.at(name);
    uint64_t n = 1;
    for (const uint64_t d : t.dims) n *= d;
    const char* p = text.data() + data_begin + t.offset;
    const auto get = [&](auto& v) { std::memcpy(&v, p, sizeof(v)), p += sizeof(v); };
    std::vector<double> out;
    while (out.size() < n) {
      if (t.type == 0) {
        float v;
        get(v), out.push_back(v);
      } else if (t.type == 1) {
        uint16_t v;
        get(v), out.push_back(half(v));
      } else if (t.type == 30) {
        uint16_t v;
        get(v);
        const uint32_t bits = uint32_t{v} << 16;
        float f;
        std::memcpy(&f, &bits, 4), out.push_back(f);
      } else if (t.type == 8) {
        uint16_t d;
        get(d);
        for (int i = 0; i < 32; ++i) {
          int8_t q;
          get(q), out.push_back(half(d) * q);
        }
      } else if (t.type == 39) {
        uint8_t e, q[16];
        get(e), get(q);
        const double element[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
        const auto one = [&](int code) {
          return (code & 8 ? -1 : 1) * element[code & 7] * std::ldexp(1.0, e - 127);
        };
        for (int i = 0; i < 16; ++i) out.push_back(one(q[i] & 15));
        for (int i = 0; i < 16; ++i) out.push_back(one(q[i] >> 4));
      } else {
        throw std::runtime_error("unknown type");
      }
    }
    return out;
  }

 private:
  static double half(uint16_t h) {
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    const double magnitude = exponent == 31  ? INFINITY
                             : exponent == 0 ? std::ldexp(fraction, -24)
                                             : std::ldexp(1024 + fraction, exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
  }
  std::string take(uint64_t n) {
    if (n > text.size() - at_) throw std::runtime_error("truncated");
    at_ += n;
    return text.substr(at_ - n, n);
  }
  template <class T>
  T number() {
    T v;
    std::memcpy(&v, take(sizeof(T)).data(), sizeof(T));
    return v;
  }
  std::string string() { return take(number<uint64_t>()); }
  nlohmann::json value(uint32_t type) {
    switch (type) {
      case 4:
        return number<uint32_t>();
      case 5:
        return number<int32_t>();
      case 6:
        return number<float>();
      case 7:
        return number<uint8_t>() != 0;
      case 8:
        return string();
      case 9: {
        const auto of = number<uint32_t>();
        nlohmann::json list = nlohmann::json::array();
        for (auto n = number<uint64_t>(); n > 0; --n) list.push_back(value(of));
        return list;
      }
      default:
        throw std::runtime_error("unknown type of value");
    }
  }
  uint64_t at_ = 0;
};

}  // namespace osprey::test
