#include "framework/scaling/points.h"

#include <algorithm>
#include <tuple>

#include "framework/scaling/words.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

using Records = std::vector<const RunRecord*>;

std::optional<double> loss_of(const RunRecord& r, PointOptions::Loss which) {
  return which == PointOptions::Loss::validation ? r.validation_loss : r.train_loss;
}

int64_t size_of(const RunRecord& r, PointOptions::Size which) {
  return which == PointOptions::Size::all ? r.parameters : r.parameters_without_embedding;
}

/// The different values of `of`, in the order in which they come.
template <class Of>
std::vector<std::string> different(const Records& runs, const Of& of) {
  std::vector<std::string> all;
  for (const RunRecord* r : runs)
    if (const std::string value = of(*r); std::find(all.begin(), all.end(), value) == all.end())
      all.push_back(value);
  return all;
}

/// "mxfp4/mxfp4/bf16 block 32".
std::string scheme_and_block(const RunFormats& f) {
  return f.block ? fmt::format("{} block {}", f.scheme(), *f.block) : f.scheme();
}

LawPoint point_of(const RunRecord& r, const PointOptions& options) {
  LawPoint p;
  p.run = r.run;
  p.parameters = static_cast<double>(size_of(r, options.size));
  p.tokens = static_cast<double>(r.tokens);
  if (r.formats.block) p.block = static_cast<double>(*r.formats.block);
  p.target = *loss_of(r, options.loss);
  return p;
}

/// The scheme that was asked for, in full.
std::optional<std::string> scheme_of(const std::vector<RunRecord>& records, const PointOptions& options) {
  if (!options.scheme) return {};
  Records quantized, named;
  for (const RunRecord& r : records) {
    if (r.formats.full_precision() || (options.optimizer && r.optimizer() != *options.optimizer)) continue;
    if (r.formats.scheme() == *options.scheme) return options.scheme;
    quantized.push_back(&r);
    if (r.formats.names() == *options.scheme) named.push_back(&r);
  }
  const auto schemes_of = [](const Records& runs) {
    return different(runs, [](const RunRecord& r) { return r.formats.scheme(); });
  };
  const auto schemes = schemes_of(named);
  require(!schemes.empty(), "scaling", "no run is of the scheme {}; there {}", *options.scheme,
          quantized.empty() ? "is none with quantization"
                            : "are: " + scaling::joined(schemes_of(quantized), "; "));
  require(schemes.size() == 1, "scaling", "{} schemes have the formats {}; give one in full: {}",
          schemes.size(), *options.scheme, scaling::joined(schemes, "; "));
  return schemes.front();
}

/// Runs that can be compared at all, of the optimizer and scheme that were asked for.
Records usable(const std::vector<RunRecord>& records, const PointOptions& options, LawData& data) {
  const std::optional<std::string> scheme = scheme_of(records, options);
  Records runs;
  for (const RunRecord& r : records) {
    if (options.optimizer && r.optimizer() != *options.optimizer) continue;
    if (scheme && !r.formats.full_precision() && r.formats.scheme() != *scheme) continue;
    if (loss_of(r, options.loss)) {
      runs.push_back(&r);
    } else {
      const bool validation = options.loss == PointOptions::Loss::validation;
      data.left_out.push_back(
          fmt::format("{} has no {} loss that is finite", r.run, validation ? "validation" : "training"));
    }
  }
  if (runs.empty()) {
    std::string asked;
    if (options.optimizer) asked += " with optimizer " + *options.optimizer;
    if (options.scheme) asked += " of scheme " + *options.scheme;
    Records all;
    for (const RunRecord& r : records) all.push_back(&r);
    fail("scaling", "no run{} has a loss to fit; the {} records have optimizers {} and schemes {}", asked,
         records.size(), scaling::joined(different(all, [](const RunRecord& r) { return r.optimizer(); })),
         scaling::joined(different(all, [](const RunRecord& r) { return r.formats.scheme(); })));
  }
  const auto tokenizers = different(runs, [](const RunRecord& r) { return r.tokenizer; });
  require(
      tokenizers.size() == 1, "scaling",
      "the runs have {} tokenizers ({}), and losses per token of different tokenizers cannot be compared; fit "
      "them apart",
      tokenizers.size(), scaling::joined(tokenizers));
  return runs;
}

void require_one_optimizer(const Records& runs, const Law& law) {
  const auto optimizers = different(runs, [](const RunRecord& r) { return r.optimizer(); });
  require(optimizers.size() == 1, "scaling",
          "the runs have {} optimizers ({}), and the law {} is of one; choose with --optimizer, or fit --law "
          "per_optimizer",
          optimizers.size(), scaling::joined(optimizers), law.name());
}

void leave_out(LawData& data, size_t runs, const char* why) {
  if (runs > 0) data.left_out.push_back(fmt::format("{} run{} {}", runs, runs == 1 ? "" : "s", why));
}

/// What two runs must share so that their difference is due to quantization.
auto setup_of(const RunRecord& r) {
  return std::tuple(r.parameters, r.parameters_without_embedding, r.tokens, r.batch_tokens, r.sequence_len,
                    r.optimizer(), r.schedule);
}

double mean_loss(const Records& runs, const PointOptions& options) {
  double sum = 0;
  for (const RunRecord* r : runs) sum += *loss_of(*r, options.loss);
  return sum / static_cast<double>(runs.size());
}

void require_block(const RunRecord& r) {
  require(
      r.formats.block.has_value(), "scaling",
      "{} is quantized ({}), but its record says no block, which is the law's G; add \"block\" to its line (the "
      "row length for a scale per row), or leave G out of the law with --fix gG=0",
      r.run, r.formats.scheme());
  require(*r.formats.block > 1, "scaling",
          "{} has G = 1, where log2 G is 0 and the law says nothing about the loss; remove its line", r.run);
}

void add_pairs(const Records& plain, const Records& quantized, const PointOptions& options, LawData& data) {
  std::vector<std::pair<Records, Records>> pairs;  // quantized runs that differ in their seed, and partners
  size_t alone = 0;
  for (const RunRecord* q : quantized) {
    if (options.block_matters) require_block(*q);
    const auto same = std::find_if(pairs.begin(), pairs.end(), [&](const auto& pair) {
      const RunRecord& first = *pair.first.front();
      return setup_of(first) == setup_of(*q) && first.formats == q->formats;
    });
    if (same != pairs.end()) {
      same->first.push_back(q);
      continue;
    }
    Records partners;
    for (const RunRecord* p : plain)
      if (setup_of(*p) == setup_of(*q)) partners.push_back(p);
    if (partners.empty())
      ++alone;
    else
      pairs.push_back({{q}, partners});
  }
  require(
      !pairs.empty(), "scaling",
      "no quantized run has a partner without quantization: {} quantized and {} other runs share no N, D, "
      "batch, sequence length, optimizer and schedule; train the same recipes without quantization",
      quantized.size(), plain.size());
  leave_out(data, alone, "with quantization and no partner without it");
  for (const auto& [runs, partners] : pairs) {
    LawPoint p = point_of(*runs.front(), options);
    p.reference = mean_loss(partners, options);
    p.target = mean_loss(runs, options) - p.reference;
    require(
        p.target > 0, "scaling",
        "{} loses {:.5f} nats less than its partner {} without quantization, so noise is larger than what "
        "quantization costs there; train both with more seeds (their losses are averaged), or remove its line",
        runs.front()->run, -p.target, partners.front()->run);
    data.points.push_back(std::move(p));
  }
}

}  // namespace

LawData points_of(Law::Kind kind, const std::vector<RunRecord>& records, const PointOptions& options) {
  LawData data{Law::chinchilla(), {}, {}};
  const Records runs = usable(records, options, data);
  Records plain, quantized;
  for (const RunRecord* r : runs) (r->formats.full_precision() ? plain : quantized).push_back(r);
  if (kind == Law::Kind::qat) {
    data.law = Law::qat();
    require_one_optimizer(runs, data.law);
    const auto schemes = different(quantized, [](const RunRecord& r) { return r.formats.scheme(); });
    require(
        !schemes.empty(), "scaling",
        "the law qat is about quantized runs, and all {} runs are of bf16 or f32; train some with quantization",
        runs.size());
    require(schemes.size() == 1, "scaling",
            "the runs have {} schemes of quantization ({}), and the law qat is of one; choose with --scheme",
            schemes.size(), scaling::joined(schemes));
    add_pairs(plain, quantized, options, data);
    return data;
  }
  require(
      !plain.empty(), "scaling",
      "all {} runs are quantized, and the law {} rests on runs of bf16 or f32; train some without quantization",
      runs.size(),
      kind == Law::Kind::quartet         ? "quartet"
      : kind == Law::Kind::per_optimizer ? "per_optimizer"
                                         : "chinchilla");
  std::vector<std::string> groups;  // of what data.points are, from the law's first group that is not fixed
  if (kind == Law::Kind::per_optimizer) {
    groups = different(plain, [](const RunRecord& r) { return r.optimizer(); });
    if (options.reference) {
      const auto at = std::find(groups.begin(), groups.end(), *options.reference);
      require(at != groups.end(), "scaling", "no run has the optimizer {}; there are {}", *options.reference,
              scaling::joined(groups));
      std::rotate(groups.begin(), at, at + 1);
    }
    require(
        groups.size() > 1, "scaling",
        "all runs have the optimizer {}, and the law per_optimizer compares several; add runs of another one, or "
        "fit --law chinchilla",
        groups.front());
    data.law = Law::per_optimizer(groups);
  } else {
    if (kind == Law::Kind::quartet) {
      require(
          !quantized.empty(), "scaling",
          "all {} runs are of bf16 or f32, and the law quartet compares them with quantized ones; train some "
          "with quantization, or fit --law chinchilla",
          runs.size());
      groups = different(quantized, [](const RunRecord& r) { return scheme_and_block(r.formats); });
      data.law = Law::quartet(groups);
    }
    require_one_optimizer(kind == Law::Kind::quartet ? runs : plain, data.law);
  }
  const auto add = [&](const RunRecord& r, const std::string& group, size_t first) {
    LawPoint p = point_of(r, options);
    const auto at = std::find(groups.begin(), groups.end(), group);
    p.group = at == groups.end() ? 0 : first + static_cast<size_t>(at - groups.begin());
    data.points.push_back(std::move(p));
  };
  for (const RunRecord* r : plain) add(*r, kind == Law::Kind::per_optimizer ? r->optimizer() : "", 0);
  if (kind == Law::Kind::quartet)
    for (const RunRecord* r : quantized) add(*r, scheme_and_block(r->formats), 1);
  else
    leave_out(data, quantized.size(), "with quantization");
  return data;
}

}  // namespace osprey
