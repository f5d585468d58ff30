#include <algorithm>
#include <filesystem>

#include "framework/data/idx.h"
#include "framework/data/prepare.h"
#include "framework/data/shards.h"
#include "kernels/core/check.h"

namespace osprey {

std::vector<std::string> adopt_shards(const std::vector<std::string>& patterns, const Tokenizer& tokenizer) {
  std::vector<std::string> adopted;
  for (const std::string& pattern : patterns)
    for (const std::string& prefix : find_shards(pattern)) {
      require(!std::filesystem::exists(prefix + ".json"), "prepare",
              "{}.json exists: this shard has its side-car already", prefix);
      const IdxReader shard(prefix);
      ShardLabel label = make_label(tokenizer);
      std::vector<int32_t> tokens;
      for (int64_t d = 0; d < shard.documents(); ++d) {
        tokens.resize(static_cast<size_t>(shard.length(d)));
        const uint32_t most = shard.read(shard.begin(d), tokens);
        require(most < tokenizer.vocab_size(), "prepare",
                "{}.bin holds token {}, but the tokenizer has {}; it was made with another one", prefix,
                static_cast<int32_t>(most), tokenizer.vocab_size());
        require(tokens.empty() || tokens.back() == tokenizer.eos_id(), "prepare",
                "document {} of {}.bin ends with token {}, expected the end of text, {}; write the shard "
                "with one after every document",
                d, prefix, tokens.empty() ? -1 : tokens.back(), tokenizer.eos_id());
        label.max_token = std::max<int64_t>(label.max_token, most);
      }
      label.tokens = shard.tokens();
      label.documents = shard.documents();
      write_label(prefix, label);
      adopted.push_back(prefix);
    }
  return adopted;
}

}  // namespace osprey
