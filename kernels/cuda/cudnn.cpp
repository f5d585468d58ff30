#include "kernels/cuda/cudnn.h"

#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING  // libcudnn is loaded when it is first wanted; nothing links it
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <cmath>
#include <compare>
#include <cstdio>
#include <map>
#include <unordered_map>

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // where cudnn-frontend looks functions of cuDNN up
}

namespace osprey::cuda {

namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;

/// One attention as cuDNN sees it; what a plan depends on.
struct Problem {
  int64_t batch, tokens, heads, kv_heads, head_size;
  int64_t window;  // keys that a row sees, itself included; 0: all before it
  float scale;
  // From row to row: q, k, v and o may be columns of a fused buffer.
  int64_t q_stride, k_stride, v_stride, o_stride;
  int64_t dy_stride = 0, dq_stride = 0, dk_stride = 0, dv_stride = 0;  // 0: forward

  auto operator<=>(const Problem&) const = default;
  bool forward() const { return dq_stride == 0; }
  int64_t heads_per_group() const { return heads / kv_heads; }
  std::string str() const {
    return fmt::format("attention {} (B {}, T {}, heads {}, kv heads {}, head size {}{})",
                       forward() ? "forward" : "backward", batch, tokens, heads, kv_heads, head_size,
                       window > 0 ? fmt::format(", window {}", window) : "");
  }
};

enum Id : int64_t { id_q = 1, id_k, id_v, id_o, id_lse, id_dy, id_dq, id_dk, id_dv };

/// What one call computes: whole sequences, or some kv heads (with their query heads) of one.
struct Slice {
  int64_t sequences, kv_heads;
  int64_t heads(const Problem& p) const { return sequences * kv_heads * p.heads_per_group(); }
};

/// The largest divisor of n below d.
int64_t divisor_below(int64_t n, int64_t d) {
  do --d;
  while (n % d != 0);
  return d;
}

/// The next smaller slice that divides the problem; false when there is none.
bool shrink(Slice& s, const Problem& p) {
  if (s.sequences > 1)
    s.sequences = divisor_below(p.batch, s.sequences);
  else if (s.kv_heads > 1)
    s.kv_heads = divisor_below(p.kv_heads, s.kv_heads);
  else
    return false;
  return true;
}

struct Plan {
  std::unique_ptr<Graph> graph;  // null: cuDNN does not take this problem
  Slice slice{};
  int64_t workspace_bytes = 0;
  std::unordered_map<int64_t, void*> pointers;  // kept for its memory
};

/// Shape and strides of heads in rows: (b, h, t, d) lies at (b T + t) stride + h D + d.
Tensor_attributes& head_rows(Tensor_attributes& t, const Problem& p, const Slice& s, int64_t heads_per_group,
                             int64_t stride) {
  return t.set_dim({s.sequences, s.kv_heads * heads_per_group, p.tokens, p.head_size})
      .set_stride({p.tokens * stride, p.head_size, stride, 1});
}

/// cuDNN's "stats" are what we call lse: natural logarithm, (B, H, T) f32. Below 9.26 it insists on strides
/// as of a dense tensor, even where one sequence makes the outermost meaningless.
Tensor_attributes& lse_rows(Tensor_attributes& t, const Problem& p, const Slice& s) {
  const int64_t heads = s.kv_heads * p.heads_per_group();
  return t.set_data_type(fe::DataType_t::FLOAT)
      .set_dim({s.sequences, heads, p.tokens, 1})
      .set_stride({heads * p.tokens, p.tokens, 1, 1});
}

/// The part of a graph that both directions share.
struct Inputs {
  std::unique_ptr<Graph> graph = std::make_unique<Graph>();
  std::shared_ptr<Tensor_attributes> q, k, v;

  Inputs(const Problem& p, const Slice& s) {
    graph->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    q = heads("q", id_q, p, s, p.heads_per_group(), p.q_stride);
    k = heads("k", id_k, p, s, 1, p.k_stride);
    v = heads("v", id_v, p, s, 1, p.v_stride);
  }
  std::shared_ptr<Tensor_attributes> heads(const char* name, Id id, const Problem& p, const Slice& s,
                                           int64_t heads_per_group, int64_t stride) {
    Tensor_attributes t;
    t.set_name(name).set_uid(id);
    return graph->tensor(head_rows(t, p, s, heads_per_group, stride));
  }
};

/// Causal, within a window where there is one: cuDNN too counts the row itself.
template <class Attributes>
Attributes masked(Attributes attributes, const Problem& p) {
  attributes.set_attn_scale(p.scale)
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0);
  if (p.window > 0) attributes.set_diagonal_band_left_bound(p.window);
  return attributes;
}

std::unique_ptr<Graph> forward_graph(const Problem& p, const Slice& s) {
  Inputs in(p, s);
  const auto options = masked(fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true), p);
  const auto [o, lse] = in.graph->sdpa(in.q, in.k, in.v, options);
  head_rows(o->set_output(true).set_uid(id_o), p, s, p.heads_per_group(), p.o_stride);
  lse_rows(lse->set_output(true).set_uid(id_lse), p, s);
  return std::move(in.graph);
}

std::unique_ptr<Graph> backward_graph(const Problem& p, const Slice& s) {
  Inputs in(p, s);
  const auto o = in.heads("o", id_o, p, s, p.heads_per_group(), p.o_stride);
  const auto dy = in.heads("dy", id_dy, p, s, p.heads_per_group(), p.dy_stride);
  Tensor_attributes stats;
  stats.set_name("lse").set_uid(id_lse);
  const auto lse = in.graph->tensor(lse_rows(stats, p, s));
  const auto options = masked(fe::graph::SDPA_backward_attributes()
                                  .set_name("attention backward")
                                  .set_deterministic_algorithm(true),  // else dq is summed in any order
                              p);
  const auto [dq, dk, dv] = in.graph->sdpa_backward(in.q, in.k, in.v, o, dy, lse, options);
  head_rows(dq->set_output(true).set_uid(id_dq), p, s, p.heads_per_group(), p.dq_stride);
  head_rows(dk->set_output(true).set_uid(id_dk), p, s, 1, p.dk_stride);
  head_rows(dv->set_output(true).set_uid(id_dv), p, s, 1, p.dv_stride);
  return std::move(in.graph);
}

/// Codes that say "not this graph on this GPU"; all others are mistakes or a GPU in trouble.
bool is_refusal(fe::error_code_t code) {
  using enum fe::error_code_t;
  return code == GRAPH_NOT_SUPPORTED || code == UNSUPPORTED_GRAPH_FORMAT || code == HEURISTIC_QUERY_FAILED ||
         code == GRAPH_EXECUTION_PLAN_CREATION_FAILED || code == CUDNN_BACKEND_API_FAILED;
}

/// cudnn-frontend returns most errors and throws some.
template <class Call>
fe::error_t attempt(const Call& call) {
  try {
    return call();
  } catch (const std::exception& e) {
    return {fe::error_code_t::CUDNN_BACKEND_API_FAILED, e.what()};
  }
}

/// cuDNN reports at length; the first line holds the reason.
std::string first_line(const std::string& text) {
  return text.substr(0, std::min(text.find('\n'), size_t{300}));
}

/// Loads the library, once in a process; says why it cannot be loaded, or nothing.
const std::string& why_not_loaded() {
  static const std::string why = [] {
    fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW);
    if (fe::cudnn_dlhandle == nullptr) return std::string(dlerror());
    int gpu = 0;
    try {
      (void)fe::detail::cuda_get_device(&gpu);  // cudnn-frontend wants a libcudart of its own
    } catch (const std::exception& e) {
      return std::string(e.what());
    }
    return std::string();
  }();
  return why;
}

/// What lies where in one operand of a call.
struct Operand {
  Id id;
  const void* data;
  int64_t sequence_bytes, kv_head_bytes;  // from one sequence, and from one kv head, to the next
};

Operand head_operand(Id id, const Tensor& t, const Problem& p, int64_t heads_per_group) {
  const int64_t bytes = size_bytes(DType::bf16);
  return {id, t.data, p.tokens * t.row_stride() * bytes, heads_per_group * p.head_size * bytes};
}
Operand lse_operand(const Tensor& t, const Problem& p) {
  const int64_t row_bytes = p.tokens * size_bytes(DType::f32);
  return {id_lse, t.data, p.heads * row_bytes, p.heads_per_group() * row_bytes};
}

/// What cuDNN leaves to our own kernel whatever the shape is.
/// - document_start: it knows padding and packed sequences whose lengths are the same in all heads, which
/// would
///   need sequences cut anew on the host, or a mask written as its "score modifier" in place of causal
///   masking.
/// - clip: nothing of ours fits between its softmax and the product with v.
/// - sink: its dsink is summed in no fixed order even in deterministic mode.
/// - gate: outside its graph, and its backward would want o as it was before the gate.
template <class Arguments>
bool expressible(const Arguments& a) {
  return a.q.dtype == DType::bf16 && !a.document_start.defined() && !a.clip && !a.sink.defined() &&
         !a.gate.defined();
}

/// It reads and writes 16 bytes at a time and does not check pointers; strides it checks itself.
bool aligned(std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors)
    if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) return false;
  return true;
}

template <class Arguments>
Problem problem_of(const Arguments& a) {
  return {.batch = a.batch,
          .tokens = a.q.rows() / a.batch,
          .heads = a.q.cols() / a.head_size,
          .kv_heads = a.k.cols() / a.head_size,
          .head_size = a.head_size,
          // A window of the whole sequence hides nothing.
          .window = a.window < a.q.rows() / a.batch ? a.window : 0,
          .scale = a.scale.value_or(1 / std::sqrt(static_cast<float>(a.head_size))),
          .q_stride = a.q.row_stride(),
          .k_stride = a.k.row_stride(),
          .v_stride = a.v.row_stride(),
          .o_stride = a.o.row_stride()};
}

}  // namespace

struct Cudnn::State {
  explicit State(Stream& s) : stream(s) {}

  Stream& stream;
  bool opened = false;
  std::string absent;
  cudnnHandle_t handle = nullptr;
  std::map<Problem, Plan> plans;

  bool open();
  Plan& plan(const Problem& p);
  std::string make_plan(const Problem& p, Plan& plan);
  void run(Plan& plan, const Problem& p, std::initializer_list<Operand> operands);
};

/// Opens cuDNN on this GPU when it is first wanted; false, and said once, where that is not possible.
bool Cudnn::State::open() {
  if (opened) return absent.empty();
  opened = true;
  absent = why_not_loaded();
  if (absent.empty()) {
    check(cudaSetDevice(stream.index()), "cudaSetDevice");
    const cudnnStatus_t status = fe::detail::create_handle(&handle);
    if (status == CUDNN_STATUS_SUCCESS)
      require(fe::detail::set_stream(handle, stream.handle()) == CUDNN_STATUS_SUCCESS, "cuda",
              "cuDNN does not take the stream of GPU {}", stream.index());
    else
      absent = fmt::format("cudnnCreate failed: {}", fe::detail::get_error_string(status));
  }
  if (absent.empty()) return true;
  std::fputs(fmt::format("cuDNN: {}; Osprey's own kernel computes all attention\n", absent).c_str(), stderr);
  return false;
}

/// Makes a plan whose working memory fits into the scratch of a stream; returns why there is none, or
/// nothing.
///
/// On Hopper the deterministic backward writes all of dP: 2 bytes for each score, the masked ones too. Where
/// that is too much the batch is cut into equal slices, as long as one slice has a block of 128 rows for each
/// multiprocessor. (From cuDNN 9.25 on, CUDNN_FRONTEND_ATTN_DP_WORKSPACE_LIMIT=0 chooses a slower algorithm
/// that needs no dP.)
std::string Cudnn::State::make_plan(const Problem& p, Plan& plan) {
  const int64_t blocks_a_head = (p.tokens + 127) / 128;
  Slice slice{p.batch, p.kv_heads};
  int64_t wanted_bytes = 0;  // by the whole problem
  double bytes_a_head = 0;
  do {
    const int64_t heads = slice.heads(p);
    if (bytes_a_head * static_cast<double>(heads) > static_cast<double>(Stream::scratch_bytes)) continue;
    const bool is_slice = wanted_bytes > 0;
    if (is_slice && heads * blocks_a_head < stream.properties().multiProcessorCount) break;
    if (is_slice && p.tokens % 4 != 0) break;  // its lse would not start at a multiple of 16 bytes
    std::unique_ptr<Graph> graph = p.forward() ? forward_graph(p, slice) : backward_graph(p, slice);
    const fe::error_t error = attempt([&] { return graph->build(handle, {fe::HeurMode_t::A}); });
    if (is_refusal(error.code)) return first_line(error.err_msg);
    require(error.code == fe::error_code_t::OK, "cuda", "cuDNN cannot plan {}: {}", p.str(),
            first_line(error.err_msg));
    const int64_t bytes = graph->get_workspace_size();
    if (bytes <= Stream::scratch_bytes) {
      plan.graph = std::move(graph);
      plan.slice = slice;
      plan.workspace_bytes = bytes;
      return "";
    }
    if (wanted_bytes == 0) wanted_bytes = bytes;
    bytes_a_head = static_cast<double>(bytes) / static_cast<double>(heads);
  } while (shrink(slice, p));
  return fmt::format(
      "it needs {} MiB of working memory where a stream has {}, and slices of it do not fill the GPU or are not aligned",
      (wanted_bytes >> 20) + 1, Stream::scratch_bytes >> 20);
}

/// The plan of a problem, made when it is first seen.
Plan& Cudnn::State::plan(const Problem& p) {
  const auto [at, is_new] = plans.try_emplace(p);
  if (is_new) {
    const std::string why = make_plan(p, at->second);
    if (!why.empty())
      std::fputs(
          fmt::format("cuDNN does not take {}: {}; Osprey's own kernel computes it\n", p.str(), why).c_str(),
          stderr);
  }
  return at->second;
}

void Cudnn::State::run(Plan& plan, const Problem& p, std::initializer_list<Operand> operands) {
  void* workspace = stream.scratch(plan.workspace_bytes);
  for (int64_t sequence = 0; sequence < p.batch; sequence += plan.slice.sequences)
    for (int64_t kv_head = 0; kv_head < p.kv_heads; kv_head += plan.slice.kv_heads) {
      for (const Operand& o : operands)
        plan.pointers[o.id] = const_cast<char*>(static_cast<const char*>(o.data)) +
                              sequence * o.sequence_bytes + kv_head * o.kv_head_bytes;
      const fe::error_t error =
          attempt([&] { return plan.graph->execute(handle, plan.pointers, workspace); });
      require(error.code == fe::error_code_t::OK, "cuda", "cuDNN failed in {}: {}", p.str(),
              first_line(error.err_msg));
    }
}

Cudnn::Cudnn(Stream& stream) : state_(std::make_unique<State>(stream)) {}

Cudnn::~Cudnn() {
  state_->plans.clear();
  if (state_->handle != nullptr) (void)fe::detail::destroy_handle(state_->handle);
}

std::string Cudnn::absent() const {
  state_->open();
  return state_->absent;
}

bool Cudnn::forward(const kernels::AttentionForward& a) {
  if (!expressible(a) || !aligned({a.o, a.lse, a.q, a.k, a.v}) || !state_->open()) return false;
  const Problem p = problem_of(a);
  // Only what backward() can take as well, so that one implementation computes both: gradients are laid out
  // like what they are gradients of.
  Problem backward = p;
  backward.dy_stride = p.o_stride;
  backward.dq_stride = p.q_stride;
  backward.dk_stride = p.k_stride;
  backward.dv_stride = p.v_stride;
  Plan& plan = state_->plan(p);
  if (!plan.graph || !state_->plan(backward).graph) return false;
  state_->run(plan, p,
              {head_operand(id_q, a.q, p, p.heads_per_group()), head_operand(id_k, a.k, p, 1),
               head_operand(id_v, a.v, p, 1), head_operand(id_o, a.o, p, p.heads_per_group()),
               lse_operand(a.lse, p)});
  return true;
}

bool Cudnn::backward(const kernels::AttentionBackward& a) {
  // It writes all three gradients and adds to none.
  if (!a.dq || !a.dk || !a.dv || a.dq.add || a.dk.add || a.dv.add) return false;
  if (!expressible(a) || !aligned({a.o, a.lse, a.q, a.k, a.v, a.dy, a.dq.tensor, a.dk.tensor, a.dv.tensor}) ||
      !state_->open())
    return false;
  Problem p = problem_of(a);
  p.dy_stride = a.dy.row_stride();
  p.dq_stride = a.dq.tensor.row_stride();
  p.dk_stride = a.dk.tensor.row_stride();
  p.dv_stride = a.dv.tensor.row_stride();
  Plan& plan = state_->plan(p);
  if (!plan.graph) return false;
  state_->run(plan, p,
              {head_operand(id_q, a.q, p, p.heads_per_group()), head_operand(id_k, a.k, p, 1),
               head_operand(id_v, a.v, p, 1), head_operand(id_o, a.o, p, p.heads_per_group()),
               lse_operand(a.lse, p), head_operand(id_dy, a.dy, p, p.heads_per_group()),
               head_operand(id_dq, a.dq.tensor, p, p.heads_per_group()),
               head_operand(id_dk, a.dk.tensor, p, 1), head_operand(id_dv, a.dv.tensor, p, 1)});
  return true;
}

}  // namespace osprey::cuda
