#include "kernels/cuda/blas.h"

#include <cublasLt.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <unordered_map>

namespace osprey::cuda {

namespace {

std::string version() {
  const auto v = static_cast<int>(cublasLtGetVersion());
  return fmt::format("cuBLASLt {}.{}.{}", v / 10000, v / 100 % 100, v % 100);
}

std::string describe(const Gemm& g) {
  const auto part = [](const char* what, bool transposed, int64_t stride) {
    return fmt::format("{}{} by rows of {}", what, transposed ? "^T" : "", stride);
  };
  return fmt::format("{} x {} x {} (m n k), batch {}, {}{} to {}, {}, {}, c {}, d {}, beta {}", g.m, g.n, g.k,
                     g.batch, g.input == DType::u8 ? "E4M3" : name(g.input), g.a_scales ? " with scales" : "",
                     name(g.output), part("a", g.transpose_a, g.a_stride),
                     part("b", g.transpose_b, g.b_stride), g.c_stride, g.d_stride, g.beta);
}

void check(cublasStatus_t status, const char* what, const Gemm& g) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail("gemm", "{} of {} says {} ({}) to {}", what, version(), cublasLtGetStatusName(status),
       cublasLtGetStatusString(status), describe(g));
}

// cuBLASLt stores columns. What lies row-major in memory is its transpose there, so that
// d = op(a) op(b) is d^T = op(b)^T op(a)^T: b is the library's A, a its B, and each keeps its own
// transposition.
struct Plan {
  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t a, b, c, d;
  cublasLtMatmulHeuristicResult_t chosen;
  bool possible;  // has the library an algorithm?
  bool settled;   // is nothing left to be timed?

  /// In place the library wants one layout, not two that are equal.
  cublasLtMatrixLayout_t layout_of_c(const Gemm& g) { return g.c == g.d ? &d : &c; }
};

cudaDataType type_of(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : dtype == DType::u8 ? CUDA_R_8F_E4M3 : CUDA_R_32F;
}

struct Layout {
  DType dtype;
  int64_t rows, cols, stride;  // row-major, as it lies in memory
  int64_t batch, batch_stride;
};

void describe_layout(cublasLtMatrixLayoutOpaque_t* to, const Layout& l, const Gemm& g) {
  // The stride of a single row is arbitrary, and the library checks it.
  const int64_t stride = l.rows == 1 ? l.cols : l.stride;
  check(cublasLtMatrixLayoutInit(to, type_of(l.dtype), static_cast<uint64_t>(l.cols),
                                 static_cast<uint64_t>(l.rows), stride),
        "a matrix layout", g);
  if (l.batch == 1) return;
  const auto count = static_cast<int32_t>(l.batch);
  check(cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
        "a batch count", g);
  check(cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &l.batch_stride,
                                         sizeof l.batch_stride),
        "a batch stride", g);
}

// Scales of rows and columns: from cuBLAS 12.9 on, for Hopper alone.
#if CUBLAS_VERSION >= 120900
constexpr bool has_vectors_of_scales = true;
void set_scale_modes(Plan* plan, const Gemm& g) {
  const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  for (const auto attribute : {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE})
    check(cublasLtMatmulDescSetAttribute(&plan->product, attribute, &mode, sizeof mode), "a mode of scales",
          g);
}
#else
constexpr bool has_vectors_of_scales = false;
void set_scale_modes(Plan*, const Gemm&) {}
#endif

/// Where the scales lie, which differs from call to call. The library's A is our b.
void set_scales(Plan* plan, const Gemm& g) {
  check(cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &g.b_scales,
                                       sizeof g.b_scales),
        "scales", g);
  check(cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &g.a_scales,
                                       sizeof g.a_scales),
        "scales", g);
}

void describe_fp8(Plan* plan, const Gemm& g) {
  const auto fast = static_cast<int8_t>(g.fast_sums);
  check(cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast),
        "how sums are kept", g);
  if (!g.a_scales) return;
  set_scale_modes(plan, g);
  set_scales(plan, g);
}

void describe_product(Plan* plan, const Gemm& g) {
  // Without a fast variant in its name this compute type uses neither TF32 nor bf16 for f32 operands.
  check(cublasLtMatmulDescInit(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product", g);
  const cublasOperation_t ops[] = {g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                                   g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N};
  check(cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &ops[0], sizeof ops[0]),
        "a transposition", g);
  check(cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_TRANSB, &ops[1], sizeof ops[1]),
        "a transposition", g);
  if (g.input == DType::u8) describe_fp8(plan, g);
  describe_layout(
      &plan->a,
      {g.input, g.transpose_b ? g.n : g.k, g.transpose_b ? g.k : g.n, g.b_stride, g.batch, g.b_batch_stride},
      g);
  describe_layout(
      &plan->b,
      {g.input, g.transpose_a ? g.k : g.m, g.transpose_a ? g.m : g.k, g.a_stride, g.batch, g.a_batch_stride},
      g);
  describe_layout(&plan->c, {g.output, g.m, g.n, g.c_stride, g.batch, g.c_batch_stride}, g);
  describe_layout(&plan->d, {g.output, g.m, g.n, g.d_stride, g.batch, g.d_batch_stride}, g);
}

/// The largest power of two, up to 256, that divides an address.
uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address % 256 == 0 ? 256u : static_cast<uint32_t>(address & (~address + 1));
}

struct Preference {
  cublasLtMatmulPreferenceOpaque_t value;

  Preference(const Gemm& g) {
    check(cublasLtMatmulPreferenceInit(&value), "a preference", g);
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(Stream::gemm_workspace_bytes), g);
    // No reduction, or one in a kernel of its own over fp32 partial sums. Not in the output's dtype, which
    // would round twice, and not in place, in an order that blocks agree on as they run.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE), g);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.b), g);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.a), g);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g.c), g);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.d), g);
  }
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T v, const Gemm& g) {
    check(cublasLtMatmulPreferenceSetAttribute(&value, attribute, &v, sizeof v), "a preference", g);
  }
};

struct Candidates {
  std::array<cublasLtMatmulHeuristicResult_t, 8> all;
  int count = 0;
};

/// What the library proposes, fastest by its own estimate first, without what cannot run here; none where it
/// has no such product.
Candidates candidates(cublasLtHandle_t handle, Plan* plan, const Gemm& g) {
  Preference preference(g);
  Candidates c;
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &plan->product, &plan->a, &plan->b, plan->layout_of_c(g), &plan->d, &preference.value,
      static_cast<int>(c.all.size()), c.all.data(), &found);
  // What is said of FP8 products that a GPU or a version lacks; Blas::has() passes it on.
  if (g.input == DType::u8 &&
      (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE))
    return c;
  check(status, "the choice of an algorithm", g);
  for (int i = 0; i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& one = c.all[static_cast<size_t>(i)];
    if (one.state == CUBLAS_STATUS_SUCCESS &&
        one.workspaceSize <= static_cast<size_t>(Stream::gemm_workspace_bytes))
      c.all[static_cast<size_t>(c.count++)] = one;
  }
  return c;
}

// What distinguishes one plan from another. Not alpha and beta: they are arguments of the call.
using Key = std::array<int64_t, 13>;
struct HashKey {
  size_t operator()(const Key& key) const {
    uint64_t h = 1469598103934665603ull;
    for (int64_t v : key) h = (h ^ static_cast<uint64_t>(v)) * 1099511628211ull;
    return static_cast<size_t>(h ^ (h >> 29));
  }
};

Key key_of(const Gemm& g) {
  int64_t kind = static_cast<int64_t>(g.input) | static_cast<int64_t>(g.output) << 4 |
                 int64_t{g.transpose_a} << 8 | int64_t{g.transpose_b} << 9 | int64_t{g.c == g.d} << 10 |
                 int64_t{g.a_scales != nullptr} << 48 | int64_t{g.fast_sums} << 49;
  int shift = 11;
  for (const void* p : {g.a, g.b, g.c, static_cast<const void*>(g.d)}) {
    kind |= static_cast<int64_t>(alignment(p)) << shift;
    shift += 9;
  }
  const bool batched = g.batch > 1;
  return {kind,
          g.m,
          g.n,
          g.k,
          g.a_stride,
          g.b_stride,
          g.c_stride,
          g.d_stride,
          g.batch,
          batched ? g.a_batch_stride : 0,
          batched ? g.b_batch_stride : 0,
          batched ? g.c_batch_stride : 0,
          batched ? g.d_batch_stride : 0};
}

bool autotune_wanted() {
  const char* text = std::getenv("OSPREY_GEMM_AUTOTUNE");
  return text && std::string_view(text) == "1";
}

struct TimedEvent {
  cudaEvent_t event;
  TimedEvent() { cuda::check(cudaEventCreate(&event), "cudaEventCreate"); }
  ~TimedEvent() { cudaEventDestroy(event); }
};

}  // namespace

struct Blas::State {
  explicit State(Stream& s) : stream(s) {
    const cublasStatus_t status = cublasLtCreate(&handle);
    require(status == CUBLAS_STATUS_SUCCESS, "gemm", "{} cannot be used: {}", version(),
            cublasLtGetStatusString(status));
  }
  ~State() { cublasLtDestroy(handle); }

  Plan& find(const Gemm& g) {
    const Key key = key_of(g);
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
    constexpr size_t most = 4096;  // generation asks for ever new lengths
    if (plans.size() >= most) plans.clear();
    Plan plan{};
    describe_product(&plan, g);
    const Candidates proposed = candidates(handle, &plan, g);
    plan.possible = proposed.count > 0;
    if (plan.possible) plan.chosen = proposed.all[0];
    plan.settled = !autotune;
    return plans.emplace(key, plan).first->second;
  }

  void run(Plan& plan, const cublasLtMatmulHeuristicResult_t& how, const Gemm& g) {
    check(cublasLtMatmul(handle, &plan.product, &g.alpha, g.b, &plan.a, g.a, &plan.b, &g.beta, g.c,
                         plan.layout_of_c(g), g.d, &plan.d, &how.algo, stream.gemm_workspace(),
                         how.workspaceSize, stream.handle()),
          "the product", g);
  }

  float milliseconds(Plan& plan, const cublasLtMatmulHeuristicResult_t& how, const Gemm& g) {
    TimedEvent begin, end;
    run(plan, how, g);  // loads the code
    float best = std::numeric_limits<float>::max();
    for (int round = 0; round < 4; ++round) {
      cuda::check(cudaEventRecord(begin.event, stream.handle()), "cudaEventRecord");
      run(plan, how, g);
      cuda::check(cudaEventRecord(end.event, stream.handle()), "cudaEventRecord");
      cuda::check(cudaEventSynchronize(end.event), "timing products");
      float ms = 0;
      cuda::check(cudaEventElapsedTime(&ms, begin.event, end.event), "cudaEventElapsedTime");
      best = std::min(best, ms);
    }
    return best;
  }

  /// Runs all candidates into d, which the call itself overwrites afterwards. A product that adds to d waits
  /// for one of the same shape that does not; so does one that is being captured.
  void settle(Plan& plan, const Gemm& g) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    cuda::check(cudaStreamIsCapturing(stream.handle(), &capturing), "cudaStreamIsCapturing");
    if (capturing != cudaStreamCaptureStatusNone || (g.beta != 0 && g.c == g.d)) return;
    const Candidates c = candidates(handle, &plan, g);
    float best = std::numeric_limits<float>::max();
    for (int i = 0; i < c.count; ++i) {
      const cublasLtMatmulHeuristicResult_t& one = c.all[static_cast<size_t>(i)];
      const float ms = milliseconds(plan, one, g);
      if (ms >= best) continue;
      best = ms;
      plan.chosen = one;
    }
    plan.settled = true;
  }

  Stream& stream;
  cublasLtHandle_t handle = nullptr;
  const bool autotune = autotune_wanted();
  std::unordered_map<Key, Plan, HashKey> plans;
};

Blas::Blas(Stream& stream) : state_(std::make_unique<State>(stream)) {}
Blas::~Blas() = default;

std::string Blas::label() const { return version(); }

namespace {

/// With c spelled out.
Gemm completed(const Gemm& gemm) {
  Gemm g = gemm;
  if (!g.c || g.c == g.d) {
    g.c = g.d;
    g.c_stride = g.d_stride;
    g.c_batch_stride = g.d_batch_stride;
  }
  return g;
}

}  // namespace

void Blas::gemm(const Gemm& gemm) {
  if (gemm.m == 0 || gemm.n == 0 || gemm.batch == 0) return;
  require(gemm.k > 0, "gemm", "the inner dimension is empty: {}", describe(gemm));
  require(gemm.input != DType::f32 || gemm.output == DType::f32, "gemm", "f32 operands give f32: {}",
          describe(gemm));
  const Gemm g = completed(gemm);
  Plan& plan = state_->find(g);
  require(plan.possible, "gemm", "{} has no algorithm for {}", version(), describe(g));
  if (g.a_scales) set_scales(&plan, g);
  if (!plan.settled) state_->settle(plan, g);
  state_->run(plan, plan.chosen, g);
}

bool Blas::has(const Gemm& gemm) {
  const bool vectors =
      has_vectors_of_scales && cublasLtGetVersion() >= 120900;  // here, and when it was built
  if (gemm.a_scales && (!vectors || state_->stream.properties().major != 9)) return false;
  return state_->find(completed(gemm)).possible;
}

}  // namespace osprey::cuda
