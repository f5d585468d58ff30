#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "framework/parallel/communicator.h"
#include "launch/commands/command.h"
#include "launch/data_source.h"
#include "launch/session.h"

namespace osprey {

namespace {

std::string gib(int64_t bytes) {
  const double b = static_cast<double>(bytes);
  return b < 1e9 ? fmt::format("{:.1f} MiB", b / (1 << 20)) : fmt::format("{:.2f} GiB", b / (1 << 30));
}

/// What one step sends from one rank, in bytes.
int64_t sent_bytes(const Recipe& recipe, const ShardPlan& plan, int rank) {
  const int64_t wire = size_bytes(recipe.parallel.reduce_dtype), value = size_bytes(recipe.train.precision);
  int64_t bytes = 0;
  for (const BucketPlan& b : plan.buckets) {
    for (const Piece& p : b.reduce)
      if (p.owner != rank) bytes += (p.end - p.begin) * wire;
    for (const Piece& p : b.gather_grads)
      if (p.owner == rank) bytes += (p.end - p.begin) * 4 * (plan.ranks - 1);
    for (const Piece& p : b.gather_values)
      if (p.owner == rank) bytes += (p.end - p.begin) * value * (plan.ranks - 1);
  }
  return bytes;
}

void print_plan(const Recipe& recipe, int ranks, int threads, DeviceKind kind) {
  const auto comm = make_planning_comm(0, ranks);
  const Queue meta{.device = {DeviceKind::meta, 0}, .threads = threads, .planned = kind};
  const Session session(recipe, *comm, meta, {});
  const TrainSpec& train = recipe.train;
  const double flops = session.model->flops_per_token(recipe.data.sequence_len);
  fmt::print("{}: {} steps of {} tokens, {} tokens in all, on {} rank{}\n\n", recipe.run.name,
             train.total_steps(), train.global_batch_tokens, train.total_steps() * train.global_batch_tokens,
             ranks, ranks == 1 ? "" : "s");
  fmt::print("parameters            {:>14}\n  without embedding   {:>14}\n", session.params.numel(),
             without_embedding(session.params));
  fmt::print("micro steps per step  {:>14}\n", micro_steps(train, recipe.data.sequence_len, ranks));
  fmt::print("FLOPs per token       {:>14.4g}   (6 N + causal attention)\n", flops);
  fmt::print("FLOPs per step        {:>14.4g}\n", flops * static_cast<double>(train.global_batch_tokens));
  fmt::print("FLOPs in all          {:>14.4g}\n\n", flops * static_cast<double>(train.global_batch_tokens) *
                                                        static_cast<double>(train.total_steps()));

  const auto first = plan_memory(recipe, 0, ranks, threads, kind),
             last = plan_memory(recipe, ranks - 1, ranks, threads, kind);
  using Where = MemoryCategory::Where;
  const bool gpu = kind == DeviceKind::cuda;
  for (const Where where : {Where::device, Where::host}) {
    if (!gpu && where == Where::host) break;  // on the CPU all of it is host memory
    fmt::print("{:<22}{:>14} {:>14}\n",
               !gpu                     ? "memory by category"
               : where == Where::device ? "GPU memory"
                                        : "host memory",
               "rank 0", ranks > 1 ? fmt::format("rank {}", ranks - 1) : "");
    int64_t totals[2] = {0, 0};
    for (size_t i = 0; i < first.size(); ++i) {
      if (gpu && first[i].where != where) continue;
      fmt::print("  {:<20}{:>14} {:>14}\n", first[i].name, gib(first[i].bytes),
                 ranks > 1 ? gib(last[i].bytes) : "");
      totals[0] += first[i].bytes;
      totals[1] += last[i].bytes;
    }
    fmt::print("  {:<20}{:>14} {:>14}\n", "total", gib(totals[0]), ranks > 1 ? gib(totals[1]) : "");
  }
  fmt::print("\nsent per step         {:>14}   by rank 0\n",
             gib(ranks > 1 ? sent_bytes(recipe, session.plan, 0) : 0));
}

}  // namespace

void add_plan(CLI::App& app) {
  struct Options : RecipeOptions {
    int ranks = 1;
    int threads = 1;
    std::string device = "recipe";
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "plan", "parameters, memory of each rank by category, traffic and FLOPs; nothing is run");
  options->add_to(*command);
  command->add_option("--ranks", options->ranks, "number of ranks")->check(CLI::Range(1, 65536));
  command->add_option("--threads", options->threads, "threads of a rank")->check(CLI::Range(1, 1024));
  command
      ->add_option(
          "--device", options->device,
          "what is planned for: cpu, cuda (also where there is no GPU), or what the recipe says here")
      ->check(CLI::IsMember({"recipe", "cpu", "cuda"}));
  command->footer(
      "Example:\n  osprey plan recipes/pretrain/osp_1b4.yaml --ranks 8 --device cuda\n"
      "Of a model to be fine-tuned, DIR/config.json is enough:\n"
      "  osprey plan recipes/finetune/owlore.yaml --set model.path=DIR");
  command->callback([options] {
    Recipe recipe = load_recipe(options->recipe, options->overrides, options->ranks, ModelFiles::config);
    for (const std::string& line : check_files(recipe)) fmt::print(stderr, "note: {}\n", line);
    if (recipe.train.epochs) open_data(recipe, options->threads);  // the data say how many steps there are
    const DeviceKind kind = options->device == "recipe" ? planned_device(recipe.run)
                            : options->device == "cuda" ? DeviceKind::cuda
                                                        : DeviceKind::cpu;
    print_plan(recipe, options->ranks, options->threads, kind);
  });
}

}  // namespace osprey
