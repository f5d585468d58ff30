#pragma once
// Patterns over parameter names, as recipes write them.

#include <string>
#include <string_view>
#include <vector>

namespace osprey {

/// `*` stands for any characters (dots too), `?` for one, `{a,b}` for one of several patterns; all else for
/// itself.
/// "*.{attn,mlp}.*.weight" matches "layers.3.attn.q.weight".
/// Matching takes at most pattern length times name length steps, whatever the pattern.
class Glob {
 public:
  /// Errors: throws for unbalanced braces, nesting deeper than 8, or more than 1000 characters.
  explicit Glob(std::string_view pattern);
  bool matches(std::string_view name) const;
  const std::string& pattern() const { return pattern_; }

 private:
  struct State {
    enum class Kind { literal, any, star, split, accept } kind;
    char character = 0;
    std::vector<int> next;
  };
  int add(State state);
  int sequence(std::string_view text, int next, int depth);
  void enter(int state, std::vector<char>& active, std::vector<int>& list) const;

  std::string pattern_;
  std::vector<State> states_;
  int start_ = 0;
};

}  // namespace osprey
