#pragma once
// The loop. It knows no YAML, no MPI, no model and no optimizer by name.

#include <array>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "framework/model.h"
#include "framework/parallel/communicator.h"
#include "framework/parallel/reducer.h"
#include "framework/train/spec.h"
#include "framework/train/updater.h"
#include "framework/train/updates_in_backward.h"
#include "kernels/device.h"
#include "kernels/step_control.h"

namespace osprey {

class WeightFreezer;

/// Where batches come from: a pure function of its arguments.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  /// Fills views of (B, T) in host memory with this rank's sequences of a micro step; rows past the end have
  /// no targets. Returns how many targets are not -1.
  virtual int64_t fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) = 0;
};

struct StepResult {
  int64_t step = 0;  // steps finished, this one included
  int64_t total_steps = 0;
  int64_t tokens = 0;    // of the run so far
  double loss = 0;       // nats per token, over all ranks
  double grad_norm = 0;  // before clipping
  double learning_rate_factor = 0;
  bool skipped = false;  // loss or gradient was not finite
  int64_t skipped_total = 0;
  double seconds = 0;            // of this step
  double reduce_exposed_ms = 0;  // waiting for gradients of other ranks
  bool stopping = false;         // the last step, by a signal
};

struct EvalResult {
  int64_t step = 0;
  int64_t tokens = 0;          // of the run so far
  double loss = 0;             // nats per token
  int64_t counted_tokens = 0;  // evaluated
  /// Of `loss`, nats: how far it would move with other validation data of the same kind. From how much the
  /// rounds of all ranks differ (a ratio estimator with rounds as clusters); absent when there is only one.
  std::optional<double> standard_error;
  double seconds = 0;
};

class Trainer;

/// Telemetry, checkpoints and fine-tuning methods attach here.
class StepHook {
 public:
  virtual ~StepHook() = default;
  virtual void on_start(Trainer&) {}
  virtual void before_step(Trainer&, int64_t /*step*/) {}
  /// Does after_step() look at parameters, optimizer state or activations once `finished` steps are done?
  /// Where nobody does, a GPU may have begun the next step when after_step() is called.
  virtual bool reads_state(int64_t /*finished*/) const { return true; }
  virtual void after_step(Trainer&, const StepResult&) {}
  virtual void after_eval(Trainer&, const EvalResult&) {}
  virtual void on_end(Trainer&, const StepResult&) {}
};

/// Everything a trainer works with; nothing is owned.
struct TrainerParts {
  Queue queue;
  LanguageModel* model = nullptr;
  ParamStore* params = nullptr;
  Tape* tape = nullptr;
  Communicator* world = nullptr;         // of the hosts
  Communicator* device_world = nullptr;  // for device memory: the same one on the CPU
  const ShardPlan* plan = nullptr;
  Reducer* reducer = nullptr;
  Updater* updater = nullptr;
  WeightFreezer* freezer = nullptr;  // may be null
  BatchSource* train = nullptr;
  BatchSource* validation = nullptr;        // may be null
  int64_t validation_sequences = 0;         // of one evaluation
  std::function<double(int64_t)> schedule;  // learning-rate factor of a 0-based step
  int64_t sequence_len = 0;
  uint64_t seed = 0;
  enum class Documents { joined, apart } documents = Documents::joined;  // apart: attention stays inside
  enum class Graphs { off, on } graphs = Graphs::off;                    // record the step and replay it
};

/// An optimizer step is queued without waiting for the device: its batch and three scalars go up before it,
/// and all scalars come down after it (kernels/step_control.h). run() reads them one step late, so the device
/// never waits for the host; on the CPU queued work is done work, and nothing is late.
class Trainer {
 public:
  Trainer(const TrainSpec& spec, const TrainerParts& parts);
  ~Trainer();

  void add_hook(StepHook* hook) { hooks_.push_back(hook); }
  /// Who is told what the coming steps quantize (not evaluations); null: nobody.
  void watch_quantization(QuantizationWatch* watch) { quantization_watch_ = watch; }
  /// Runs from step `first` to the end, or until a stop is requested. Collective.
  void run(int64_t first);
  /// One optimizer step, without hooks, waited for. Collective.
  StepResult step(int64_t step);
  /// Runs the model forward, as evaluation does, on what this rank trains on in a step: for those who look at
  /// activations through the tape. Between steps.
  void look_at_batch(int64_t step);
  /// Mean loss on the validation data. Collective.
  EvalResult evaluate(int64_t step);

  /// Safe in a signal handler: all ranks stop together after the running step.
  static void request_stop() { stop_requested_ = 1; }

  const TrainSpec& spec() const { return spec_; }
  const TrainerParts& parts() const { return parts_; }
  int64_t tokens_after(int64_t steps) const { return steps * spec_.global_batch_tokens; }
  /// The micro batch of the last step that this rank computed last, on the device.
  const BatchView& last_batch() const { return inputs_.batches.back(); }
  /// Bytes of token buffers and scalars on the device.
  int64_t batch_bytes() const { return memory_->used_bytes(); }
  /// How many steps were replays of a recorded one.
  int64_t replayed_steps() const { return replayed_; }
  /// Updates skipped so far; checkpoints carry it.
  int64_t skipped_total = 0;

 private:
  /// What a step reads, in one piece of memory: its scalars, then its batches.
  struct StepInputs {
    struct Layout {
      Shape shape;  // of a view, (B, T)
      int views;    // of a batch
      int64_t micro_steps;
      int64_t view_bytes() const { return (shape.numel() * 4 + 63) / 64 * 64; }
    };
    static constexpr int64_t scalar_bytes = (kernels::step_scalars * 8 + 63) / 64 * 64;
    static int64_t bytes(const Layout& layout);
    StepInputs() = default;
    StepInputs(void* memory, Device device, const Layout& layout);

    Tensor all;      // as i32
    Tensor scalars;  // (step_scalars) f64
    std::vector<BatchView> batches;
  };
  /// A step on its way. Two of them, so that one fills while the other is on the device.
  struct Flight {
    StepInputs inputs;  // in host memory; the batches are the device's own where that is the host
    double* scalars() const { return inputs.scalars.as<double>(); }
    std::unique_ptr<kernels::Event> done;
    int64_t step = -1;
    double start_s = 0, counted = 0;
    bool stopping = false;
  };
  void allocate();
  void send(const Flight& flight, int64_t count);
  void enqueue(int64_t step, Flight& flight);
  void compute();
  void update();
  void compute_or_replay();
  void count_up_versions();
  StepResult finish(Flight& flight);
  void deliver(Flight& flight);
  bool must_settle(const Flight& flight) const;
  void check_skips(const StepResult& result);
  /// Micro batches that each rank takes from the validation data.
  int64_t evaluation_rounds() const;

  TrainSpec spec_;
  TrainerParts parts_;
  int64_t micro_steps_ = 0;
  std::unique_ptr<Arena> memory_;
  char* host_ = nullptr;  // staging memory of both flights
  int64_t host_bytes_ = 0;
  StepInputs inputs_, landing_;  // on the device; steps read the first
  kernels::StreamHandle copy_stream_;
  Queue copies_;                                    // null stream, and unused, on the CPU
  std::unique_ptr<kernels::Event> landed_, taken_;  // into and out of landing_
  Tensor evaluation_;                               // (rounds, 2) f64: nats and targets of each round
  std::array<Flight, 2> flights_;
  std::unique_ptr<UpdatesInBackward> in_backward_;  // null: update() once backward is done
  std::vector<StepHook*> hooks_;
  QuantizationWatch* quantization_watch_ = nullptr;
  StepResult last_;  // delivered
  int64_t skipped_in_a_row_ = 0;
  double last_finish_s_ = 0;
  kernels::Graph graph_;
  int64_t eager_steps_ = 0, replayed_ = 0;
  struct Use {
    bool trainable = false;
    const QuantScheme* scheme = nullptr;
    const Freezing* freezing = nullptr;
    bool operator==(const Use&) const = default;
  };
  std::vector<Use> uses_;  // of the parameters in the last step
  static volatile std::sig_atomic_t stop_requested_;
};

/// Micro steps of one optimizer step.
/// Errors: throws unless global_batch_tokens is a multiple of micro_batch_size * sequence_len * ranks; names
/// the nearest batch that is.
int64_t micro_steps(const TrainSpec& spec, int64_t sequence_len, int ranks);

}  // namespace osprey
