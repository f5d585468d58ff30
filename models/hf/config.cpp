#include "models/hf/config.h"

#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey {

namespace {

constexpr uint64_t most_whole = uint64_t{1} << 40;

std::string found(const HubConfig::Json* v) { return v ? shown(v->dump()) : "nothing"; }

}  // namespace

HubConfig::HubConfig(std::string where, Json tree) : where_(std::move(where)), tree_(std::move(tree)) {
  require(tree_.is_object(), where_, "is no object");
}

const HubConfig::Json* HubConfig::find(const Json& holder, const char* key) {
  const auto it = holder.find(key);
  return it == holder.end() || it->is_null() ? nullptr : &*it;
}

int64_t HubConfig::whole(const char* key) const {
  const Json* v = find(key);
  require(v && v->is_number_unsigned() && v->get<uint64_t>() > 0 && v->get<uint64_t>() <= most_whole, where_,
          "{} must be a positive whole number, found {}", key, found(v));
  return v->get<int64_t>();
}

int64_t HubConfig::whole_or_zero(const Json& holder, const char* key) const {
  const Json* v = find(holder, key);
  if (!v) return 0;
  require(v->is_number_unsigned() && v->get<uint64_t>() <= most_whole, where_,
          "{} must be a whole number, found {}", key, found(v));
  return v->get<int64_t>();
}

double HubConfig::real(const Json& holder, const char* key, double otherwise) const {
  const Json* v = find(holder, key);
  if (!v) return otherwise;
  require(v->is_number(), where_, "{} must be a number, found {}", key, found(v));
  return v->get<double>();
}

bool HubConfig::flag(const Json& holder, const char* key, bool otherwise) const {
  const Json* v = find(holder, key);
  if (!v) return otherwise;
  require(v->is_boolean(), where_, "{} must be true or false, found {}", key, found(v));
  return v->get<bool>();
}

std::string HubConfig::word(const Json& holder, const char* key, const char* otherwise) const {
  const Json* v = find(holder, key);
  if (!v) return otherwise;
  require(v->is_string(), where_, "{} must be a string, found {}", key, found(v));
  return v->get<std::string>();
}

std::vector<int32_t> HubConfig::tokens(const char* key) const {
  const Json* v = find(key);
  std::vector<int32_t> tokens;
  const auto add = [&](const Json& token) {
    require(token.is_number_unsigned() && token.get<uint64_t>() < (uint64_t{1} << 31), where_,
            "{} must be a token or a list of tokens, found {}", key, found(&token));
    tokens.push_back(token.get<int32_t>());
  };
  if (v && v->is_array())
    for (const Json& token : *v) add(token);
  else if (v)
    add(*v);
  return tokens;
}

const HubConfig::Json* HubConfig::object(const Json& holder, const char* key) const {
  const Json* v = find(holder, key);
  require(!v || v->is_object(), where_, "{} must be an object, found {}", key, found(v));
  return v;
}

}  // namespace osprey
