#include "framework/checkpoint/shards.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "kernels/core/check.h"

namespace osprey {

namespace fs = std::filesystem;

namespace {

std::string stored_name(const NamedPiece& p) {
  return p.whole() ? p.key() : fmt::format("{}@{}", p.key(), p.begin);
}

/// "begin end dim dim ..." as numbers; nothing when it is anything else.
std::optional<std::vector<int64_t>> numbers(const std::string& text) {
  std::vector<int64_t> out;
  const char *at = text.data(), *end = at + text.size();
  while (at < end && out.size() < 7) {
    int64_t value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || value < 0 || (next < end && *next != ' ')) return std::nullopt;
    out.push_back(value);
    at = next < end ? next + 1 : next;
  }
  if (at < end || text.ends_with(' ') || out.size() < 3 || out.size() > 6) return std::nullopt;
  return out;
}

}  // namespace

std::vector<NamedPiece> named_pieces(std::span<const ParamPiece> pieces, std::span<const StateSpec> states) {
  std::vector<NamedPiece> named;
  for (const ParamPiece& p : pieces) {
    const auto add = [&](const char* slot, const Tensor& data) {
      // A state of another size than the parameter belongs to a whole one.
      const bool like_it = data.numel() == p.end - p.begin;
      if (like_it)
        named.push_back({std::string(p.name), slot, p.full_shape, p.begin, p.end, data});
      else
        named.push_back({std::string(p.name), slot, data.shape, 0, data.numel(), data});
    };
    add("master", p.master);
    for (size_t i = 0; i < states.size(); ++i) add(states[i].name, p.state[i]);
  }
  return named;
}

std::string shard_name(int rank) { return fmt::format("optimizer/rank-{:05}.safetensors", rank); }

FileRecord write_shard(const fs::path& path, std::span<const NamedPiece> pieces) {
  std::vector<StoredTensor> tensors;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  std::map<std::string, const NamedPiece*> by_name;
  for (const NamedPiece& p : pieces) {
    require(p.data.contiguous() && p.data.numel() == p.end - p.begin && p.begin >= 0 &&
                p.end <= p.full_shape.numel(),
            "checkpoint", "piece [{}, {}) of {} {} does not fit its data {}", p.begin, p.end, p.key(),
            p.full_shape.str(), p.data.str());
    StoredTensor t{stored_name(p), stored(p.data.dtype), {}, 0};
    if (p.whole()) {
      for (int i = 0; i < p.full_shape.rank; ++i) t.shape.push_back(p.full_shape[i]);
    } else {
      t.shape = {p.end - p.begin};
      std::string range = fmt::format("{} {}", p.begin, p.end);
      for (int i = 0; i < p.full_shape.rank; ++i) range += fmt::format(" {}", p.full_shape[i]);
      metadata[t.name] = range;
    }
    by_name[t.name] = &p;
    tensors.push_back(std::move(t));
  }
  SafetensorsWriter writer(path, std::move(tensors), metadata);
  for (const StoredTensor& t : writer.order()) {
    const Tensor& data = by_name.at(t.name)->data;
    writer.write(t.name, {static_cast<const std::byte*>(data.data), static_cast<size_t>(data.bytes())});
  }
  return writer.finish();
}

ShardIndex::ShardIndex(const fs::path& checkpoint) : checkpoint_(checkpoint) {
  for (int rank = 0; fs::exists(checkpoint / shard_name(rank)); ++rank) {
    files_.push_back(std::make_unique<SafetensorsFile>(checkpoint / shard_name(rank)));
    for (const StoredTensor& t : files_.back()->tensors()) add(*files_.back(), t);
  }
  require(!files_.empty(), "checkpoint",
          "{} holds no optimizer state ({} is missing); it can be evaluated, not resumed",
          checkpoint.string(), shard_name(0));
  for (auto& [key, logical] : tensors_) {
    auto& ranges = logical.ranges;
    std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    int64_t end = 0;
    for (const auto& r : ranges) {
      require(r.begin == end, "checkpoint", "{}: elements [{}, {}) of {} are {}", checkpoint.string(),
              std::min(r.begin, end), std::max(r.begin, end), key,
              r.begin > end ? "in no shard" : "in two shards");
      end = r.end;
    }
    require(end == logical.shape.numel(), "checkpoint",
            "{}: elements [{}, {}) of {} are in no shard; was a rank's file removed?", checkpoint.string(),
            end, logical.shape.numel(), key);
  }
}

void ShardIndex::add(const SafetensorsFile& file, const StoredTensor& tensor) {
  const std::string where = file.path().string();
  const size_t at = tensor.name.rfind('@');
  const std::string key = tensor.name.substr(0, at);
  require(key.find(':') != std::string::npos, where, "tensor '{}' names no slot; this is no shard of Osprey",
          shown(tensor.name));
  Shape shape;
  int64_t begin = 0, end = 0;
  if (at == std::string::npos) {
    shape = tensor.as_shape();
    end = tensor.numel();
  } else {
    const auto it = file.metadata().find(tensor.name);
    const auto range = it == file.metadata().end() ? std::nullopt : numbers(it->second);
    require(range.has_value(), where, "the metadata do not say which range tensor '{}' covers",
            shown(tensor.name));
    begin = (*range)[0];
    end = (*range)[1];
    int64_t numel = 1;
    bool fits = true;
    for (size_t i = 2; i < range->size(); ++i) {
      shape.dims[static_cast<size_t>(shape.rank++)] = (*range)[i];
      fits = fits && !__builtin_mul_overflow(numel, (*range)[i], &numel);
    }
    require(fits && begin <= end && end <= numel && tensor.numel() == end - begin, where,
            "tensor '{}' has {} elements, its range is '{}'", shown(tensor.name), tensor.numel(),
            shown(it->second));
  }
  Logical& logical = tensors_[key];
  require(logical.ranges.empty() || logical.shape == shape, where,
          "{} has the shape {} here and {} in another shard", shown(key), shape.str(), logical.shape.str());
  logical.shape = shape;
  logical.ranges.push_back({begin, end, &file, &tensor});
}

void ShardIndex::read(const NamedPiece& piece) const {
  const auto it = tensors_.find(piece.key());
  require(it != tensors_.end(), "checkpoint", "{} has no {}", checkpoint_.string(), piece.key());
  const Logical& logical = it->second;
  require(logical.shape == piece.full_shape, "checkpoint", "{}: {} is {}, wanted {}", checkpoint_.string(),
          piece.key(), logical.shape.str(), piece.full_shape.str());
  require(piece.data.contiguous() && piece.data.numel() == piece.end - piece.begin && piece.begin >= 0 &&
              piece.end <= logical.shape.numel(),
          "checkpoint", "piece [{}, {}) of {} does not fit {}", piece.begin, piece.end, piece.key(),
          piece.data.str());
  for (const auto& r : logical.ranges) {
    const int64_t begin = std::max(r.begin, piece.begin), end = std::min(r.end, piece.end);
    if (begin >= end) continue;
    void* out =
        static_cast<std::byte*>(piece.data.data) + (begin - piece.begin) * size_bytes(piece.data.dtype);
    r.file->read(*r.tensor, begin - r.begin, make_tensor(out, {end - begin}, piece.data.dtype));
  }
}

void ShardIndex::require_same(const std::map<std::string, Shape>& wanted) const {
  constexpr size_t most = 8;
  std::vector<std::string> differences;
  for (const auto& [key, shape] : wanted) {
    const auto it = tensors_.find(key);
    if (it == tensors_.end())
      differences.push_back(key + " is not in the checkpoint");
    else if (!(it->second.shape == shape))
      differences.push_back(
          fmt::format("{} is {} in the checkpoint and {} here", key, it->second.shape.str(), shape.str()));
  }
  for (const auto& [key, logical] : tensors_)
    if (!wanted.contains(key)) differences.push_back(key + " is in the checkpoint and not here");
  if (differences.empty()) return;
  std::string list;
  for (size_t i = 0; i < std::min(most, differences.size()); ++i) list += (i ? "; " : "") + differences[i];
  if (differences.size() > most) list += fmt::format("; and {} more", differences.size() - most);
  fail(
      "checkpoint",
      "{} was written by another model or with other optimizers: {}. Its own recipe is {}; resume with that, "
      "or set checkpoint.resume to none",
      checkpoint_.string(), list, (checkpoint_ / "recipe.yaml").string());
}

ReadParameter read_masters(const ShardIndex& shards) {
  return [&shards](const std::string& name, int64_t begin, Tensor out) {
    const auto it = shards.tensors().find(name + ":master");
    require(it != shards.tensors().end(), "checkpoint", "{} holds no master of {}", shards.path().string(),
            name);
    shards.read({name, "master", it->second.shape, begin, begin + out.numel(), out.view({out.numel()})});
  };
}

}  // namespace osprey
