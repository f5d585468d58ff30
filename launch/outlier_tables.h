#pragma once
// Outlier figures of a loaded model, measured and printed.

#include "framework/telemetry/outlier_observer.h"
#include "launch/loaded_model.h"

namespace osprey {

/// Runs `rows` sequences in context, then the same tokens as sequences of length one (the OSP protocol).
/// `batch` is overwritten.
std::vector<OutlierRow> measure_outliers_of(LoadedModel& model, ValidationData& data, StagedBatch& batch,
                                            int64_t rows);

enum class OutlierDetail { over_layers, every_layer };
void print_outliers(const std::vector<OutlierRow>& rows, OutlierDetail detail);

}  // namespace osprey
