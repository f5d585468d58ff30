#include "framework/telemetry/first_token.h"

#include <cmath>
#include <vector>

#include "kernels/numerics/first_key.h"

namespace osprey {
namespace {

template <class T>
FirstTokenSums one_head(const FirstTokenArgs& a, int64_t b, int64_t h) {
  const int64_t D = a.head_size, q_stride = a.q.row_stride(), k_stride = a.k.row_stride();
  const T* q = a.q.as<T>() + b * a.tokens * q_stride + h * D;
  const T* k = a.k.as<T>() + b * a.tokens * k_stride + h / (a.heads / a.kv_heads) * D;
  const int32_t* starts =
      a.document_start.defined() ? a.document_start.as<int32_t>() + b * a.tokens : nullptr;
  const float* lse = a.lse.as<float>() + (b * a.heads + h) * a.tokens;
  FirstTokenSums s;
  for (int64_t i = 1; i < a.tokens; ++i) {
    const int64_t first = starts ? starts[i] : 0;
    if (first < 0 || first >= i || first_visible_key(i, first, a.window) != first) continue;
    double dot = 0;
    for (int64_t d = 0; d < D; ++d)
      dot += static_cast<double>(to_float(q[i * q_stride + d])) *
             static_cast<double>(to_float(k[first * k_stride + d]));
    const double p = std::exp(static_cast<double>(a.scale) * dot - static_cast<double>(lse[i]));
    if (std::isfinite(p)) {
      s.probability += p;
      ++s.queries;
    } else {
      ++s.nonfinite_queries;
    }
  }
  return s;
}

}  // namespace

void FirstTokenSums::merge(const FirstTokenSums& o) {
  probability += o.probability;
  queries += o.queries;
  nonfinite_queries += o.nonfinite_queries;
}

std::optional<double> FirstTokenSums::share() const {
  if (queries == 0) return {};
  return probability / static_cast<double>(queries);
}

FirstTokenSums first_token_share(const Queue& queue, const FirstTokenArgs& a) {
  const char* where = "first_token_share";
  require(a.kv_heads > 0 && a.heads % a.kv_heads == 0, where, "{} heads cannot share {} key heads", a.heads,
          a.kv_heads);
  const int64_t N = a.batch * a.tokens;
  require(a.q.rows() == N && a.q.cols() == a.heads * a.head_size, where, "q must be ({}, {}), got {}", N,
          a.heads * a.head_size, a.q.str());
  require(a.k.rows() == N && a.k.cols() == a.kv_heads * a.head_size, where, "k must be ({}, {}), got {}", N,
          a.kv_heads * a.head_size, a.k.str());
  require(a.q.dtype == a.k.dtype && a.q.dtype != DType::i32, where,
          "q and k must be both bf16 or both f32, got {} and {}", a.q.str(), a.k.str());
  require(a.lse.numel() == N * a.heads && a.lse.contiguous() && a.lse.dtype == DType::f32, where,
          "lse must be f32 ({}, {}, {}), got {}", a.batch, a.heads, a.tokens, a.lse.str());
  require(!a.document_start.defined() || (a.document_start.numel() == N && a.document_start.contiguous()),
          where, "document_start must be i32 ({}, {}), got {}", a.batch, a.tokens, a.document_start.str());
  if (queue.meta() || a.q.data == nullptr) return {};
  std::vector<FirstTokenSums> parts(static_cast<size_t>(a.batch * a.heads));
  parallel_for(queue, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      parts[static_cast<size_t>(p)] = a.q.dtype == DType::bf16 ? one_head<bf16>(a, p / a.heads, p % a.heads)
                                                               : one_head<float>(a, p / a.heads, p % a.heads);
  });
  FirstTokenSums total;
  for (const FirstTokenSums& p : parts) total.merge(p);
  return total;
}

}  // namespace osprey
