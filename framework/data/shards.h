#pragma once
// What stands beside a .bin/.idx pair: `<prefix>.json` names the tokenizer that made it. And how
// shards are found from the patterns in a recipe.

#include <cstdint>
#include <string>
#include <vector>

#include "framework/data/tokenizer.h"

namespace osprey {

/// The side-car of a shard.
struct ShardLabel {
  std::string tokenizer_kind, fingerprint;
  int64_t vocab_size = 0, eos_id = 0;
  int64_t tokens = 0, documents = 0, max_token = 0;
};

ShardLabel make_label(const Tokenizer& tokenizer);
void write_label(const std::string& prefix, const ShardLabel& label);
/// Errors: a side-car that is missing or malformed is named with the cure.
ShardLabel read_label(const std::string& prefix);

/// Prefixes of the shards that `pattern` names, sorted: a prefix, a .bin or .idx file, or a shell
/// pattern over them ("data/train-*"). Errors: a pattern that matches no shard, or that is a
/// directory.
std::vector<std::string> find_shards(const std::string& pattern);

}  // namespace osprey
