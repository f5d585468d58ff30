#include "framework/data/instruction_set.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <optional>
#include <thread>

#include "framework/data/json_records.h"
#include "framework/files/mapped_file.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"
#include "kernels/numerics/random.h"

namespace osprey {
namespace {

constexpr size_t kBatchRows = 4096;
constexpr const char* kOverlong = "it is longer than data.sequence_len";

/// A row on its way: read and encoded by any thread, judged in order by one.
struct Work {
  JsonRecord record;
  TokenRow tokens;
  std::optional<DroppedRow> dropped;
  std::exception_ptr problem;
};

void in_parallel(int threads, size_t count, const std::function<void(size_t)>& each) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) each(i);
  };
  std::vector<std::jthread> others;
  for (size_t i = 1; i < std::min(static_cast<size_t>(threads), count); ++i) others.emplace_back(work);
  work();
}

bool truncates(TokenRow& row, const DataSpec& spec) {
  const auto most = static_cast<size_t>(spec.sequence_len);
  if (spec.overlong != DataSpec::Overlong::truncate || row.tokens.size() <= most) return false;
  row.tokens.resize(most);
  row.trained.resize(most);
  return true;
}

/// Why an encoded row is not used; nothing when it is.
std::optional<DroppedRow> problem_of(const TokenRow& row, const DataSpec& spec, int64_t vocab_size) {
  const auto length = static_cast<int64_t>(row.tokens.size());
  if (length > spec.sequence_len)
    return DroppedRow{kOverlong, fmt::format("{} tokens, {} fit", length, spec.sequence_len)};
  for (const int32_t token : row.tokens)
    if (token >= vocab_size)
      return DroppedRow{"a token is outside the vocabulary", fmt::format("{} of {}", token, vocab_size)};
  if (std::none_of(row.trained.begin(), row.trained.end(), [](uint8_t t) { return t != 0; }))
    return DroppedRow{"nothing in it is learnt", {}};
  return {};
}

class Reader {
 public:
  Reader(const SourceSpec& source, const DataSpec& spec, const InstructionSetup& setup, InstructionSet& kept,
         InstructionSet* held_out, InstructionCounts& counts)
      : source_(source), spec_(spec), setup_(setup), kept_(kept), held_out_(held_out), counts_(counts) {}

  void read(const std::string& path) {
    const MappedFile file(path);
    const std::string_view bytes(reinterpret_cast<const char*>(file.data()),
                                 static_cast<size_t>(file.size_bytes()));
    JsonRecords records(bytes, path);
    InstructionFormat format = source_.format;
    std::vector<Work> batch(kBatchRows);
    for (size_t count = kBatchRows; count == kBatchRows;) {
      count = 0;
      while (count < kBatchRows && records.next(batch[count].record)) ++count;
      if (count > 0 && format == InstructionFormat::automatic)
        format = sniff_format(where(path, batch[0]), batch[0].record.text);
      if (count > 0) counts_.formats.insert(format);
      in_parallel(setup_.threads, count, [&](size_t i) { encode(path, format, batch[i]); });
      for (size_t i = 0; i < count; ++i) judge(path, batch[i]);
    }
  }

 private:
  static std::string where(const std::string& path, const Work& work) {
    return fmt::format("{}:{}", path, work.record.line);
  }

  void encode(const std::string& path, InstructionFormat format, Work& work) const {
    work.tokens = {};
    work.dropped.reset();
    work.problem = nullptr;
    try {
      auto row = parse_row(where(path, work), work.record.text, format);
      if (auto* dropped = std::get_if<DroppedRow>(&row)) {
        work.dropped = std::move(*dropped);
        return;
      }
      try {
        work.tokens = encode_row(std::get<InstructionRow>(row), setup_, spec_);
      } catch (const Error& e) {
        work.dropped = DroppedRow{"the template refuses it", e.what()};
      }
    } catch (...) {
      work.problem = std::current_exception();
    }
  }

  void judge(const std::string& path, Work& work) {
    if (work.problem) std::rethrow_exception(work.problem);
    const auto number = static_cast<uint64_t>(counts_.rows++);
    const bool cut = !work.dropped && truncates(work.tokens, spec_);
    if (!work.dropped) work.dropped = problem_of(work.tokens, spec_, setup_.vocab_size);
    if (work.dropped) return drop(where(path, work), *work.dropped);
    counts_.truncated += cut;
    static const uint64_t stream = stream_of("rows held out");
    const bool out =
        held_out_ != nullptr && static_cast<double>(random_u64(setup_.seed, stream, number) >> 11) * 0x1p-53 <
                                    spec_.validation_fraction;
    if (out) {
      held_out_->add(work.tokens);
      ++counts_.held_out;
      return;
    }
    kept_.add(work.tokens);
    ++counts_.kept;
    counts_.tokens += static_cast<int64_t>(work.tokens.tokens.size());
    counts_.trained_tokens += std::count(work.tokens.trained.begin(), work.tokens.trained.end(), 1);
  }

  void drop(const std::string& where, const DroppedRow& row) {
    const std::string detail = row.detail.empty() ? "" : ": " + row.detail;
    const bool overlong = row.reason == kOverlong;
    require(!spec_.strict, where, "{}{}; mend the row, or leave such rows out with data.strict: false",
            row.reason, detail);
    require(!overlong || spec_.overlong != DataSpec::Overlong::error, where,
            "{}{}; raise data.sequence_len, or set data.overlong to drop or truncate", row.reason, detail);
    InstructionCounts::Dropped& entry = counts_.dropped[row.reason];
    if (entry.rows++ == 0) entry.first = where + detail;
  }

  const SourceSpec& source_;
  const DataSpec& spec_;
  const InstructionSetup& setup_;
  InstructionSet& kept_;
  InstructionSet* held_out_;
  InstructionCounts& counts_;
};

std::vector<ChatPiece> pieces_of(const std::vector<Passage>& passages, const Tokenizer& tokenizer) {
  std::vector<ChatPiece> pieces;
  if (tokenizer.adds_bos() && tokenizer.bos_id()) pieces.push_back({"", tokenizer.bos_id(), false});
  for (const Passage& p : passages) pieces.push_back({p.text, {}, p.train});
  if (passages.back().train) pieces.push_back({"", tokenizer.eos_id(), true});
  return pieces;
}

}  // namespace

void InstructionSet::add(const TokenRow& row) {
  begin_.push_back(static_cast<int64_t>(tokens_.size()));
  lengths_.push_back(static_cast<int32_t>(row.tokens.size()));
  tokens_.insert(tokens_.end(), row.tokens.begin(), row.tokens.end());
  trained_.insert(trained_.end(), row.trained.begin(), row.trained.end());
}

TokenRow encode_row(const InstructionRow& row, const InstructionSetup& setup, const DataSpec& spec) {
  TokenRow tokens;
  if (const auto* given = std::get_if<TokenRow>(&row))
    tokens = *given;
  else if (const auto* passages = std::get_if<std::vector<Passage>>(&row))
    tokens = encode_pieces(setup.tokenizer, pieces_of(*passages, setup.tokenizer));
  else
    tokens = encode_pieces(
        setup.tokenizer, setup.chat_template.render(std::get<Conversation>(row), ChatTemplate::Ask::nothing));
  if (spec.train_on_inputs) std::fill(tokens.trained.begin(), tokens.trained.end(), 1);
  if (!tokens.trained.empty()) tokens.trained.front() = 0;  // nothing stands before it
  return tokens;
}

void read_instructions(const SourceSpec& source, const DataSpec& spec, const InstructionSetup& setup,
                       InstructionSet& kept, InstructionSet* held_out, InstructionCounts& counts) {
  require(setup.tokenizer.vocab_size() <= setup.vocab_size, "data",
          "the tokenizer {} has {} tokens but model.vocab_size is {}; give the tokenizer of the model",
          spec.tokenizer, setup.tokenizer.vocab_size(), setup.vocab_size);
  const std::vector<std::string> paths = glob_paths(source.path);
  require(!paths.empty(), "data", "no file matches {}; check the path", source.path);
  Reader reader(source, spec, setup, kept, held_out, counts);
  for (const std::string& path : paths) reader.read(path);
}

}  // namespace osprey
