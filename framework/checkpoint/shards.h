#pragma once
// Optimizer state as logical tensors. A logical tensor is a parameter's path and a slot ("master",
// "momentum", ...). Each rank writes the pieces it owns into one file; any number of ranks reads whatever
// pieces it needs, because every piece says which flat range of its tensor it covers.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "framework/checkpoint/hub.h"
#include "framework/checkpoint/safetensors.h"
#include "framework/optimizer.h"
#include "kernels/core/tensor.h"

namespace osprey {

/// The flat range [begin, end) of one logical tensor.
struct NamedPiece {
  std::string name;  // of the parameter
  std::string slot;
  Shape full_shape;
  int64_t begin = 0;
  int64_t end = 0;
  Tensor data;  // end - begin elements, contiguous

  std::string key() const { return name + ":" + slot; }
  bool whole() const { return begin == 0 && end == full_shape.numel(); }
};

/// Master and state tensors of what one rank updates.
/// Aliasing: views of the pieces' memory. A master that shares memory with the value is included: for an
/// fp32 run it is the parameter.
std::vector<NamedPiece> named_pieces(std::span<const ParamPiece> pieces, std::span<const StateSpec> states);

/// "optimizer/rank-00003.safetensors".
std::string shard_name(int rank);

/// Writes one shard. A piece that does not cover its tensor is named "layers.0.mlp.up.weight:adam_m@4096",
/// and the file's metadata says for it "begin end dim dim ...".
FileRecord write_shard(const std::filesystem::path& path, std::span<const NamedPiece> pieces);

/// All shards of a checkpoint, whatever number of ranks wrote them.
class ShardIndex {
 public:
  /// Errors: no shards; a shard whose names, ranges or shapes do not fit; ranges that overlap or leave
  /// elements out.
  explicit ShardIndex(const std::filesystem::path& checkpoint);

  struct Logical {
    Shape shape;
    struct Range {
      int64_t begin, end;
      const SafetensorsFile* file;
      const StoredTensor* tensor;
    };
    std::vector<Range> ranges;  // in order, without gaps
  };
  const std::map<std::string, Logical>& tensors() const { return tensors_; }  // by key
  const std::filesystem::path& path() const { return checkpoint_; }

  /// Fills piece.data from the shards that hold its range, converting the dtype where it differs.
  /// Errors: no such tensor, or another shape.
  void read(const NamedPiece& piece) const;
  /// Errors: one Error that lists what is missing here, what is missing there and which shapes differ.
  void require_same(const std::map<std::string, Shape>& wanted) const;

 private:
  void add(const SafetensorsFile& file, const StoredTensor& tensor);
  std::filesystem::path checkpoint_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Logical> tensors_;
};

/// Parameters as the optimizer keeps them, in fp32. Aliasing: `shards`, which must outlive it.
/// Errors, when read: no such master.
ReadParameter read_masters(const ShardIndex& shards);

}  // namespace osprey
