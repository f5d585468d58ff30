#pragma once
// The filters, tests and methods that templates may use.

#include <string>
#include <utility>
#include <vector>

#include "framework/data/jinja/value.h"

namespace osprey::jinja {

struct Arguments {
  std::vector<Value> plain;
  std::vector<std::pair<std::string, Value>> named;
};

/// Errors: throw "[where] ..." for names that are not known and values of the wrong kind.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   const std::string& where);
bool apply_test(const std::string& name, const Value& value, const std::vector<Value>& arguments,
                const std::string& where);
Value call_method(const Value& object, const std::string& name, const Arguments& arguments,
                  const std::string& where);

bool contains(const Value& collection, const Value& item, const std::string& where);
/// object.key, and object["key"]: undefined where there is none. Errors: of something undefined.
Value attribute(const Value& object, const std::string& key, const std::string& where);

}  // namespace osprey::jinja
