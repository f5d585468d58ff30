#include "framework/data/data_spec.h"

#include <algorithm>

namespace osprey {

void SourceSpec::fields(Fields& f) {
  f("path", path, "token shards written by osprey prepare: a shell pattern such as data/train-*");
  f("weight", weight,
    "share of the training sequences relative to the other sources; null on all of them means by size",
    positive());
  f.rule(!path.empty(), "path", "names no shards; give a pattern such as data/train-*");
}

void DataSpec::fields(Fields& f) {
  f("tokenizer", tokenizer, "directory of the tokenizer that made the shards, or bytes; empty: the one in model.path");
  f.list("train", train, "sources that training reads, mixed by weight");
  f.list("validation", validation, "sources that evaluation reads, in order and whole; weights do not apply");
  f("sequence_len", sequence_len, "tokens in one training sequence", between(2, 1 << 30));
  f("attention_across_documents", attention_across_documents,
    "whether a token may attend to earlier documents packed into its sequence; if not, positions restart with "
    "every document and the first token of a document is not a target");
  const auto weighted =
      std::count_if(train.begin(), train.end(), [](const SourceSpec& s) { return s.weight.has_value(); });
  f.rule(!train.empty(), "train", "names no source");
  f.rule(weighted == 0 || weighted == static_cast<int64_t>(train.size()), "train",
         "gives a weight to some sources only; give one to all or to none");
}

}  // namespace osprey
