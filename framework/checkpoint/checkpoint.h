#pragma once
// Saving and resuming a run: RUN/checkpoints/step-00000500/ holds
//   config.json, generation_config.json, model.safetensors, tokenizer files   a Hugging Face directory
//   optimizer/rank-00000.safetensors, ...   fp32 masters and optimizer state, see shards.h
//   state.yaml, recipe.yaml, manifest.json
// It appears whole, by one rename, after every byte is on the disk.

#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "framework/checkpoint/directory.h"
#include "framework/checkpoint/hub.h"
#include "framework/checkpoint/shards.h"
#include "framework/config/fields.h"
#include "framework/data/tokenizer.h"
#include "framework/parallel/communicator.h"
#include "framework/parameter.h"
#include "framework/quant/patterns.h"

namespace osprey {

struct CheckpointSpec {
  enum class OnError { keep_training, stop };
  std::optional<int64_t> every_steps = 500;
  int64_t keep = 3;
  std::string resume = "auto";  // auto, none or a checkpoint directory
  bool save_final = true;
  OnError on_error = OnError::keep_training;

  void fields(Fields& f);
};

/// Where a run stands: state.yaml. Everything random is a function of (seed, step, index), so there is no
/// generator to save, and the data position is the number of sequences read. What a run has measured in order
/// to decide by it is no such function, and is saved.
struct CheckpointState {
  int64_t format = 1;
  int64_t step = 0;       // optimizer steps done
  int64_t tokens = 0;     // trained on
  int64_t sequences = 0;  // read from the data
  int64_t skipped_steps = 0;
  int64_t seed = 0;
  int64_t world_size = 1;
  std::string recipe_hash;
  std::vector<LayerPatterns> patterns;  // of layers whose rotations are measured

  void fields(Fields& f);
};

/// Reads state.yaml of a published checkpoint. Errors: missing, not a state, or of another format.
CheckpointState read_checkpoint_state(const std::filesystem::path& checkpoint);

/// Which directory `resume` means: the newest complete one for auto (nothing when there is none), nothing
/// for none, else the named one. Errors: a named directory that is no complete checkpoint.
std::optional<std::filesystem::path> find_checkpoint(const std::string& resume,
                                                     const std::filesystem::path& checkpoints);

/// Of pieces that several ranks hold, those that this rank is to save: the lowest rank saves. Collective.
std::vector<NamedPiece> pieces_to_save(Communicator& comm, std::span<const NamedPiece> pieces);

/// Fills the pieces of this rank from a checkpoint that any number of ranks wrote. Collective.
/// `queue` reaches the pieces' memory. Errors: AgreedError: damaged files, another model, other optimizers.
void load_pieces(const std::filesystem::path& checkpoint, Communicator& comm, const Queue& queue,
                 std::span<const NamedPiece> pieces);

/// A parameter as the forward pass sees it.
struct NamedValue {
  std::string name;
  Tensor value;  // f32 or bf16, contiguous; of a packed weight its dtype alone
  Packed packed = {};
};
/// All of a store. Aliasing: views of its memory.
std::vector<NamedValue> named_values(const ParamStore& params);

/// Saves in the background. All ranks call the same functions at the same steps.
/// Numerics: model.safetensors is formed from the values that the forward pass uses (bf16 in a bf16 run), so
/// folded projections round where the forward pass rounds; `osprey export --dtype f32` starts from the
/// masters.
class Checkpointer {
 public:
  struct Texts {
    std::string recipe_yaml;
    HubLayout hub;
    std::shared_ptr<const Tokenizer> tokenizer;  // may be null
    std::string chat_template = {};              // Jinja, for chat_template.jinja; empty: none
    /// What the model's values are read through; null: as they are.
    std::function<ReadParameter(ReadParameter)> read_through = {};
  };
  /// `directory` is RUN/checkpoints; `comm` is duplicated, so that saving never mixes with training.
  /// Leftovers of dead processes are deleted.
  Checkpointer(std::filesystem::path directory, int64_t keep, Communicator& comm, Texts texts);
  /// Waits for the save in flight; its failure is then lost, so call wait() before.
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  /// Waits for the previous save, copies (`queue` reaches the memory), and returns; a thread writes. Only
  /// rank 0 needs `values`. Errors: what the previous save failed with.
  void save(const Queue& queue, const CheckpointState& state, std::span<const NamedPiece> pieces,
            std::span<const NamedValue> values);
  /// Waits for the save in flight. Errors: what it failed with; the same on every rank.
  void wait();
  /// Is the save in flight still being written? Ranks finish at slightly different times: agree before
  /// acting.
  bool busy() const;
  /// Time that save() kept the caller, and that the last finished save took in the background.
  double blocked_ms() const { return blocked_ms_; }
  double write_ms() const;
  /// Host memory for the copies of one save.
  static int64_t snapshot_bytes(std::span<const NamedPiece> pieces, std::span<const NamedValue> values);

 private:
  struct Snapshot {
    CheckpointState state;
    std::vector<std::byte> memory;
    std::vector<NamedPiece> pieces;
    std::vector<NamedValue> values;
  };
  void work();
  void write();
  std::vector<FileRecord> write_own_files(const std::filesystem::path& partial) const;
  FileRecord write_model(const std::filesystem::path& path) const;

  std::filesystem::path directory_;
  int64_t keep_;
  std::unique_ptr<Communicator> comm_;
  Texts texts_;
  Snapshot snapshot_;
  double blocked_ms_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool busy_ = false, ending_ = false;
  std::optional<std::string> failure_;
  double write_ms_ = 0;
  std::thread thread_;
};

}  // namespace osprey
