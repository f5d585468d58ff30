#include <fmt/format.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "framework/files/file.h"
#include "framework/files/json.h"
#include "framework/parallel/agree.h"
#include "framework/scaling/record_hook.h"
#include "framework/telemetry/gemm_rate.h"
#include "framework/telemetry/run_watch.h"
#include "framework/telemetry/step_trace.h"
#include "kernels/cpu/isa.h"
#include "kernels/device.h"
#include "launch/checkpoints.h"
#include "launch/commands/command.h"
#include "launch/data_source.h"
#include "launch/memory_check.h"
#include "launch/packed_base.h"
#include "launch/scaling_record.h"
#include "launch/session.h"
#include "launch/together.h"

namespace osprey {

namespace {

using Options = RecipeOptions;

void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { Trainer::request_stop(); };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

/// What is allowed but worth a line before the run starts.
void print_notes(const Recipe& recipe, const Session& session, const RunData& data) {
  for (const std::string& line : data.notes) fmt::print(stderr, "{}\n", line);
  for (const std::string& warning : session.optimizers->warnings()) fmt::print(stderr, "note: {}\n", warning);
  if (const std::string packed = packed_base_note(session.params); !packed.empty())
    fmt::print(stderr, "{}\n", packed);
  else
    for (const std::string& line : session.schemes->timeline(recipe.train.total_steps()))
      fmt::print(stderr, "{}\n", line);
  if (session.queue.device.kind == DeviceKind::cuda) {
    const kernels::GpuInfo gpu = kernels::gpu_info(session.queue.device.index);
    fmt::print(stderr, "on {} GPU{}: {} (sm_{}), driver for CUDA {}\n", session.world.size(),
               session.world.size() == 1 ? "" : "s", gpu.name, gpu.compute_capability, gpu.driver);
    if (const std::string why = kernels::why_no_cudnn(session.queue); !why.empty())
      fmt::print(stderr, "note: cuDNN computes no attention here: {}\n", why);
  } else if (recipe.train.precision == DType::bf16 && !cpu::has_bf16_instructions())
    fmt::print(stderr,
               "note: this CPU ({}) has no bf16 products; they run in fp32 on bf16-rounded operands\n",
               cpu::name(cpu::active_isa()));
}

/// The hook that writes down what happens. Collective.
std::unique_ptr<RunWatch> watch_run(const Recipe& recipe, const Session& session, const Trainer& trainer,
                                    Communicator& world, std::optional<int64_t> resumed) {
  const std::filesystem::path directory = run_directory(recipe);
  RunWatchOptions options;
  options.directory = directory;
  options.name = recipe.run.name;
  options.version = OSPREY_VERSION;
  options.isa = cpu::name(cpu::active_isa());
  if (session.queue.device.kind == DeviceKind::cuda)
    options.gpu = kernels::gpu_info(session.queue.device.index).name;
  options.telemetry = recipe.telemetry;
  options.resumed_step = resumed;
  options.followed_weights = session.followed_weights();
  options.learning_rate = recipe.optim.front().learning_rate;
  options.gemm_flops_per_second = measure_gemm_rate(session.queue, world, 0.25);
  options.memory_bytes = [&] {
    std::map<std::string, int64_t> bytes;
    for (const MemoryCategory& c : session.memory(&trainer)) bytes[c.name] = c.bytes;
    return bytes;
  };
  std::unique_ptr<RunWatch> watch;
  together(world, [&] {
    if (world.rank() == 0) replace_file(directory / "recipe.yaml", dump_recipe(recipe));
    watch = std::make_unique<RunWatch>(options, world, session.queue);
  });
  return watch;
}

/// Which products are rotated from now on: a line for people, and one for each layer in metrics.jsonl.
/// Entries belong to the first step that computes so: when a run goes on from the checkpoint before, they
/// come again.
void write_decision(RunWatch& watch, int64_t step, int64_t tokens, std::span<const LayerPatterns> layers) {
  int64_t forward = 0, dw = 0, dx = 0, x_rows = 0, dy_rows = 0;
  for (const LayerPatterns& l : layers) {
    forward += l.rotated.forward, dw += l.rotated.dw, dx += l.rotated.dx;
    x_rows += l.extracted().forward, dy_rows += l.extracted().dx;
    MetricsEntry e("rotations", step + 1, tokens);
    e.add("weight", l.weight);
    e.add("x", name(majority(l.x))).add("w", name(majority(l.w))).add("dy", name(majority(l.dy)));
    e.add("forward", int{l.rotated.forward}).add("dw", int{l.rotated.dw}).add("dx", int{l.rotated.dx});
    watch.write(e);
  }
  watch.note(fmt::format(
      "calibrated: from step {} on, of {} linear layers {} are rotated forward, {} for weight "
      "gradients, {} for input gradients; most outliers are in rows in {} inputs and {} gradients of outputs",
      step, layers.size(), forward, dw, dx, x_rows, dy_rows));
}

/// Which layers train from now on. As with decisions, a run that goes on writes them again.
void write_turn(RunWatch& watch, int64_t step, int64_t tokens, const std::vector<ActiveLayer>& layers) {
  std::string text;
  for (const ActiveLayer& l : layers) text += fmt::format("{}{}", text.empty() ? "" : " ", l.layer);
  watch.write(MetricsEntry("turn", step + 1, tokens).add("layers", text));
  watch.note(fmt::format("from step {} on, of the layers {} train{}", step + 1, text,
                         layers.size() == 1 ? "s" : ""));
}

/// Has the run that stands at `step` nothing left to do but to be recorded? Where summary.json does not tell
/// of its end (it was killed between the last checkpoint and that), it ends as any other. Errors: throws
/// where the recipe names a checkpoint beyond its end, which is none of this run. Collective.
bool has_ended(const Recipe& recipe, int64_t step, Communicator& world) {
  const int64_t steps = recipe.train.total_steps();
  if (step < steps) return false;
  require(
      step == steps || recipe.checkpoint.resume == "auto", "checkpoint",
      "checkpoint.resume is '{}', which stands at step {}, and this recipe ends at {}; give it more steps or "
      "an earlier checkpoint",
      recipe.checkpoint.resume, step, steps);
  const auto said = agree(world, [&]() -> std::string {
    if (world.rank() != 0 || step > steps) return "ended";
    try {
      const auto summary = read_json(run_directory(recipe) / "summary.json", 1 << 20, 8);
      const bool finished =
          summary.value("status", "") == "finished" && summary.value("step", int64_t{-1}) == step;
      return finished ? "ended" : "";
    } catch (const std::exception&) {
      return "";  // none, or not one that osprey train wrote
    }
  });
  if (said[0].empty()) return false;
  if (world.rank() == 0)
    fmt::print(
        stderr,
        "{} stands at step {}, and the recipe ends at {}: nothing is left to train; a longer run goes on, "
        "another run.name starts anew\n",
        run_directory(recipe).string(), step, steps);
  return true;
}

void train(const Options& options, Communicator& world) {
  Recipe recipe;
  RunData data;
  together(world, [&] { recipe = load_recipe(options.recipe, options.overrides, world.size()); });
  const int threads = threads_for_rank(recipe.run, world);
  const Device device = device_for(recipe.run, world);
  const auto open_all = [&] { together(world, [&] { data = open_data(recipe, threads); }); };
  if (recipe.train.epochs) open_all();  // the plan needs to know how many steps they are
  // The plan builds the same session on meta, so whatever is wrong with model or optimizers shows here.
  std::vector<MemoryCategory> planned;
  together(world, [&] { planned = plan_memory(recipe, world.rank(), world.size(), threads, device.kind); });
  require_memory(planned, device, world);
  kernels::OpenQueue open;
  together(world, [&] { open = kernels::open_queue(device, threads); });
  if (!data.train) open_all();
  const std::unique_ptr<RunLock> lock = lock_run(recipe, world);
  stop_on_signals();  // from here on a signal ends the run in order, be it after its first step
  // Not inside together(): it gives the reducer a communicator of its own, which is collective.
  Session session(recipe, world, open.queue, SessionMemory::of(planned));
  if (world.rank() == 0) print_notes(recipe, session, data);
  session.initialize();

  TrainSource train_source(*data.train, world);
  std::unique_ptr<ValidationSource> validation_source;
  TrainerParts parts = session.parts();
  parts.train = &train_source;
  if (data.validation) {
    validation_source = std::make_unique<ValidationSource>(*data.validation, world);
    parts.validation = validation_source.get();
    parts.validation_sequences = data.validation->rows();
  }
  Trainer trainer(recipe.train, parts);
  RecordHook record(scaling_file(recipe), record_of(recipe, session, *data.tokenizer), world);
  std::unique_ptr<RunWatch> watch;
  const auto saver = make_checkpoint_hook(
      recipe, data.tokenizer, trainer, session,
      [&](const SaveReport& r) {
        watch->checkpoint(r.step, r.path.string(), r.failure, r.blocked_ms, r.write_ms);
      },
      data.chat_template);
  const std::optional<int64_t> resumed = resume_run(*saver);
  // Laws are of models that are trained from nothing.
  const bool recorded = recipe.model_path.empty() && recipe.finetune.method == FinetuneSpec::Method::full;
  if (resumed && has_ended(recipe, *resumed, world)) {
    trainer.add_hook(session.finetuning.get());
    if (recorded) trainer.add_hook(&record);
    trainer.add_hook(session.schemes.get());
    return trainer.run(*resumed);
  }
  watch = watch_run(recipe, session, trainer, world, resumed);
  session.schemes->on_decision = [&](int64_t step, std::span<const LayerPatterns> layers) {
    write_decision(*watch, step, trainer.tokens_after(step + 1), layers);
  };
  session.finetuning->on_turn = [&](int64_t step, const std::vector<ActiveLayer>& layers) {
    write_turn(*watch, step, trainer.tokens_after(step + 1), layers);
  };
  trainer.add_hook(session.finetuning.get());  // first: it decides what the step trains
  if (recorded) trainer.add_hook(&record);
  trainer.add_hook(session.schemes.get());
  trainer.add_hook(watch.get());  // before the saver: the train entry of a step stands before its checkpoint
  trainer.add_hook(saver.get());
  std::optional<StepTrace> trace;
  if (recipe.train.profile_steps > 0) {
    trace.emplace(session.queue, run_directory(recipe), world.rank(), resumed.value_or(0) + 3,
                  recipe.train.profile_steps);
    trainer.add_hook(&*trace);
  }
  trainer.run(resumed.value_or(0));
}

}  // namespace

void add_train(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "train a model as a recipe says; also under mpirun");
  options->add_to(*command);
  command->footer("Example:\n  mpirun -np 2 osprey train recipes/quickstart/osp.yaml --set train.steps=100");
  command->callback([options] { on_all_ranks([&](Communicator& world) { train(*options, world); }); });
}

}  // namespace osprey
