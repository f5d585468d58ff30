#include "launch/session.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "framework/checkpoint/checkpoint.h"
#include "framework/ops/pack_cache.h"
#include "framework/ops/quantized_weights.h"
#include "framework/parallel/nccl_comm.h"
#include "framework/telemetry/oscillation.h"
#include "launch/adapter_files.h"
#include "launch/packed_base.h"
#include "launch/together.h"
#include "models/hf/hub_model.h"
#include "models/make_model.h"

namespace osprey {

/// Evaluation and outlier measurements need a little that a training step does not.
static constexpr int64_t spare_bytes = int64_t{64} << 20;

SessionMemory SessionMemory::of(const std::vector<MemoryCategory>& planned) {
  SessionMemory memory;
  for (const MemoryCategory& c : planned) {
    if (c.name == "activations") memory.activation_bytes = c.bytes + spare_bytes;
    if (c.name == "activation gradients") memory.activation_gradient_bytes = c.bytes;
  }
  return memory;
}

Session::Session(const Recipe& recipe, Communicator& comm, const Queue& q, const SessionMemory& memory)
    : queue(q),
      world(comm),
      model(make_model(recipe.model, recipe.data.sequence_len)),
      activations("activations", q.device, memory.activation_bytes),
      pool("activation gradients", q.device),
      tape(q, activations, pool),
      recipe_(recipe) {
  if (queue.device.kind == DeviceKind::cuda) pool.reserve(memory.activation_gradient_bytes);
  if (!queue.meta() && several_gpus())
    device_world_ = make_nccl_comm(world, queue.device, {.timeout_s = recipe_.parallel.timeout_s});
  model->declare(params);
  schemes = declare_packed_base(recipe_, params);  // before adapters, which its patterns do not mean
  finetuning =
      std::make_unique<Finetuning>(recipe_.finetune, params, static_cast<uint64_t>(recipe_.run.seed));
  if (!schemes)
    schemes = std::make_unique<QuantSchemes>(recipe_.quant, params, static_cast<uint64_t>(recipe_.run.seed),
                                             recipe_.train.global_batch_tokens);
  optimizers = std::make_unique<OptimizerGroups>(recipe_.optim, params, recipe_.finetune);
  const bool brief = recipe_.train.updates == Updates::in_backward;
  if (brief)
    for (const auto& p : params.all())
      p->by_rows = p->by_rows && p->trainable && optimizers->of(*p).element_wise();
  params.materialize(queue.device, recipe_.train.precision,
                     brief ? ParamStore::Gradients::brief : ParamStore::Gradients::on, finetuning->places());
  finetuning->materialize(queue);
  schemes->materialize(queue);
  auto of = [this](const Parameter& p) -> const Optimizer& { return optimizers->of(p); };
  const std::vector<ShardParameter> sharded = shard_parameters(params, of);
  plan = make_shard_plan(sharded, params.buckets().size(), world.size(), recipe_.parallel);
  updater = std::make_unique<Updater>(
      queue, params, plan, sharded, world.rank(), of,
      recipe_.parallel.offload_optimizer ? Arena::Place::host : Arena::Place::device, recipe_.train.masters);
  if (std::any_of(recipe_.quant.begin(), recipe_.quant.end(), [](const auto& g) { return g.freeze; }))
    freezer = std::make_unique<WeightFreezer>(queue, params, *updater);
  require(!recipe_.parallel.offload_optimizer || queue.target() == DeviceKind::cuda,
          "parallel.offload_optimizer",
          "is for runs on GPUs, and this one is on the CPU; drop the key or set run.device: cuda");
  if (!queue.meta())
    reducer = std::make_unique<Reducer>(device_world_ ? *device_world_ : world, queue, plan, recipe_.parallel,
                                        reduce_buckets(params));
  finetuning->attach({.plan = &plan,
                      .updater = updater.get(),
                      .reducer = reducer.get(),
                      .device_world = device_world_  ? device_world_.get()
                                      : queue.meta() ? nullptr
                                                     : &world});
}

void Session::initialize() {
  const uint64_t seed = static_cast<uint64_t>(recipe_.run.seed);
  schemes->activate(0);
  params.initialize(queue, seed);
  updater->initialize(seed);
  if (!recipe_.model_path.empty()) {
    HubModel(recipe_.model_path).load(queue, params);
    updater->take_masters();
  }
  if (!recipe_.finetune.adapter.empty())
    load_adapters(queue, recipe_, finetuning->adapters(), params, *updater);
}

void Session::trace() {
  require(queue.meta(), "session", "only a meta session is traced");
  const Shape shape{recipe_.train.micro_batch_size, recipe_.data.sequence_len};
  auto tokens = [&] { return make_tensor(nullptr, shape, DType::i32, queue.device); };
  BatchView batch{.tokens = tokens(), .targets = tokens(), .positions = tokens(), .document_start = {}};
  if (recipe_.data.documents_apart()) batch.document_start = tokens();
  tape.set_mode(Tape::Mode::train);
  tape.set_recompute(recipe_.train.recompute);
  const Tensor sums = make_tensor(nullptr, {2}, DType::f64, queue.device);
  finetuning->prepare(0);
  for (const int64_t step : schemes->changes()) {
    schemes->activate(step);
    tape.backward(model->loss(tape, batch, {.grad_scale = {}, .sums = sums}));
    tape.reset();
    if (freezer) freezer->hold(make_tensor(nullptr, {1}, DType::f64, queue.device));
  }
}

/// Host memory in which a save keeps its copies: what this rank saves, and on rank 0 the parameters.
static int64_t checkpoint_bytes(const Recipe& recipe, const Session& s) {
  if (!recipe.checkpoint.every_steps && !recipe.checkpoint.save_final) return 0;
  std::vector<NamedPiece> pieces;
  for (const Updater::Group& g : s.updater->groups()) {
    const bool shared = recipe.parallel.zero == 0 && g.optimizer->granularity() == ShardGranularity::element;
    if (shared && s.world.rank() != 0) continue;  // rank 0 saves what all ranks hold
    for (NamedPiece& piece : named_pieces(g.pieces, g.states)) pieces.push_back(std::move(piece));
  }
  std::vector<NamedValue> values;
  if (s.world.rank() == 0) {
    values = named_values(s.params);
    for (NamedPiece& basis : s.finetuning->pieces()) pieces.push_back(std::move(basis));
  }
  return Checkpointer::snapshot_bytes(pieces, values);
}

std::vector<MemoryCategory> Session::memory(const Trainer* trainer) const {
  std::vector<MemoryCategory> all{
      {"parameters", params.value_bytes()},
      {"gradients", params.gradient_bytes()},
      {"optimizer state", updater->state_bytes(),
       recipe_.parallel.offload_optimizer ? MemoryCategory::Where::host : MemoryCategory::Where::device},
      {"optimizer workspace", updater->workspace_bytes()},
      {"bases of subspaces", finetuning->basis_bytes()},
      {"activations", activations.high_water_bytes()},
      {"activation gradients", pool.high_water_bytes()},
      {"packed weights", packed_bytes(params) + quantized_bytes(params) + schemes->votes_bytes()},
      {"checkpoint copies", checkpoint_bytes(recipe_, *this), MemoryCategory::Where::host},
  };
  if (const auto followed = followed_weights(); !followed.empty())
    all.push_back({"oscillation", OscillationTracker::bytes(followed)});
  if (freezer) all.push_back({"frozen weights", freezer->bytes()});
  if (trainer) all.push_back({"token buffers", trainer->batch_bytes()});
  if (queue.target() == DeviceKind::cuda)
    all.push_back({"GPU workspace", kernels::stream_workspace_bytes(DeviceKind::cuda)});
  if (several_gpus()) all.push_back({"NCCL scratch", NcclOptions{}.scratch_bytes});
  return all;
}

std::vector<WeightInFormat> Session::followed_weights() const {
  const bool wanted = recipe_.telemetry.quantization && recipe_.telemetry.oscillation;
  return wanted && world.rank() == 0 ? schemes->weights_of(4) : std::vector<WeightInFormat>{};
}

int64_t without_embedding(const ParamStore& params) {
  int64_t n = params.numel();
  for (const auto& p : params.all())
    if (p->name == "embed.weight") n -= p->shape.numel();
  return n;
}

TrainerParts Session::parts() {
  TrainerParts p;
  p.queue = queue;
  p.model = model.get();
  p.params = &params;
  p.tape = &tape;
  p.world = &world;
  p.device_world = device_world_ ? device_world_.get() : &world;
  using Graphs = TrainSpec::Graphs;
  const bool gpu = queue.target() == DeviceKind::cuda, graphs = recipe_.train.cuda_graphs != Graphs::off;
  require(gpu || recipe_.train.cuda_graphs != Graphs::on, "train.cuda_graphs",
          "there are no CUDA graphs on the CPU; drop the key or set run.device: cuda");
  if (gpu && graphs && (world.size() == 1 || recipe_.train.cuda_graphs == Graphs::on))
    p.graphs = TrainerParts::Graphs::on;
  p.plan = &plan;
  p.reducer = reducer.get();
  p.updater = updater.get();
  p.documents =
      recipe_.data.documents_apart() ? TrainerParts::Documents::apart : TrainerParts::Documents::joined;
  p.freezer = freezer.get();
  p.sequence_len = recipe_.data.sequence_len;
  p.seed = static_cast<uint64_t>(recipe_.run.seed);
  const Schedule schedule(recipe_.schedule, recipe_.train.total_steps(), recipe_.train.global_batch_tokens);
  p.schedule = [=](int64_t step) { return schedule.multiplier(step); };
  return p;
}

int threads_for_rank(const RunSpec& spec, Communicator& world) {
  cpu_set_t set;
  CPU_ZERO(&set);
  require(sched_getaffinity(0, sizeof set, &set) == 0, "threads",
          "the kernel does not say which cores are ours");
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  std::string mine = host;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) mine += fmt::format(" {}", cpu);
  int sharing = 0;
  for (const std::string& other : world.gather_strings(mine)) sharing += other == mine;
  if (spec.threads) return static_cast<int>(*spec.threads);
  // OpenMP read it when the process started, and says so where it is no number; then it does not count here.
  if (const char* wish = std::getenv("OMP_NUM_THREADS"); wish && std::atoi(wish) > 0)
    return std::min(omp_get_max_threads(), 1024);
  return std::max(1, CPU_COUNT(&set) / std::max(1, sharing));
}

Device device_for(const RunSpec& spec, Communicator& world) {
  using Choice = RunSpec::DeviceChoice;
  if (spec.device == Choice::cpu) return {DeviceKind::cpu, 0};
  const int gpus = kernels::gpu_count();
  const auto counts = world.gather_strings(gpus > 0 ? "some" : "none");
  Device device{DeviceKind::cpu, 0};
  together(world, [&] {
    const size_t with = static_cast<size_t>(std::count(counts.begin(), counts.end(), "some"));
    if (spec.device == Choice::automatic) {
      if (with == 0) return;
      require(
          with == counts.size(), "run.device",
          "{} of {} ranks see a GPU, the others none; set run.device to cpu or cuda, or start ranks where GPUs are",
          with, counts.size());
    }
    require(gpus > 0, "run.device", "cuda is asked for, but {}", kernels::why_no_gpu());
    require(world.local_size() <= gpus, "run.device",
            "{} ranks on this host share {} GPU{}; start at most one rank a GPU (mpirun -np {}), or set "
            "CUDA_VISIBLE_DEVICES to more of them",
            world.local_size(), gpus, gpus == 1 ? "" : "s", gpus);
    device = {DeviceKind::cuda, world.local_rank()};
  });
  return device;
}

DeviceKind planned_device(const RunSpec& spec) {
  using Choice = RunSpec::DeviceChoice;
  const bool gpu =
      spec.device == Choice::cuda || (spec.device == Choice::automatic && kernels::gpu_count() > 0);
  return gpu ? DeviceKind::cuda : DeviceKind::cpu;
}

namespace {

class PlanningComm final : public Communicator {
 public:
  PlanningComm(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string kind() const override { return "plan"; }
  void all_reduce(Tensor, DType) override { nothing(); }
  void reduce_scatter(Tensor, std::span<const Piece>, DType) override { nothing(); }
  void all_gather(Tensor, std::span<const Piece>) override { nothing(); }
  void broadcast(Tensor, int) override { nothing(); }
  void barrier() override { nothing(); }
  void max(std::span<double>) override { nothing(); }
  void sum(std::span<double>) override { nothing(); }
  std::vector<std::string> gather_strings(const std::string&) override { nothing(); }
  std::unique_ptr<Communicator> duplicate() override { nothing(); }
  void abort(const std::string& why) override { fail("plan", "{}", why); }

 private:
  [[noreturn]] static void nothing() { fail("plan", "a plan sends nothing"); }
  int rank_, size_;
};

}  // namespace

std::unique_ptr<Communicator> make_planning_comm(int rank, int size) {
  require(0 <= rank && rank < size, "plan", "rank {} of {}", rank, size);
  return std::make_unique<PlanningComm>(rank, size);
}

std::vector<MemoryCategory> plan_memory(const Recipe& recipe, int rank, int ranks, int threads,
                                        DeviceKind kind) {
  const auto comm = make_planning_comm(rank, ranks);
  const Queue queue{.device = {DeviceKind::meta, 0}, .threads = threads, .planned = kind};
  Session session(recipe, *comm, queue, {});
  session.trace();
  TrainerParts parts = session.parts();
  const Trainer trainer(recipe.train, parts);
  return session.memory(&trainer);
}

}  // namespace osprey
