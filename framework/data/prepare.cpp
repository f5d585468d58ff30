#include "framework/data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "framework/data/idx.h"
#include "framework/data/line_sample.h"
#include "framework/data/shards.h"
#include "framework/files/file.h"
#include "framework/files/json.h"
#include "framework/files/mapped_file.h"
#include "kernels/core/check.h"
#include "kernels/core/queue.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t kGroupBytes = int64_t{4} << 20;  // of text encoded at a time

std::vector<std::string> expand_inputs(const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    std::error_code ignored;
    const auto found = fs::exists(input, ignored) ? std::vector<std::string>{input} : glob_paths(input);
    require(!found.empty(), "prepare", "no file matches '{}'; check the path", input);
    for (const std::string& file : found)
      require(!fs::is_directory(file, ignored), "prepare",
              "{} is a directory; name the files in it, as in '{}/*'", file, file);
    files.insert(files.end(), found.begin(), found.end());
  }
  require(!files.empty(), "prepare", "no input is given; name files of text or JSON lines");
  return files;
}

/// All that decides what the output is.
ordered_json settings_of(const PrepareOptions& options, const std::vector<std::string>& files,
                         const std::string& fingerprint) {
  ordered_json json;
  for (const std::string& file : files)
    json["inputs"].push_back({{"path", file},
                              {"bytes", fs::file_size(file)},
                              {"changed", fs::last_write_time(file).time_since_epoch().count()}});
  const TextOptions& text = options.text;
  json["format"] = static_cast<int>(text.format);
  json["documents"] = static_cast<int>(text.documents);
  json["document_separator"] = text.separator.value_or("");
  json["text_key"] = text.text_key;
  json["encoding"] = static_cast<int>(text.encoding);
  json["bad"] = static_cast<int>(text.bad);
  json["tokenizer"] = fingerprint;
  if (options.training) {
    json["tokenizer_kind"] = options.training->kind == SentencepieceTraining::Kind::bpe ? "bpe" : "unigram";
    json["vocab_size"] = options.training->vocab_size;
    json["tokenizer_lines"] = options.tokenizer_lines;
  }
  json["validation_fraction"] = options.validation_fraction;
  json["shard_tokens"] = options.shard_tokens;
  json["seed"] = options.seed;
  return json;
}

ordered_json summary_json(const PrepareSummary& summary) {
  ordered_json json = {{"tokenizer_fingerprint", summary.tokenizer_fingerprint},
                       {"vocab_size", summary.vocab_size},
                       {"skipped", summary.skipped},
                       {"first_skipped", summary.first_skipped}};
  for (const SplitSummary& split : summary.splits)
    json["splits"].push_back({{"name", split.name},
                              {"shards", split.shards},
                              {"documents", split.documents},
                              {"tokens", split.tokens},
                              {"text_bytes", split.text_bytes}});
  return json;
}

/// The summary of an output that is there already, or nothing when there is none.
std::optional<PrepareSummary> existing_output(const PrepareOptions& options, const ordered_json& settings) {
  std::error_code ignored;
  if (!fs::exists(options.output, ignored)) return {};
  require(options.existing == PrepareOptions::Existing::keep, "prepare",
          "{} exists; remove it, choose another --output, or give --if-missing to keep it", options.output);
  const std::string path = options.output + "/prepare.json";
  require(fs::exists(path, ignored), "prepare",
          "{} exists, but was not written by osprey prepare (no prepare.json); choose another --output",
          options.output);
  const nlohmann::json there = read_json(path, int64_t{1} << 26, /*most_depth=*/8);
  try {
    for (const auto& [key, value] : settings.items())
      require(there.at("settings").contains(key) && nlohmann::json(value) == there["settings"][key],
              "prepare", "{} was prepared with another `{}`; remove it or choose another --output",
              options.output, key);
    require(there.at("settings").size() == settings.size(), "prepare",
            "{} was prepared with other settings; remove it or choose another --output", options.output);
    for (const auto& file : there.at("files")) {
      const std::string name = options.output + "/" + file.at("name").get<std::string>();
      require(fs::exists(name, ignored) && fs::file_size(name, ignored) == file.at("bytes").get<uintmax_t>(),
              "prepare",
              "{} is missing or of another size than when it was written; remove {} and prepare it "
              "again",
              name, options.output);
    }
    const auto& found = there.at("summary");
    PrepareSummary summary;
    summary.tokenizer_fingerprint = found.at("tokenizer_fingerprint");
    summary.vocab_size = found.at("vocab_size");
    summary.skipped = found.at("skipped");
    summary.first_skipped = found.at("first_skipped");
    for (const auto& split : found.at("splits"))
      summary.splits.push_back({split.at("name"), split.at("shards"), split.at("documents"),
                                split.at("tokens"), split.at("text_bytes")});
    summary.already_there = true;
    return summary;
  } catch (const nlohmann::json::exception&) {
    fail("prepare", "{} is damaged; remove {} and prepare it again", path, options.output);
  }
}

/// OUT.partial, ours alone while this lives; removed unless published.
class Workplace {
 public:
  explicit Workplace(const std::string& output) : output_(output), path_(output + ".partial") {
    std::error_code error;
    fs::create_directories(path_, error);
    require(!error, "prepare", "cannot create {}: {}; choose another --output", path_, error.message());
    lock_ = ::open((path_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    require(lock_ >= 0, "prepare", "cannot write into {}; choose another --output", path_);
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
      ::close(lock_);
      fail("prepare", "another osprey prepare is writing {}; wait for it or choose another --output", output);
    }
    // What a run that was killed left behind.
    for (const auto& entry : fs::directory_iterator(path_))
      if (entry.path().filename() != "lock") fs::remove_all(entry.path());
  }
  Workplace(const Workplace&) = delete;
  Workplace& operator=(const Workplace&) = delete;
  ~Workplace() {
    std::error_code ignored;
    if (!published_) fs::remove_all(path_, ignored);
    ::close(lock_);
  }

  const std::string& path() const { return path_; }
  void publish() {
    sync_directory(path_);
    fs::remove(path_ + "/lock");
    std::error_code why;
    fs::rename(path_, output_, why);
    require(!why, "prepare", "cannot rename {} to {}: {}", path_, output_, why.message());
    published_ = true;
    sync_directory(fs::absolute(output_).parent_path());
  }

 private:
  std::string output_, path_;
  int lock_ = -1;
  bool published_ = false;
};

/// One split: shards that are closed when they are full.
class SplitWriter {
 public:
  SplitWriter(std::string directory, std::string name, const Tokenizer& tokenizer, int64_t shard_tokens)
      : directory_(std::move(directory)), tokenizer_(tokenizer), shard_tokens_(shard_tokens) {
    summary_.name = std::move(name);
  }
  void add(std::span<const int32_t> document, int64_t text_bytes) {
    if (!shard_) {
      prefix_ = fmt::format("{}/{}-{:05d}", directory_, summary_.name, summary_.shards++);
      shard_.emplace(prefix_, tokenizer_.vocab_size());
    }
    shard_->add(document);
    ++summary_.documents;
    summary_.tokens += static_cast<int64_t>(document.size());
    summary_.text_bytes += text_bytes;
    if (shard_->tokens() >= shard_tokens_) close();
  }
  void close() {
    if (!shard_) return;
    shard_->finish();
    ShardLabel label = make_label(tokenizer_);
    label.tokens = shard_->tokens();
    label.documents = shard_->documents();
    label.max_token = shard_->max_token();
    write_label(prefix_, label);
    shard_.reset();
  }
  const SplitSummary& summary() const { return summary_; }

 private:
  std::string directory_, prefix_;
  const Tokenizer& tokenizer_;
  int64_t shard_tokens_;
  std::optional<IdxWriter> shard_;
  SplitSummary summary_;
};

class Preparation {
 public:
  Preparation(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress,
              std::vector<std::string> files)
      : options_(options), progress_(progress), files_(std::move(files)) {}

  std::unique_ptr<Tokenizer> train_tokenizer() {
    LineSample sample(options_.tokenizer_lines, kMaxTrainingLineBytes, options_.seed);
    PrepareProgress at{.stage = "reading for the tokenizer"};
    each_document([&](std::string& text) {
      // Held-out text stays held out from the tokenizer too.
      if (!is_validation(at.documents++)) sample.add(text);
      at.text_bytes += static_cast<int64_t>(text.size());
      if (at.documents % 4096 == 0) progress_(at);
    });
    require(at.documents > 0, "prepare", "{} {} no text; nothing to prepare", files_.front(),
            files_.size() > 1 ? fmt::format("and {} more files hold", files_.size() - 1) : "holds");
    at.stage = "training the tokenizer";
    progress_(at);
    return train_sentencepiece(*options_.training, sample.take());
  }

  PrepareSummary encode(const Tokenizer& tokenizer, const std::string& directory) {
    SplitWriter train(directory, "train", tokenizer, options_.shard_tokens);
    SplitWriter validation(directory, "validation", tokenizer, options_.shard_tokens);
    PrepareProgress at{.stage = "encoding"};
    const auto flush = [&] {
      encode_group(tokenizer);
      for (size_t i = 0; i < group_size_; ++i) {
        const auto text_bytes = static_cast<int64_t>(texts_[i].size());
        (is_validation(at.documents++) ? validation : train).add(tokens_[i], text_bytes);
        at.text_bytes += text_bytes;
        at.tokens += static_cast<int64_t>(tokens_[i].size());
      }
      group_size_ = 0;
      progress_(at);
    };
    int64_t group_bytes = 0;
    skipped_ = 0;
    each_document([&](std::string& text) {
      group_bytes += static_cast<int64_t>(text.size());
      if (group_size_ == texts_.size()) texts_.emplace_back();
      texts_[group_size_++].swap(text);
      if (group_bytes < kGroupBytes) return;
      flush();
      group_bytes = 0;
    });
    flush();
    train.close();
    validation.close();
    check(train.summary(), validation.summary());
    PrepareSummary summary;
    summary.splits.push_back(train.summary());
    if (validation.summary().documents > 0) summary.splits.push_back(validation.summary());
    summary.tokenizer_fingerprint = tokenizer.fingerprint();
    summary.vocab_size = tokenizer.vocab_size();
    summary.skipped = skipped_;
    summary.first_skipped = first_skipped_;
    return summary;
  }

 private:
  /// A function of the document's number alone, so that both passes agree.
  bool is_validation(int64_t document) const {
    const uint64_t bits =
        random_u64(options_.seed, stream_of("validation split"), static_cast<uint64_t>(document));
    return static_cast<double>(bits >> 11) * 0x1p-53 < options_.validation_fraction;
  }

  template <class Visit>
  void each_document(const Visit& visit) {
    std::string text;
    for (const std::string& file : files_) {
      TextReader reader(file, options_.text);
      while (reader.next(text)) visit(text);
      if (skipped_ == 0) first_skipped_ = reader.first_skipped();
      skipped_ += reader.skipped();
    }
  }

  /// texts_ to tokens_; which thread takes which document changes nothing.
  void encode_group(const Tokenizer& tokenizer) {
    tokens_.resize(std::max(tokens_.size(), group_size_));
    std::vector<std::exception_ptr> failed(group_size_);
    const Queue queue{.device = {}, .threads = options_.threads};
    parallel_for(queue, static_cast<int64_t>(group_size_), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        try {
          tokens_[at].clear();
          tokenizer.encode(texts_[at], tokens_[at]);
          tokens_[at].push_back(tokenizer.eos_id());
        } catch (...) {
          failed[at] = std::current_exception();
        }
      }
    });
    for (const auto& error : failed)
      if (error) std::rethrow_exception(error);
  }

  void check(const SplitSummary& train, const SplitSummary& validation) const {
    const int64_t documents = train.documents + validation.documents;
    require(documents > 0, "prepare", "{} {} no text; nothing to prepare", files_.front(),
            files_.size() > 1 ? fmt::format("and {} more files hold", files_.size() - 1) : "holds");
    require(train.documents > 0, "prepare",
            "all {} documents fell to validation; lower --validation-fraction, or split the text "
            "into more documents "
            "with --documents",
            documents);
    require(options_.validation_fraction == 0 || validation.documents > 0, "prepare",
            "none of {} documents fell to validation; raise --validation-fraction (0 for none at "
            "all), or split the "
            "text into more documents with --documents",
            documents);
  }

  const PrepareOptions& options_;
  const std::function<void(const PrepareProgress&)>& progress_;
  std::vector<std::string> files_;
  std::vector<std::string> texts_;
  std::vector<std::vector<int32_t>> tokens_;
  size_t group_size_ = 0;
  int64_t skipped_ = 0;
  std::string first_skipped_;
};

void check_options(const PrepareOptions& options) {
  require(!options.output.empty(), "prepare", "no --output directory is given");
  require(options.tokenizer.empty() == options.training.has_value(), "prepare",
          "give one of --tokenizer and --train-tokenizer");
  require(options.validation_fraction >= 0 && options.validation_fraction < 1, "prepare",
          "--validation-fraction must be from 0 to below 1, got {}", options.validation_fraction);
  require(options.shard_tokens > 0, "prepare", "--shard-tokens must be positive, got {}",
          options.shard_tokens);
  require(options.tokenizer_lines > 0, "prepare", "--tokenizer-lines must be positive, got {}",
          options.tokenizer_lines);
}

}  // namespace

PrepareSummary prepare(const PrepareOptions& options,
                       const std::function<void(const PrepareProgress&)>& progress) {
  check_options(options);
  const auto files = expand_inputs(options.inputs);
  std::unique_ptr<Tokenizer> tokenizer;
  if (!options.training) tokenizer = load_tokenizer(options.tokenizer);
  const ordered_json settings =
      settings_of(options, files, tokenizer ? tokenizer->fingerprint() : "trained here");
  if (auto there = existing_output(options, settings)) return *there;

  Workplace workplace(options.output);
  Preparation preparation(options, progress, files);
  if (options.training) tokenizer = preparation.train_tokenizer();
  const PrepareSummary summary = preparation.encode(*tokenizer, workplace.path());
  fs::create_directory(workplace.path() + "/tokenizer");
  tokenizer->save(workplace.path() + "/tokenizer");

  ordered_json record = {{"settings", settings}, {"summary", summary_json(summary)}};
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(workplace.path()))
    if (entry.is_regular_file() && entry.path().filename() != "lock")
      names.push_back(fs::relative(entry.path(), workplace.path()).string());
  std::sort(names.begin(), names.end());
  for (const std::string& name : names)
    record["files"].push_back({{"name", name}, {"bytes", fs::file_size(workplace.path() + "/" + name)}});
  write_file(workplace.path() + "/prepare.json", record.dump(2) + "\n");
  workplace.publish();
  return summary;
}

}  // namespace osprey
