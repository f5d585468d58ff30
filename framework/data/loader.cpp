#include "framework/data/loader.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "framework/data/batch_rows.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

BatchRows rows_of(const DataSpec& spec, const BatchView& batch) {
  return BatchRows::of(batch, spec.sequence_len,
                       spec.documents_apart() ? BatchRows::Documents::apart : BatchRows::Documents::joined);
}

/// Fills one row from `available` <= T + 1 tokens of the order, the rest with `filler`, and returns
/// its number of targets.
int64_t fill_row(const TokenStream& stream, const DocumentOrder& order, int64_t begin, int64_t available,
                 int32_t filler, std::vector<int32_t>& scratch, const BatchRows& row) {
  const int64_t T = row.tokens;
  int64_t at = 0, document_begin = 0;
  order.pieces(begin, available, [&](int64_t document, int64_t offset, int64_t tokens) {
    stream.read(document, offset,
                std::span(scratch).subspan(static_cast<size_t>(at), static_cast<size_t>(tokens)));
    if (row.start) row.mark_document(at, at + tokens);
    document_begin = at;
    at += tokens;
  });
  std::fill(scratch.begin() + at, scratch.end(), filler);
  if (row.start)
    row.mark_document(at, T);
  else
    std::iota(row.position, row.position + T, 0);
  std::copy(scratch.begin(), scratch.begin() + T, row.token);

  int64_t targets = 0;
  for (int64_t i = 0; i < T; ++i) {
    // Without attention across documents, the end of one cannot know how the next begins.
    const bool crosses = row.start && (i + 1 < T ? row.start[i + 1] != row.start[i] : document_begin == T);
    const bool target = i + 1 < available && !crosses;
    row.target[i] = target ? scratch[static_cast<size_t>(i) + 1] : -1;
    targets += target;
  }
  return targets;
}

std::vector<std::string> paths(const std::vector<SourceSpec>& sources) {
  std::vector<std::string> all;
  for (const SourceSpec& source : sources) all.push_back(source.path);
  return all;
}

}  // namespace

Loader::Loader(const DataSpec& spec, const Tokenizer& tokenizer, const Setup& setup)
    : spec_(spec), setup_(setup) {
  require(setup.global_rows > 0, "loader", "a step must have rows, got {}", setup.global_rows);
  require(!spec.train.empty(), "data", "data.train names no source");
  std::vector<double> weights;
  for (const SourceSpec& source_spec : spec.train) {
    const size_t number = sources_.size();
    Source& source = sources_.emplace_back(source_spec, tokenizer, setup.vocab_size);
    const int64_t tokens = source.stream.tokens();
    require(tokens > spec.sequence_len, "data",
            "{} holds {} tokens, fewer than the {} of one sequence and its last target; give more "
            "data or a smaller "
            "data.sequence_len",
            source_spec.path, tokens, spec.sequence_len + 1);
    source.windows = static_cast<uint64_t>((tokens - 1) / spec.sequence_len);
    source.document_shuffle = stream_of(fmt::format("documents of source {}", number));
    source.window_shuffle = stream_of(fmt::format("windows of source {}", number));
    weights.push_back(source_spec.weight.value_or(static_cast<double>(source.windows)));
  }
  mixture_.emplace(weights, setup.seed);
  scratch_.resize(static_cast<size_t>(spec.sequence_len + 1));
}

Loader::Window Loader::window(uint64_t sample) {
  const Mixture::Pick pick = (*mixture_)(sample);
  Source& source = sources_[pick.source];
  const uint64_t number = pick.index / source.windows;
  Epoch& epoch = source.epochs[number % 2];
  if (epoch.number != number) {
    const auto documents = static_cast<uint64_t>(source.stream.documents());
    epoch.order.build(Permutation(documents, setup_.seed, source.document_shuffle, number));
    epoch.windows = Permutation(source.windows, setup_.seed, source.window_shuffle, number);
    epoch.number = number;
  }
  const auto at = static_cast<int64_t>(epoch.windows(pick.index % source.windows));
  return {&source, &epoch.order, at * spec_.sequence_len};
}

int64_t Loader::batch(int64_t step, int64_t micro_step, int64_t rank, int64_t ranks, const BatchView& into) {
  const BatchRows rows = rows_of(spec_, into);
  require(step >= 0, "loader", "no such step: {}", step);
  const int64_t first = first_row(setup_.global_rows, micro_step, rank, ranks, rows.count);
  int64_t targets = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    const Window w = window(static_cast<uint64_t>(step * setup_.global_rows + first + r));
    targets +=
        fill_row(w.source->stream, *w.order, w.begin, spec_.sequence_len + 1, 0, scratch_, rows.row(r));
  }
  return targets;
}

std::vector<DocumentUse> Loader::documents(int64_t step) {
  std::vector<DocumentUse> uses;
  for (int64_t r = 0; r < setup_.global_rows; ++r) {
    const Window w = window(static_cast<uint64_t>(step * setup_.global_rows + r));
    w.order->pieces(w.begin, spec_.sequence_len + 1, [&](int64_t document, int64_t offset, int64_t tokens) {
      const TokenStream::Place place = w.source->stream.place(document);
      uses.push_back({r, place.shard->prefix(), place.document, offset, tokens});
    });
  }
  return uses;
}

int64_t Loader::rows(double epochs) {
  uint64_t windows = 0;
  for (const Source& source : sources_) windows += source.windows;
  return std::max<int64_t>(1, std::llround(epochs * static_cast<double>(windows)));
}

int64_t Loader::tokens() const {
  int64_t total = 0;
  for (const Source& source : sources_) total += source.stream.tokens();
  return total;
}

ValidationLoader::ValidationLoader(const DataSpec& spec, const Tokenizer& tokenizer, int64_t vocab_size,
                                   int64_t max_tokens)
    : spec_(spec),
      stream_(paths(spec.validation), tokenizer, vocab_size),
      order_(stream_),
      eos_id_(tokenizer.eos_id()),
      scratch_(static_cast<size_t>(spec.sequence_len + 1)) {
  require(!spec.validation.empty(), "data",
          "data.validation names no source; give the shards of held-out text");
  require(stream_.tokens() >= 2, "data",
          "{} holds {} tokens, nothing to predict; write more with osprey prepare "
          "--validation-fraction",
          spec.validation.front().path, stream_.tokens());
  order_.build({});
  const int64_t targets = std::min(stream_.tokens() - 1, max_tokens);
  rows_ = (targets + spec.sequence_len - 1) / spec.sequence_len;
}

int64_t ValidationLoader::batch(int64_t first, const BatchView& into) {
  const BatchRows rows = rows_of(spec_, into);
  require(first >= 0, "loader", "no such row: {}", first);
  int64_t targets = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t begin = (first + r) * spec_.sequence_len;
    const int64_t available =
        first + r < rows_ ? std::min(spec_.sequence_len + 1, stream_.tokens() - begin) : int64_t{0};
    targets += fill_row(stream_, order_, begin, available, eos_id_, scratch_, rows.row(r));
  }
  return targets;
}

}  // namespace osprey
