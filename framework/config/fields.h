#pragma once
// One field list per spec; parsing, checking, dumping and the manual derive from it.
//
//   struct ScheduleSpec {
//     enum class Kind { constant, cosine, linear, wsd };
//     Kind kind = Kind::cosine;
//     double decay_fraction = 0.2;
//     void fields(Fields& f) {
//       f.choice("kind", kind, {{"constant", Kind::constant}, {"wsd", Kind::wsd}}, "shape of the decay");
//       f.when(kind == Kind::wsd, "kind is wsd", [&] {
//         f("decay_fraction", decay_fraction, "share of all steps spent decaying", between(0, 1));
//       });
//       f.rule(decay_fraction < 1, "decay_fraction", "leaves no step before the decay");
//     }
//   };
//
// The same fields() runs for reading (values are filled, so later lines may depend on earlier ones),
// for dumping and for the manual. Specs are plain structs beside their owner; no spec knows YAML.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace osprey {

/// What a number may be. Messages are made from it ("must be at least 1").
struct Limits {
  std::optional<double> min, max;
  bool open_min = false;  // min itself is excluded
};
inline Limits positive() { return {0.0, {}, true}; }
inline Limits at_least(double min) { return {min, {}, false}; }
inline Limits between(double min, double max) { return {min, max, false}; }

/// Visitor over a spec. Backends (reader, dumper, manual) implement the protected part.
class Fields {
 public:
  virtual ~Fields() = default;

  void operator()(const char* key, bool& v, const char* help) { boolean(key, v, help); }
  void operator()(const char* key, int64_t& v, const char* help, Limits l = {}) { integer(key, v, help, l); }
  void operator()(const char* key, double& v, const char* help, Limits l = {}) { real(key, v, help, l); }
  void operator()(const char* key, std::string& v, const char* help) { text(key, v, help); }
  void operator()(const char* key, std::vector<std::string>& v, const char* help) { texts(key, v, help); }
  void operator()(const char* key, std::vector<double>& v, const char* help, Limits l = {}) {
    reals(key, v, help, l);
  }

  /// Optional scalars: null means off, absent keeps the default. Never -1.
  template <class T>
  void operator()(const char* key, std::optional<T>& v, const char* help, Limits l = {}) {
    T inner = v.value_or(T{});
    const bool set = optional(key, v.has_value(), help, [&] {
      if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, std::string>)
        (*this)(key, inner, help);
      else
        (*this)(key, inner, help, l);
    });
    if (set)
      v = inner;
    else
      v.reset();
  }

  /// An enumeration by name.
  template <class E>
  void choice(const char* key, E& v, std::initializer_list<std::pair<const char*, E>> names,
              const char* help) {
    choice(key, v, std::span(names.begin(), names.size()), help);
  }
  template <class E>
  void choice(const char* key, E& v, std::span<const std::pair<const char*, E>> names, const char* help) {
    std::vector<const char*> words;
    size_t index = 0;
    for (const auto& [word, value] : names) {
      if (value == v) index = words.size();
      words.push_back(word);
    }
    index = enumeration(key, words, index, help);
    v = names[index].second;
  }

  /// A nested spec (a struct with fields()).
  template <class S>
  void section(const char* key, S& spec, const char* help) {
    map(key, help, [&] { spec.fields(*this); });
  }
  /// A nested spec that may be absent.
  template <class S>
  void section(const char* key, std::optional<S>& spec, const char* help) {
    S inner = spec.value_or(S{});
    if (optional(key, spec.has_value(), help, [&] { map(key, help, [&] { inner.fields(*this); }); }))
      spec = inner;
    else
      spec.reset();
  }
  /// A list of nested specs.
  template <class S>
  void list(const char* key, std::vector<S>& specs, const char* help) {
    sequence(
        key, help, specs.size(), [&](size_t n) { specs.resize(n); },
        [&](size_t i) {
          S blank;
          (i < specs.size() ? specs[i] : blank).fields(*this);
        });
  }

  /// Fields that only exist while `active`; giving one otherwise is an error that quotes `condition`.
  /// The manual shows them under the condition.
  virtual void when(bool active, const char* condition, const std::function<void()>& inside) = 0;
  /// A key just declared that has no default: leaving it out is an error. Numbers need no call: a number
  /// whose default violates its own limits is required.
  virtual void required(const char* key) = 0;
  /// A cross-field check; `key` may be a path below this section. On failure the error reads
  /// "recipe.yaml:12: section.key: message". No effect when dumping, nor where the section has other errors.
  virtual void rule(bool ok, const char* key, const std::string& message) = 0;

 protected:
  virtual void boolean(const char* key, bool& v, const char* help) = 0;
  virtual void integer(const char* key, int64_t& v, const char* help, Limits) = 0;  // accepts 1e9, 4_194_304
  virtual void real(const char* key, double& v, const char* help, Limits) = 0;
  virtual void text(const char* key, std::string& v, const char* help) = 0;
  virtual void texts(const char* key, std::vector<std::string>& v, const char* help) = 0;
  virtual void reals(const char* key, std::vector<double>& v, const char* help, Limits) = 0;
  virtual size_t enumeration(const char* key, const std::vector<const char*>& words, size_t index,
                             const char* help) = 0;
  virtual bool optional(const char* key, bool set, const char* help, const std::function<void()>& inside) = 0;
  virtual void map(const char* key, const char* help, const std::function<void()>& inside) = 0;
  virtual void sequence(const char* key, const char* help, size_t size,
                        const std::function<void(size_t)>& resize,
                        const std::function<void(size_t)>& element) = 0;
};

}  // namespace osprey
