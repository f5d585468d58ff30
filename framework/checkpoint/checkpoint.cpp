#include "framework/checkpoint/checkpoint.h"
#include "framework/memory/staging.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <set>

#include "framework/clock.h"
#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "framework/parallel/agree.h"
#include "kernels/core/check.h"
#include "kernels/quantize.h"

namespace osprey {

namespace fs = std::filesystem;

namespace {

std::string encode(const std::vector<FileRecord>& records) {
  std::string text;
  for (const FileRecord& r : records) text += fmt::format("{} {} {}\n", r.size_bytes, r.crc32, r.name);
  return text;
}

/// The inverse of encode; text comes from our own ranks.
void decode(const std::string& text, PartialDirectory& into) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    FileRecord r;
    const char* stop = line.data() + line.size();
    const auto size = std::from_chars(line.data(), stop, r.size_bytes);
    const auto crc =
        size.ec == std::errc() && size.ptr < stop ? std::from_chars(size.ptr + 1, stop, r.crc32) : size;
    require(end != std::string::npos && crc.ec == std::errc() && crc.ptr < stop, "checkpoint",
            "a rank sent '{}'", shown(line));
    r.name.assign(crc.ptr + 1, stop);
    into.add(std::move(r));
    at = end + 1;
  }
}

/// Keys and shapes of all ranks' pieces, one a line, for the comparison with a checkpoint.
std::string describe(std::span<const NamedPiece> pieces) {
  std::string text;
  for (const NamedPiece& p : pieces) {
    text += p.key();
    for (int i = 0; i < p.full_shape.rank; ++i) text += fmt::format(" {}", p.full_shape[i]);
    text += '\n';
  }
  return text;
}

std::map<std::string, Shape> parse_descriptions(const std::vector<std::string>& texts) {
  std::map<std::string, Shape> wanted;
  for (const std::string& text : texts)
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      const char *p = text.data() + std::min(text.find(' ', at), end), *stop = text.data() + end;
      Shape& shape = wanted[text.substr(at, static_cast<size_t>(p - text.data()) - at)] = Shape();
      while (p < stop && shape.rank < 4)
        p = std::from_chars(p + 1, stop, shape.dims[static_cast<size_t>(shape.rank++)]).ptr;
      at = end + 1;
    }
  return wanted;
}

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// What a value lies in; undefined tensors have no bytes.
std::array<Tensor, 3> parts(const NamedValue& v) {
  if (!v.packed.defined()) return {v.value};
  return {v.packed.codes, v.packed.scales, v.packed.tensor_scale};
}

/// Elements [begin, begin + out.numel()) in fp32; of a packed weight whole rows.
void read_value(const NamedValue& v, int64_t begin, const Tensor& out) {
  const int64_t count = v.packed.defined() ? v.packed.rows * v.packed.cols : v.value.numel();
  require(begin >= 0 && begin + out.numel() <= count, "checkpoint",
          "the exported model reads beyond the {} elements of {}", count, v.name);
  float* to = out.as<float>();
  if (v.packed.defined()) {
    const int64_t cols = v.packed.cols, rows = out.numel() / cols, first = begin / cols;
    require(begin % cols == 0 && out.numel() % cols == 0, "checkpoint",
            "{} is packed and read in whole rows, got [{}, {})", v.name, begin, begin + out.numel());
    kernels::dequantize(Queue{}, {.y = make_tensor(to, {rows, cols}, DType::f32),
                                  .x = v.packed.row_range(first, first + rows)});
  } else if (v.value.dtype == DType::f32)
    std::memcpy(to, v.value.as<float>() + begin, static_cast<size_t>(out.bytes()));
  else
    for (int64_t i = 0; i < out.numel(); ++i) to[i] = to_float(v.value.as<bf16>()[begin + i]);
}

}  // namespace

void CheckpointSpec::fields(Fields& f) {
  f("every_steps", every_steps, "steps between checkpoints; null: only the final one", at_least(1));
  f("keep", keep, "complete checkpoints that stay; older ones are deleted", at_least(1));
  f("resume", resume,
    "auto: go on from the newest complete checkpoint of this run directory, if there is one; none: "
    "start anew; otherwise the directory of a checkpoint");
  f("save_final", save_final, "save after the last step");
  f.choice("on_error", on_error, {{"keep_training", OnError::keep_training}, {"stop", OnError::stop}},
           "when a periodic save fails (disk full): keep_training says so and tries again at the next one, "
           "stop ends the run. A final save that fails is always an error");
  f.rule(!resume.empty(), "resume", "must be auto, none or a directory");
}

void CheckpointState::fields(Fields& f) {
  f("format", format, "of this file", at_least(1));
  f.rule(format == 1, "format", "this Osprey reads format 1");
  f("step", step, "optimizer steps done", at_least(0));
  f("tokens", tokens, "tokens trained on", at_least(0));
  f("sequences", sequences, "sequences read from the data", at_least(0));
  f("skipped_steps", skipped_steps, "steps skipped because a loss or gradient was not finite", at_least(0));
  f("seed", seed, "run.seed");
  f("world_size", world_size, "ranks that wrote it", at_least(1));
  f("recipe_hash", recipe_hash, "of the resolved recipe");
  f.list("patterns", patterns, "what was measured of layers that are rotated by it");
}

CheckpointState read_checkpoint_state(const fs::path& checkpoint) {
  const fs::path path = checkpoint / "state.yaml";
  return read_spec<CheckpointState>(read_file(path, 1 << 20), path.string());
}

std::optional<fs::path> find_checkpoint(const std::string& resume, const fs::path& checkpoints) {
  if (resume == "none") return std::nullopt;
  if (resume != "auto") {
    require(fs::is_directory(resume), "checkpoint",
            "checkpoint.resume is '{}', which is no directory; give a checkpoint, auto or none", resume);
    const auto inside = list_checkpoints(fs::path(resume) / "checkpoints");
    require(inside.empty(), "checkpoint",
            "checkpoint.resume is '{}', a run; name one of its checkpoints, the newest is {}", resume,
            inside.empty() ? "" : inside.back().path.string());
    read_manifest(resume);
    return resume;
  }
  const auto all = list_checkpoints(checkpoints);
  if (all.empty()) return std::nullopt;
  return all.back().path;
}

std::vector<NamedPiece> pieces_to_save(Communicator& comm, std::span<const NamedPiece> pieces) {
  const auto line = [](const NamedPiece& p) { return fmt::format("{}@{}-{}\n", p.key(), p.begin, p.end); };
  const auto all = agree(comm, [&] {
    std::string text;
    for (const NamedPiece& p : pieces) text += line(p);
    return text;
  });
  std::set<std::string, std::less<>> taken;
  for (int rank = 0; rank < comm.rank(); ++rank) {
    const std::string_view text = all[static_cast<size_t>(rank)];
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at) + 1;
      taken.emplace(text.substr(at, end - at));
      at = end;
    }
  }
  std::vector<NamedPiece> mine;
  for (const NamedPiece& p : pieces)
    if (!taken.contains(line(p))) mine.push_back(p);
  return mine;
}

void load_pieces(const fs::path& checkpoint, Communicator& comm, const Queue& queue,
                 std::span<const NamedPiece> pieces) {
  const auto descriptions = agree(comm, [&] {
    verify_files(checkpoint, read_manifest(checkpoint), comm.rank(), comm.size());
    return describe(pieces);
  });
  agree(comm, [&] {
    const ShardIndex index(checkpoint);
    index.require_same(parse_descriptions(descriptions));
    for (NamedPiece p : pieces)
      write_from_host(queue, p.data, [&](const Tensor& host) {
        p.data = host;
        index.read(p);
      });
    return std::string();
  });
}

std::vector<NamedValue> named_values(const ParamStore& params) {
  std::vector<NamedValue> all;
  for (const auto& p : params.all()) all.push_back({p->name, p->value, p->packed});
  return all;
}

Checkpointer::Checkpointer(fs::path directory, int64_t keep, Communicator& comm, Texts texts)
    : directory_(std::move(directory)), keep_(keep), comm_(comm.duplicate()), texts_(std::move(texts)) {
  if (comm_->rank() == 0) remove_leftovers(directory_);
  thread_ = std::thread([this] { work(); });
}

Checkpointer::~Checkpointer() {
  {
    std::unique_lock lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

int64_t Checkpointer::snapshot_bytes(std::span<const NamedPiece> pieces, std::span<const NamedValue> values) {
  int64_t total = 0;
  for (const auto& p : pieces) total += padded(p.data.bytes());
  for (const NamedValue& v : values)
    for (const Tensor& t : parts(v)) total += padded(t.bytes());
  return total;
}

void Checkpointer::save(const Queue& queue, const CheckpointState& state, std::span<const NamedPiece> pieces,
                        std::span<const NamedValue> values) {
  const double start = now_s();
  wait();
  const bool first = comm_->rank() == 0;
  if (!first) values = {};
  snapshot_.state = state;
  snapshot_.pieces.assign(pieces.begin(), pieces.end());
  snapshot_.values.assign(values.begin(), values.end());
  snapshot_.memory.resize(static_cast<size_t>(snapshot_bytes(pieces, values)));
  std::byte* at = snapshot_.memory.data();
  const auto copy = [&](Tensor& t) {
    require(t.contiguous(), "checkpoint", "cannot save {}: it is not contiguous", t.str());
    kernels::download(queue, at, t);
    t = make_tensor(at, t.shape, t.dtype);
    at += padded(t.bytes());
  };
  for (auto& p : snapshot_.pieces) copy(p.data);
  for (NamedValue& v : snapshot_.values) {
    if (!v.packed.defined()) {
      copy(v.value);
      continue;
    }
    copy(v.packed.codes);
    copy(v.packed.scales);
    if (v.packed.tensor_scale.defined()) copy(v.packed.tensor_scale);
  }
  {
    std::unique_lock lock(mutex_);
    busy_ = true;
  }
  changed_.notify_all();
  blocked_ms_ = (now_s() - start) * 1e3;
}

void Checkpointer::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
  if (failure_) throw AgreedError(*std::exchange(failure_, std::nullopt));
}

bool Checkpointer::busy() const {
  std::unique_lock lock(mutex_);
  return busy_;
}

double Checkpointer::write_ms() const {
  std::unique_lock lock(mutex_);
  return write_ms_;
}

void Checkpointer::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return busy_ || ending_; });
    if (!busy_) return;
    lock.unlock();
    const double start = now_s();
    std::optional<std::string> failure;
    try {
      write();
    } catch (const std::exception& e) {
      failure = e.what();
    }
    lock.lock();
    failure_ = failure;
    write_ms_ = (now_s() - start) * 1e3;
    busy_ = false;
    changed_.notify_all();
  }
}

void Checkpointer::write() {
  const bool first = comm_->rank() == 0;
  std::optional<PartialDirectory> partial;
  const auto paths = agree(*comm_, [&] {
    if (!first) return std::string();
    partial.emplace(directory_ / checkpoint_name(snapshot_.state.step));
    std::error_code error;
    fs::create_directory(partial->path() / "optimizer", error);
    require(!error, "checkpoint", "cannot create {}/optimizer: {}", partial->path().string(),
            error.message());
    return partial->path().string();
  });
  const fs::path path = paths[0];
  const auto records = agree(*comm_, [&] {
    require(fs::is_directory(path), "checkpoint",
            "rank {} does not see {}, which rank 0 made; run.output_dir must be on a "
            "file system that all hosts share",
            comm_->rank(), path.string());
    return encode(write_own_files(path));
  });
  agree(*comm_, [&] {
    if (first) {
      for (const std::string& text : records) decode(text, *partial);
      partial->publish();
      keep_newest(directory_, keep_);
    }
    return std::string();
  });
}

std::vector<FileRecord> Checkpointer::write_own_files(const fs::path& partial) const {
  std::vector<FileRecord> records;
  const std::string shard = shard_name(comm_->rank());
  records.push_back(write_shard(partial / shard, snapshot_.pieces));
  records.back().name = shard;
  if (comm_->rank() != 0) return records;
  records.push_back(write_file(partial / "state.yaml", dump_spec(snapshot_.state)));
  records.push_back(write_file(partial / "recipe.yaml", texts_.recipe_yaml));
  records.push_back(write_model(partial / "model.safetensors"));
  for (FileRecord& r : write_hub_texts(partial, texts_.hub, {})) records.push_back(std::move(r));
  // The tokenizer writes its own files; whatever is new here is theirs. One may be a chat template: the one
  // that the run used takes its place.
  if (texts_.tokenizer) texts_.tokenizer->save(partial.string());
  if (!texts_.chat_template.empty()) replace_file(partial / "chat_template.jinja", texts_.chat_template);
  for (const auto& entry : fs::directory_iterator(partial)) {
    const std::string name = entry.path().filename().string();
    const bool known =
        std::any_of(records.begin(), records.end(), [&](const FileRecord& r) { return r.name == name; });
    if (!known && entry.is_regular_file()) records.push_back(sync_file(entry.path()));
  }
  return records;
}

FileRecord Checkpointer::write_model(const fs::path& path) const {
  std::map<std::string_view, const NamedValue*> values;
  for (const NamedValue& v : snapshot_.values) values[v.name] = &v;
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    const auto it = values.find(name);
    require(it != values.end(), "checkpoint",
            "the exported model needs the parameter {}, which was not given", name);
    read_value(*it->second, begin, out);
  };
  const bool narrow = !snapshot_.values.empty() && snapshot_.values[0].value.dtype == DType::bf16;
  const ReadParameter through = texts_.read_through ? texts_.read_through(read) : read;
  return write_hub_tensors(Queue{}, path, texts_.hub, through, narrow ? StoredType::bf16 : StoredType::f32);
}

}  // namespace osprey
