#include "framework/data/instruction_loader.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

Packing packing_of(const DataSpec& spec) { return spec.packing ? Packing::first_fit : Packing::alone; }

}  // namespace

int64_t fill_row(const InstructionSet& set, std::span<const int32_t> documents, int32_t filler,
                 const BatchRows& row) {
  std::fill(row.token, row.token + row.tokens, filler);
  std::fill(row.target, row.target + row.tokens, -1);
  int64_t at = 0, targets = 0;
  for (const int32_t document : documents) {
    const auto tokens = set.tokens(document);
    const auto trained = set.trained(document);
    const auto length = static_cast<int64_t>(tokens.size());
    require(at + length <= row.tokens, "loader", "document {} does not fit into its row", document);
    std::copy(tokens.begin(), tokens.end(), row.token + at);
    for (int64_t i = 1; i < length; ++i)
      if (trained[static_cast<size_t>(i)]) {
        row.target[at + i - 1] = tokens[static_cast<size_t>(i)];
        ++targets;
      }
    row.mark_document(at, at + length);
    at += length;
  }
  row.mark_document(at, row.tokens);
  return targets;
}

InstructionLoader::InstructionLoader(const DataSpec& spec, std::vector<InstructionPool> pools,
                                     const Setup& setup)
    : spec_(spec), setup_(setup) {
  require(setup.global_rows > 0, "loader", "a step must have rows, got {}", setup.global_rows);
  require(!pools.empty(), "data", "data.train names no source");
  std::vector<double> weights;
  for (InstructionPool& given : pools) {
    const size_t number = pools_.size();
    require(given.set->size() > 0 && given.set->size() <= INT32_MAX, "data",
            "source {} of data.train has {} rows to train on", number, given.set->size());
    Pool& pool = pools_.emplace_back();
    pool.given = std::move(given);
    pool.document_shuffle = stream_of(fmt::format("instructions of source {}", number));
    pool.row_shuffle = stream_of(fmt::format("packed rows of source {}", number));
    work_out(pool, 0);
    weights.push_back(pool.given.weight.value_or(static_cast<double>(pool.first_row[1])));
  }
  mixture_.emplace(weights, setup.seed);
}

void InstructionLoader::work_out(Pool& pool, uint64_t number) {
  Epoch& epoch = pool.epochs[number % 2];
  const auto documents = static_cast<uint64_t>(pool.given.set->size());
  const Permutation shuffle(documents, setup_.seed, pool.document_shuffle, number);
  std::vector<int32_t> order(documents);
  for (uint64_t i = 0; i < documents; ++i) order[i] = static_cast<int32_t>(shuffle(i));
  epoch.packed = pack(order, pool.given.set->lengths(), spec_.sequence_len, packing_of(spec_));
  epoch.rows = Permutation(static_cast<uint64_t>(epoch.packed.rows()), setup_.seed, pool.row_shuffle, number);
  epoch.number = number;
  if (pool.first_row.size() == number + 1)
    pool.first_row.push_back(pool.first_row.back() + epoch.packed.rows());
}

const InstructionLoader::Epoch& InstructionLoader::epoch(Pool& pool, uint64_t number) {
  if (pool.epochs[number % 2].number != number) work_out(pool, number);
  return pool.epochs[number % 2];
}

InstructionLoader::Row InstructionLoader::row(Pool& pool, int64_t n) {
  // Epochs differ by a few rows, so where one begins is known once those before are packed.
  while (pool.first_row.back() <= n) work_out(pool, pool.first_row.size() - 1);
  const auto after = std::upper_bound(pool.first_row.begin(), pool.first_row.end(), n);
  const auto number = static_cast<uint64_t>(after - pool.first_row.begin() - 1);
  const Epoch& e = epoch(pool, number);
  const uint64_t at = e.rows(static_cast<uint64_t>(n - pool.first_row[number]));
  return {pool.given.set.get(), e.packed.row(static_cast<int64_t>(at))};
}

InstructionLoader::Row InstructionLoader::row(int64_t n) {
  const Mixture::Pick pick = (*mixture_)(static_cast<uint64_t>(n));
  return row(pools_[pick.source], static_cast<int64_t>(pick.index));
}

int64_t InstructionLoader::batch(int64_t step, int64_t micro_step, int64_t rank, int64_t ranks,
                                 const BatchView& into) {
  const BatchRows rows = BatchRows::of(into, spec_.sequence_len, BatchRows::Documents::apart);
  require(step >= 0, "loader", "no such step: {}", step);
  const int64_t first = first_row(setup_.global_rows, micro_step, rank, ranks, rows.count);
  int64_t targets = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    const Row documents = row(step * setup_.global_rows + first + r);
    targets += fill_row(*documents.set, documents.documents, setup_.filler, rows.row(r));
  }
  return targets;
}

int64_t InstructionLoader::rows(double epochs) {
  const auto whole = static_cast<size_t>(epochs);
  double rows = 0;
  for (Pool& pool : pools_) {
    while (pool.first_row.size() < whole + 2) work_out(pool, pool.first_row.size() - 1);
    const int64_t before = pool.first_row[whole], of_this = pool.first_row[whole + 1] - before;
    rows +=
        static_cast<double>(before) + (epochs - static_cast<double>(whole)) * static_cast<double>(of_this);
  }
  return std::max<int64_t>(1, std::llround(rows));
}

InstructionValidation::InstructionValidation(const DataSpec& spec, std::shared_ptr<const InstructionSet> set,
                                             int32_t filler, int64_t max_tokens)
    : spec_(spec), set_(std::move(set)), filler_(filler) {
  spec_.attention_across_documents = false;  // also where training is on token shards
  require(set_->size() > 0 && set_->size() <= INT32_MAX, "data", "there are {} rows to validate on",
          set_->size());
  std::vector<int32_t> order(static_cast<size_t>(set_->size()));
  std::iota(order.begin(), order.end(), 0);
  packed_ = pack(order, set_->lengths(), spec_.sequence_len, packing_of(spec_));
  const int64_t most = max_tokens / spec_.sequence_len + (max_tokens % spec_.sequence_len != 0);
  rows_ = std::min(packed_.rows(), most);
}

int64_t InstructionValidation::batch(int64_t first, const BatchView& into) {
  const BatchRows rows = BatchRows::of(into, spec_.sequence_len, BatchRows::Documents::apart);
  require(first >= 0, "loader", "no such row: {}", first);
  int64_t targets = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    const bool past = first + r >= rows_;
    const auto documents = past ? std::span<const int32_t>() : packed_.row(first + r);
    targets += fill_row(*set_, documents, filler_, rows.row(r));
  }
  return targets;
}

}  // namespace osprey
