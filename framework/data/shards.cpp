#include "framework/data/shards.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "framework/files/file.h"
#include "framework/files/json.h"
#include "framework/files/mapped_file.h"
#include "kernels/core/check.h"

namespace osprey {

ShardLabel make_label(const Tokenizer& tokenizer) {
  return {.tokenizer_kind = tokenizer.kind(),
          .fingerprint = tokenizer.fingerprint(),
          .vocab_size = tokenizer.vocab_size(),
          .eos_id = tokenizer.eos_id()};
}

void write_label(const std::string& prefix, const ShardLabel& label) {
  const nlohmann::ordered_json json = {{"tokenizer_kind", label.tokenizer_kind},
                                       {"fingerprint", label.fingerprint},
                                       {"vocab_size", label.vocab_size},
                                       {"eos_id", label.eos_id},
                                       {"tokens", label.tokens},
                                       {"documents", label.documents},
                                       {"max_token", label.max_token}};
  write_file(prefix + ".json", json.dump(2) + "\n");
}

ShardLabel read_label(const std::string& prefix) {
  const std::string path = prefix + ".json";
  std::error_code ignored;
  require(std::filesystem::exists(path, ignored), "data",
          "{} is missing, which says what tokenizer made the shard; osprey prepare writes it with the shard, "
          "and osprey prepare --adopt beside shards from elsewhere",
          path);
  const auto json = read_json(path, 1 << 16, /*most_depth=*/4);
  const auto check = [&](bool ok, const char* key) {
    require(ok, "data",
            "{} is not a shard description (`{}` is missing or of the wrong type); write the shard again "
            "with osprey prepare",
            path, key);
  };
  const auto word = [&](const char* key) {
    check(json.is_object() && json.contains(key) && json[key].is_string(), key);
    return json[key].get<std::string>();
  };
  const auto number = [&](const char* key) {
    check(json.is_object() && json.contains(key) && json[key].is_number_integer(), key);
    const auto value = json[key].get<int64_t>();
    check(value >= 0, key);
    return value;
  };
  return {.tokenizer_kind = word("tokenizer_kind"),
          .fingerprint = word("fingerprint"),
          .vocab_size = number("vocab_size"),
          .eos_id = number("eos_id"),
          .tokens = number("tokens"),
          .documents = number("documents"),
          .max_token = number("max_token")};
}

std::vector<std::string> find_shards(const std::string& pattern) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  require(!fs::is_directory(pattern, ignored), "data", "{} is a directory; name the shards in it, as in {}",
          pattern, (fs::path(pattern) / "train-*").string());
  std::set<std::string> prefixes;
  // A prefix without its ending names a shard too, so it is tried with one.
  for (const std::string& shape : {pattern, pattern + ".idx", pattern + ".bin"})
    for (const std::string& path : glob_paths(shape))
      for (const char* ending : {".idx", ".bin"})
        if (path.ends_with(ending)) prefixes.insert(path.substr(0, path.size() - 4));
  require(!prefixes.empty(), "data",
          "no token shard matches {}; write shards with osprey prepare, or mend the path", pattern);
  return {prefixes.begin(), prefixes.end()};
}

}  // namespace osprey
