#pragma once
// The reference manual of every key, drawn from the same fields() that reads recipes.

#include <functional>
#include <string>
#include <vector>

#include "framework/config/fields.h"

namespace osprey {

/// One key of the recipe.
struct ManualEntry {
  std::string path;       // "train.tokens"; N stands for the index of a list entry: "optim.N.kind"
  std::string type;       // "whole number", "one of rmsnorm, ssnorm"
  std::string fallback;   // the default as a recipe would write it, "required", or "off"
  std::string limits;     // "at least 1", or ""
  std::string condition;  // "kind is wsd", or ""
  std::string help;
};

/// Every key that `visit` declares, whether its condition holds or not, in that order.
std::vector<ManualEntry> manual(const std::function<void(Fields&)>& visit);

template <class Spec>
std::vector<ManualEntry> manual_of(Spec spec = {}) {
  return manual([&](Fields& f) { spec.fields(f); });
}

/// The entries at or below `key` ("train", "optim.kind", "optim.0.kind" and "optim.N.kind" all work).
/// Errors: no such key, with the nearest one.
std::vector<ManualEntry> select(const std::vector<ManualEntry>& entries, const std::string& key);

std::string manual_text(const std::vector<ManualEntry>& entries);
std::string manual_markdown(const std::vector<ManualEntry>& entries);

}  // namespace osprey
