#pragma once
// What every communicator must do, as functions of a communicator: run by SelfComm and ThreadComm in
// communicator_test.cpp, by MpiComm under mpirun in mpi/mpi_main.cpp, and by NcclComm on tensors of its GPU
// (on_device.h) in nccl_comm_test.cpp.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "framework/parallel/collective.h"

namespace osprey::comm_cases {

/// Contributions of many magnitudes, so that another order of addition gives other bits.
inline float contribution(int rank, int64_t i) {
  const auto hash = static_cast<uint32_t>(i * 2654435761 + rank * 40503) * 2246822519u;
  return std::ldexp(static_cast<float>(static_cast<int32_t>(hash ^ hash >> 15)),
                    static_cast<int>((i * 7 + rank * 3) % 20) - 41);
}

/// The contract of the sums, written down plainly.
inline float expected_sum(int size, int64_t i, DType wire) {
  float sum = 0;
  for (int r = 0; r < size; ++r) {
    float v = contribution(r, i);
    if (wire == DType::bf16 && size > 1) v = to_float(to_bf16(v));
    sum = r == 0 ? v : sum + v;
  }
  return sum;
}

inline std::vector<float> contributions(int rank, int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] = contribution(rank, i);
  return v;
}

template <class T>
Tensor tensor_of(std::vector<T>& v, DType dtype = DTypeOf<T>::value) {
  return make_tensor(v.data(), {std::ssize(v)}, dtype);
}

inline void expect_sums(const std::vector<float>& got, int64_t begin, int64_t end, int size, DType wire) {
  for (int64_t i = begin; i < end; ++i) {
    const float want = expected_sum(size, i, wire), is = got[static_cast<size_t>(i)];
    ASSERT_EQ(0, std::memcmp(&want, &is, 4)) << "element " << i << ": " << is << " instead of " << want;
  }
}

inline void all_reduce_is_the_rank_order_sum(Communicator& comm) {
  for (const DType wire : {DType::f32, DType::bf16})
    for (const int64_t n : {0, 1, 7, 16, 1000, 40'003, 1'500'001}) {
      auto v = contributions(comm.rank(), n);
      comm.all_reduce(tensor_of(v), wire);
      expect_sums(v, 0, n, comm.size(), wire);
    }
}

inline void all_reduce_of_integers_wraps(Communicator& comm) {
  for (const size_t n : {3u, 70'000u}) {
    std::vector<int32_t> v(n, std::numeric_limits<int32_t>::max());
    comm.all_reduce(tensor_of(v), DType::i32);
    const auto want = static_cast<int32_t>(0x7fffffffu * static_cast<uint32_t>(comm.size()));
    EXPECT_EQ(v, std::vector<int32_t>(n, want));
  }
}

inline void all_reduce_of_doubles_is_the_rank_order_sum(Communicator& comm) {
  for (const int64_t n : {1, 8, 20'001}) {
    std::vector<double> v(static_cast<size_t>(n)), want(v.size());
    const auto value = [](int r, int64_t i) { return static_cast<double>(contribution(r, i)) / 3; };
    for (int64_t i = 0; i < n; ++i) {
      v[static_cast<size_t>(i)] = value(comm.rank(), i);
      for (int r = 0; r < comm.size(); ++r) want[static_cast<size_t>(i)] += value(r, i);
    }
    comm.all_reduce(tensor_of(v), DType::f64);
    EXPECT_EQ(v, want);
  }
}

/// Uneven pieces with gaps, several for one owner, empty ones.
inline std::vector<Piece> odd_pieces(int size, int64_t n) {
  std::vector<Piece> pieces;
  int64_t at = 0;
  for (int64_t k = 0; at < n; ++k) {
    const int64_t length = std::min(n - at, k % 5 == 3 ? 0 : (k * k * 37) % 9001 + 1);
    pieces.push_back({static_cast<int>(k * 5 / 2 % size), at, at + length});
    at += length + k % 3;
  }
  return pieces;
}

inline void reduce_scatter_gives_owners_the_sum(Communicator& comm) {
  for (const DType wire : {DType::f32, DType::bf16})
    for (const int64_t n : {1, 100, 200'000, 2'600'000}) {
      const auto pieces =
          n > 1'000'000 ? std::vector<Piece>{{comm.size() - 1, 5, n}} : odd_pieces(comm.size(), n);
      auto v = contributions(comm.rank(), n);
      comm.reduce_scatter(tensor_of(v), pieces, wire);
      for (const Piece& p : pieces)
        if (p.owner == comm.rank()) expect_sums(v, p.begin, p.end, comm.size(), wire);
    }
}

template <class T>
void expect_all_gather(Communicator& comm, int64_t n, T (*value)(int owner, int64_t i)) {
  const auto pieces = odd_pieces(comm.size(), n);
  std::vector<T> v(static_cast<size_t>(n)), want;
  for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] = value(comm.rank(), i);
  want = v;
  for (const Piece& p : pieces)
    for (int64_t i = p.begin; i < p.end; ++i) want[static_cast<size_t>(i)] = value(p.owner, i);
  comm.all_gather(tensor_of(v), pieces);
  EXPECT_EQ(0, std::memcmp(v.data(), want.data(), v.size() * sizeof(T)));
}

inline void all_gather_copies_pieces_of_any_type(Communicator& comm) {
  expect_all_gather<float>(comm, 300'000, [](int r, int64_t i) { return contribution(r, i); });
  expect_all_gather<bf16>(comm, 30'001, [](int r, int64_t i) { return to_bf16(contribution(r, i)); });
  expect_all_gather<int32_t>(comm, 77, [](int r, int64_t i) { return static_cast<int32_t>(i * 10 + r); });
}

inline void local_ranks_count_the_ranks_of_a_host(Communicator& comm) {
  EXPECT_GE(comm.local_rank(), 0);
  EXPECT_LT(comm.local_rank(), comm.local_size());
  EXPECT_LE(comm.local_size(), comm.size());
  EXPECT_LE(comm.local_rank(), comm.rank());
}

inline void broadcast_copies_from_any_root(Communicator& comm) {
  for (int root = 0; root < comm.size(); ++root) {
    auto v = contributions(comm.rank(), 1234 + root);
    comm.broadcast(tensor_of(v), root);
    EXPECT_EQ(v, contributions(root, 1234 + root));
  }
}

inline void maxima_and_sums_of_doubles(Communicator& comm) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  const int last = comm.size() - 1;
  double values[] = {comm.rank() * 1.5, -inf, comm.rank() == last ? nan : 1.0, comm.rank() == 0 ? nan : 1.0};
  comm.max(values);
  EXPECT_EQ(values[0], last * 1.5);
  EXPECT_EQ(values[1], -inf);
  EXPECT_TRUE(std::isnan(values[2]) && std::isnan(values[3]));
  double sums[] = {1e17 * (comm.rank() == 0), 1.0 + comm.rank()};
  comm.sum(sums);
  double want = 0;
  for (int r = 0; r < comm.size(); ++r) want += 1.0 + r;
  EXPECT_EQ(sums[0], 1e17);
  EXPECT_EQ(sums[1], want);
}

inline void strings_arrive_in_rank_order(Communicator& comm) {
  const auto text = [](int r) {
    return std::string(static_cast<size_t>(r) * 1000, static_cast<char>('a' + r)) + '\0';
  };
  const auto all = comm.gather_strings(text(comm.rank()));
  ASSERT_EQ(std::ssize(all), comm.size());
  for (int r = 0; r < comm.size(); ++r) EXPECT_EQ(all[static_cast<size_t>(r)], text(r));
  EXPECT_EQ(comm.gather_strings(""), std::vector<std::string>(static_cast<size_t>(comm.size())));
}

inline void a_duplicate_works_beside_the_original(Communicator& comm) {
  const auto other = comm.duplicate();
  EXPECT_EQ(other->rank(), comm.rank());
  EXPECT_EQ(other->size(), comm.size());
  constexpr int64_t n = 50'000;
  auto in_thread = contributions(comm.rank(), n);
  std::thread thread([&] {
    for (int i = 0; i < 20; ++i) {
      in_thread = contributions(comm.rank(), n);
      other->all_reduce(tensor_of(in_thread), DType::bf16);
    }
  });
  auto here = contributions(comm.rank(), n);
  for (int i = 0; i < 20; ++i) {
    here = contributions(comm.rank(), n);
    comm.all_reduce(tensor_of(here), DType::f32);
  }
  thread.join();
  expect_sums(in_thread, 0, n, comm.size(), DType::bf16);
  expect_sums(here, 0, n, comm.size(), DType::f32);
}

/// The message of the Error that `body` throws; empty when it throws none.
template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline void expect_words(const std::string& message, std::initializer_list<const char*> words) {
  for (const char* word : words)
    EXPECT_NE(message.find(word), std::string::npos) << "no \"" << word << "\" in: " << message;
}

inline void different_counts_are_one_error_on_all_ranks(Communicator& comm) {
  if (comm.size() == 1) return;
  const int odd = comm.size() - 1;
  auto v = contributions(comm.rank(), comm.rank() == odd ? 12 : 10);
  const auto message = error_of([&] { comm.all_reduce(tensor_of(v), DType::f32); });
  const std::string who = fmt::format("rank {} is", odd);
  expect_words(message,
               {"[all_reduce]", who.c_str(), "all_reduce of 12 f32", "rank 0 is", "all_reduce of 10 f32"});
  comm.barrier();  // and the communicator is still in step
}

inline void different_collectives_are_one_error_on_all_ranks(Communicator& comm) {
  if (comm.size() == 1) return;
  auto v = contributions(comm.rank(), 10);
  const auto message = error_of([&] {
    if (comm.rank() == 0)
      comm.barrier();
    else
      comm.broadcast(tensor_of(v), 0);
  });
  expect_words(message, {"rank 1 is", "broadcast of 10 f32 from rank 0", "rank 0 is", "barrier of 0"});
  const auto wires =
      error_of([&] { comm.all_reduce(tensor_of(v), comm.rank() == 0 ? DType::f32 : DType::bf16); });
  expect_words(wires, {"all_reduce of 10 f32 as bf16"});
  const std::vector<Piece> pieces{{0, comm.rank() == 0 ? 1 : 2, 5}};
  expect_words(error_of([&] { comm.all_gather(tensor_of(v), pieces); }), {"the pieces differ"});
  comm.barrier();
}

inline void bad_arguments_are_refused(Communicator& comm) {
  auto v = contributions(comm.rank(), 10);
  std::vector<bf16> halves(10);
  std::vector<int32_t> integers(10);
  const int size = comm.size();
  const auto gather = [&](std::vector<Piece> p) {
    return error_of([&] { comm.all_gather(tensor_of(v), p); });
  };
  expect_words(gather({{size, 0, 1}}), {"[all_gather]", "belongs to rank"});
  expect_words(gather({{0, 4, 11}}), {"ascend inside f32 (10)", "[4, 11)"});
  expect_words(gather({{0, 4, 8}, {0, 7, 9}}), {"[7, 9) after 8"});
  expect_words(error_of([&] { comm.broadcast(tensor_of(v), size); }), {"[broadcast]", "root must be below"});
  expect_words(error_of([&] { comm.all_reduce(tensor_of(halves), DType::bf16); }),
               {"bf16 (10) sent as bf16"});
  expect_words(error_of([&] { comm.all_reduce(tensor_of(integers), DType::f32); }), {"i32 (10) sent as f32"});
  expect_words(error_of([&] {
                 comm.all_reduce(tensor_of(v).view({5, 2}).columns(0, 1), DType::f32);
               }),
               {"contiguous"});
  std::vector<double> doubles(10);
  expect_words(error_of([&] { comm.all_reduce(tensor_of(doubles), DType::f32); }), {"f64 (10) sent as f32"});
  expect_words(error_of([&] { comm.all_reduce(make_tensor(nullptr, {4}, DType::f32), DType::f32); }),
               {"without memory"});
}

struct Case {
  const char* name;
  void (*run)(Communicator&);
};

inline const Case kCases[] = {
    {"AllReduceIsTheRankOrderSum", all_reduce_is_the_rank_order_sum},
    {"AllReduceOfIntegersWraps", all_reduce_of_integers_wraps},
    {"AllReduceOfDoublesIsTheRankOrderSum", all_reduce_of_doubles_is_the_rank_order_sum},
    {"ReduceScatterGivesOwnersTheSum", reduce_scatter_gives_owners_the_sum},
    {"AllGatherCopiesPiecesOfAnyType", all_gather_copies_pieces_of_any_type},
    {"BroadcastCopiesFromAnyRoot", broadcast_copies_from_any_root},
    {"LocalRanksCountTheRanksOfAHost", local_ranks_count_the_ranks_of_a_host},
    {"MaximaAndSumsOfDoubles", maxima_and_sums_of_doubles},
    {"StringsArriveInRankOrder", strings_arrive_in_rank_order},
    {"ADuplicateWorksBesideTheOriginal", a_duplicate_works_beside_the_original},
    {"DifferentCountsAreOneErrorOnAllRanks", different_counts_are_one_error_on_all_ranks},
    {"DifferentCollectivesAreOneErrorOnAllRanks", different_collectives_are_one_error_on_all_ranks},
    {"BadArgumentsAreRefused", bad_arguments_are_refused},
};

}  // namespace osprey::comm_cases
