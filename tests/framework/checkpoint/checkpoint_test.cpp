#include "framework/checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "framework/files/file.h"
#include "framework/parallel/thread_comm.h"
#include "tests/framework/data/bpe/golden.h"
#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using test::refusal;
using test::TempDir;

/// A run without a model: "w" (6, 10) is cut evenly over ranks, "m" (2, 3) belongs to the last rank.
struct Toy {
  std::vector<float> w = std::vector<float>(60), m = std::vector<float>(6);
  int rank, size;

  Toy(int r, int n) : rank(r), size(n) {}
  int64_t begin() const { return 60 * rank / size; }
  int64_t end() const { return 60 * (rank + 1) / size; }
  void fill(float first) {
    for (size_t i = 0; i < w.size(); ++i) w[i] = first + static_cast<float>(i);
    for (size_t i = 0; i < m.size(); ++i) m[i] = -first - static_cast<float>(i);
  }
  std::vector<NamedPiece> pieces() {
    std::vector<NamedPiece> p = {{"w",
                                  "master",
                                  {6, 10},
                                  begin(),
                                  end(),
                                  make_tensor(w.data() + begin(), {end() - begin()}, DType::f32)}};
    if (rank == size - 1)
      p.push_back({"m", "momentum", {2, 3}, 0, 6, make_tensor(m.data(), {2, 3}, DType::f32)});
    return p;
  }
  std::vector<NamedValue> values() { return {{"w", make_tensor(w.data(), {6, 10}, DType::f32)}}; }
};

Checkpointer::Texts toy_texts() {
  return {"run: {name: toy}\n",
          {"{}", "{}", {{"model.w", {6, 10}, HubTensor::Rule::copy, "w", "", {}}}},
          nullptr,
          "{{ messages[0].content }}"};
}

CheckpointState at_step(int64_t step, int world) {
  CheckpointState s;
  s.step = step;
  s.tokens = step * 100;
  s.world_size = world;
  return s;
}

void save_on(int ranks, const fs::path& dir, const std::vector<int64_t>& steps, int64_t keep = 10) {
  run_thread_ranks(ranks, [&](Communicator& comm) {
    Checkpointer saver(dir, keep, comm, toy_texts());
    Toy toy(comm.rank(), comm.size());
    for (int64_t step : steps) {
      toy.fill(static_cast<float>(step));
      saver.save({}, at_step(step, ranks), toy.pieces(), toy.values());
      toy.fill(-1);  // the copy is what is written
    }
    saver.wait();
  });
}

TEST(Checkpoint, WrittenByAnyNumberOfRanksIsReadByAnyOther) {
  for (int writers : {1, 2, 4}) {
    TempDir dir;
    save_on(writers, dir.path(), {7});
    const auto found = find_checkpoint("auto", dir.path());
    ASSERT_TRUE(found);
    EXPECT_EQ(read_checkpoint_state(*found).tokens, 700);
    for (int readers : {1, 2, 3, 4})
      run_thread_ranks(readers, [&](Communicator& comm) {
        Toy toy(comm.rank(), comm.size());
        toy.fill(1000);
        load_pieces(*found, comm, {}, toy.pieces());
        for (int64_t i = 0; i < 60; ++i)
          ASSERT_EQ(toy.w[static_cast<size_t>(i)],
                    static_cast<float>(i + (i >= toy.begin() && i < toy.end() ? 7 : 1000)));
        ASSERT_EQ(toy.m[5], comm.rank() == comm.size() - 1 ? -12.0f : -1005.0f);
      });
    const SafetensorsModel model(*found);
    std::vector<float> w(60);
    model.read("model.w", make_tensor(w.data(), {60}, DType::f32));
    EXPECT_EQ(w[59], 66.0f);
    EXPECT_EQ(read_file(*found / "recipe.yaml", 1000), "run: {name: toy}\n");
  }
}

TEST(Checkpoint, WhatSeveralRanksHoldIsSavedOnce) {
  TempDir dir;
  run_thread_ranks(3, [&](Communicator& comm) {
    Toy toy(comm.rank(), 3);
    toy.fill(1);
    // All ranks hold "w" whole, as under zero: 0; only the last holds "m".
    std::vector<NamedPiece> pieces = {
        {"w", "master", {6, 10}, 0, 60, make_tensor(toy.w.data(), {60}, DType::f32)}};
    if (comm.rank() == 2) pieces.push_back(toy.pieces().back());
    const auto mine = pieces_to_save(comm, pieces);
    EXPECT_EQ(mine.size(), comm.rank() == 1 ? 0u : 1u);
    Checkpointer saver(dir.path(), 3, comm, toy_texts());
    saver.save({}, at_step(1, 3), mine, toy.values());
    saver.wait();
    load_pieces(dir.path() / checkpoint_name(1), comm, {}, pieces);
  });
}

TEST(Checkpoint, KeepsTheNewestAndResumesFromIt) {
  TempDir dir;
  EXPECT_FALSE(find_checkpoint("auto", dir / "nowhere"));
  save_on(2, dir.path(), {1, 2, 3, 4, 5}, 2);
  const auto all = list_checkpoints(dir.path());
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].step, 4);
  EXPECT_EQ(read_file(all[0].path / "chat_template.jinja", 100), "{{ messages[0].content }}");
  EXPECT_EQ(find_checkpoint("auto", dir.path()), all[1].path);
  EXPECT_EQ(find_checkpoint(all[0].path.string(), dir.path()), all[0].path);
  EXPECT_FALSE(find_checkpoint("none", dir.path()));
  EXPECT_NE(refusal([&] { find_checkpoint("no/such", dir.path()); }).find("no/such"), std::string::npos);
  EXPECT_NE(refusal([&] { find_checkpoint(dir.path().string(), dir.path()); }).find("no complete checkpoint"),
            std::string::npos);
}

TEST(Checkpoint, TheTemplateOfTheRunTakesThePlaceOfTheTokenizers) {
  TempDir dir, tokenizer;
  const std::string words = R"({"bos_token": null, "eos_token": "<|im_end|>"})";
  test::spill_tokenizer(tokenizer.path().string(), test::golden_json("qwen2"));
  write_file(tokenizer / "tokenizer_config.json", words);
  write_file(tokenizer / "chat_template.jinja", "of the tokenizer");
  Checkpointer::Texts texts = toy_texts();
  texts.tokenizer = load_tokenizer(tokenizer.path().string());
  int64_t step = 0;
  for (const char* used : {"of the run", ""}) {
    texts.chat_template = used;
    const auto comm = make_self_comm();
    Checkpointer saver(dir.path(), 10, *comm, texts);
    Toy toy(0, 1);
    saver.save({}, at_step(++step, 1), toy.pieces(), toy.values());
    saver.wait();
    const fs::path saved = dir / checkpoint_name(step);
    EXPECT_EQ(read_file(saved / "chat_template.jinja", 100), *used ? used : "of the tokenizer");
    EXPECT_EQ(read_file(saved / "tokenizer_config.json", 1000), words);
    const auto records = read_manifest(saved);
    verify_files(saved, records);
    EXPECT_EQ(std::count_if(records.begin(), records.end(),
                            [](const FileRecord& r) { return r.name == "chat_template.jinja"; }),
              1);
    EXPECT_EQ(load_tokenizer(saved.string())->fingerprint(), texts.tokenizer->fingerprint());
  }
}

TEST(Checkpoint, ADamagedFileIsNamedOnEveryRank) {
  TempDir dir;
  save_on(2, dir.path(), {1});
  const fs::path c = *find_checkpoint("auto", dir.path());
  const std::string shard = read_file(c / shard_name(1), 100000);
  std::string bad = shard;
  bad[bad.size() - 5] ^= 1;
  std::ofstream(c / shard_name(1), std::ios::binary) << bad;
  std::vector<std::string> messages(3);
  run_thread_ranks(3, [&](Communicator& comm) {
    Toy toy(comm.rank(), comm.size());
    messages[static_cast<size_t>(comm.rank())] = refusal([&] { load_pieces(c, comm, {}, toy.pieces()); });
  });
  EXPECT_NE(messages[0].find("rank-00001.safetensors is damaged"), std::string::npos) << messages[0];
  EXPECT_EQ(messages[0], messages[1]);
  EXPECT_EQ(messages[0], messages[2]);
}

TEST(Checkpoint, AnotherModelIsRefusedBeforeAnythingIsRead) {
  TempDir dir;
  save_on(2, dir.path(), {1});
  run_thread_ranks(2, [&](Communicator& comm) {
    Toy toy(comm.rank(), comm.size());
    toy.fill(50);
    auto pieces = toy.pieces();
    if (comm.rank() == 1) pieces.back().full_shape = {3, 2};
    const std::string message =
        refusal([&] { load_pieces(*find_checkpoint("auto", dir.path()), comm, {}, pieces); });
    EXPECT_NE(message.find("m:momentum is (2, 3) in the checkpoint and (3, 2) here"), std::string::npos)
        << message;
    EXPECT_EQ(toy.w[0], 50.0f);
  });
}

TEST(Checkpoint, AFailureOfOneRankReachesAllAndLeavesTheOldCheckpoint) {
  TempDir dir;
  save_on(2, dir.path(), {1});
  std::vector<std::string> messages(2);
  run_thread_ranks(2, [&](Communicator& comm) {
    Checkpointer saver(dir.path(), 3, comm, toy_texts());
    Toy toy(comm.rank(), comm.size());
    auto pieces = toy.pieces();
    if (comm.rank() == 1) pieces[0].end += 5;  // does not fit its data
    saver.save({}, at_step(2, 2), pieces, toy.values());
    messages[static_cast<size_t>(comm.rank())] = refusal([&] { saver.wait(); });
    EXPECT_NO_THROW(saver.wait()) << "a failure is told once";
    saver.save({}, at_step(3, 2), toy.pieces(), toy.values());
    saver.wait();
    EXPECT_EQ(list_checkpoints(dir.path()).back().step, 3);
  });
  EXPECT_NE(messages[0].find("rank 1"), std::string::npos) << messages[0];
  EXPECT_EQ(messages[0], messages[1]);
  const auto all = list_checkpoints(dir.path());
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].step, 1);
  EXPECT_EQ(all[1].step, 3);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 2)
      << "a leftover stays";
}

TEST(Checkpoint, KilledWhileSavingTheNewestCheckpointLoads) {
  TempDir dir;
  const auto start = std::chrono::steady_clock::now();
  save_on(1, dir.path(), {1});
  // Kills fall anywhere in the first saves of a process, later and later: on a busy machine a save may take
  // much longer than the first one did.
  const auto three =
      3 * std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start);
  int64_t newest = 1, finished = 0;
  for (uint64_t round = 0; round < 25; ++round) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      auto comm = make_self_comm();
      Checkpointer saver(dir.path(), 2, *comm, toy_texts());
      Toy toy(0, 1);
      for (int64_t step = newest + 1;; ++step) {
        toy.fill(static_cast<float>(step));
        saver.save({}, at_step(step, 1), toy.pieces(), toy.values());
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(
        test::FuzzDraws(round).below(static_cast<size_t>(three.count()) * (1 + round / 4))));
    ::kill(pid, SIGKILL);
    int status = 0;
    ::waitpid(pid, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    const auto found = find_checkpoint("auto", dir.path());
    ASSERT_TRUE(found);
    auto comm = make_self_comm();
    Toy toy(0, 1);
    load_pieces(*found, *comm, {}, toy.pieces());
    const int64_t step = read_checkpoint_state(*found).step;
    ASSERT_EQ(toy.w[3], static_cast<float>(step + 3));
    ASSERT_GE(step, newest);
    finished += step > newest;
    newest = step;
  }
  EXPECT_GT(finished, 0) << "no save ever finished; the test tests nothing";
}

TEST(CheckpointState, RoundTripsAndRefusesAnotherFormat) {
  TempDir dir;
  CheckpointState s = at_step(12, 3);
  s.seed = -4;
  s.recipe_hash = "00ff";
  std::ofstream(dir / "state.yaml") << dump_spec(s);
  const CheckpointState back = read_checkpoint_state(dir.path());
  EXPECT_EQ(back.step, 12);
  EXPECT_EQ(back.seed, -4);
  EXPECT_EQ(back.world_size, 3);
  EXPECT_EQ(back.recipe_hash, "00ff");
  std::ofstream(dir / "state.yaml") << "format: 2\n";
  EXPECT_NE(refusal([&] { read_checkpoint_state(dir.path()); }).find("state.yaml"), std::string::npos);
}

TEST(CheckpointSpec, HasDefaultsAndRefusesNonsense) {
  const auto spec = read_spec<CheckpointSpec>("{every_steps: null, on_error: stop}", "r.yaml");
  EXPECT_FALSE(spec.every_steps);
  EXPECT_EQ(spec.on_error, CheckpointSpec::OnError::stop);
  EXPECT_EQ(spec.keep, 3);
  for (const char* bad : {"keep: 0", "every_steps: 0", "resume: ''", "on_error: ignore", "kep: 1"})
    EXPECT_NE(refusal([&] { read_spec<CheckpointSpec>(bad, "r.yaml"); }), "accepted") << bad;
}

}  // namespace
}  // namespace osprey
