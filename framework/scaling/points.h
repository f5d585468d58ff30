#pragma once
// From records of runs to the points that a law is fitted to: which runs count, what is compared with what.

#include <optional>
#include <string>
#include <vector>

#include "framework/scaling/law.h"
#include "framework/scaling/run_record.h"

namespace osprey {

struct PointOptions {
  enum class Size { without_embedding, all };
  enum class Loss { validation, train };
  Size size = Size::without_embedding;  // which count of parameters is N
  Loss loss = Loss::validation;
  std::optional<std::string> optimizer;  // only runs of this one, as RunRecord::optimizer()
  std::optional<std::string> scheme;     // only quantized runs of this one, as RunFormats::scheme(), or as
                                         // names() where only one scheme has them
  std::optional<std::string> reference;  // per_optimizer: whose rho is 1; the first of the records otherwise
  bool block_matters = true;             // qat: without it (gG is fixed at 0), runs need no G
};

struct LawData {
  Law law;
  std::vector<LawPoint> points;
  std::vector<std::string> left_out;  // sentences about runs that do not count, for people
};

/// The law of a kind with its points.
///   chinchilla, per_optimizer: runs without quantization.
///   quartet: those, and one group for each scheme and block of the others.
///   qat: one point for each quantized run that has a partner without quantization: the same N, D, batch,
///   sequence length, optimizer and schedule. Losses of partners that differ in their seed are averaged, and
///   so are quantized runs that differ in nothing else.
/// Errors: no run is left; no run, or several schemes, of the one that was asked for; several tokenizers;
/// several optimizers or (qat) schemes where the law is of one; a quantized run without a G or with G = 1
/// (qat); no pair; a pair whose difference is not above 0.
LawData points_of(Law::Kind kind, const std::vector<RunRecord>& records, const PointOptions& options);

}  // namespace osprey
