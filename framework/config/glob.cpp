#include "framework/config/glob.h"

#include "kernels/core/check.h"

namespace osprey {

Glob::Glob(std::string_view pattern) : pattern_(pattern) {
  require(pattern.size() <= 1000, "pattern", "has {} characters, at most 1000 are allowed", pattern.size());
  start_ = sequence(pattern, add({State::Kind::accept, 0, {}}), 0);
}

int Glob::add(State state) {
  states_.push_back(std::move(state));
  return static_cast<int>(states_.size()) - 1;
}

// Built from the right, so that every part knows its continuation; alternatives share theirs, which
// keeps the automaton as small as the pattern.
int Glob::sequence(std::string_view text, int next, int depth) {
  require(depth <= 8, "pattern", "'{}' nests braces deeper than 8", pattern_);
  size_t end = text.size();
  while (end > 0) {
    const char c = text[end - 1];
    if (c == '}') {
      // Find the matching '{' and the commas of this level.
      int level = 0;
      size_t begin = end;
      std::vector<size_t> cuts = {end - 1};
      while (begin > 0) {
        const char b = text[--begin];
        if (b == '}') ++level;
        if (b == '{' && --level == 0) break;
        if (b == ',' && level == 1) cuts.push_back(begin);
      }
      require(level == 0, "pattern", "'{}' has a }} without its {{", pattern_);
      cuts.push_back(begin);
      State split{State::Kind::split, 0, {}};
      for (size_t i = 0; i + 1 < cuts.size(); ++i)
        split.next.push_back(
            sequence(text.substr(cuts[i + 1] + 1, cuts[i] - cuts[i + 1] - 1), next, depth + 1));
      next = add(std::move(split));
      end = begin;
      continue;
    }
    require(c != '{', "pattern", "'{}' has a {{ without its }}", pattern_);
    if (c == '*')
      next = add({State::Kind::star, 0, {next}});
    else if (c == '?')
      next = add({State::Kind::any, 0, {next}});
    else
      next = add({State::Kind::literal, c, {next}});
    --end;
  }
  return next;
}

// Adds a state and all that it reaches without a character.
void Glob::enter(int state, std::vector<char>& active, std::vector<int>& list) const {
  std::vector<int> todo = {state};
  while (!todo.empty()) {
    const int s = todo.back();
    todo.pop_back();
    if (active[static_cast<size_t>(s)]) continue;
    active[static_cast<size_t>(s)] = 1;
    list.push_back(s);
    const State& node = states_[static_cast<size_t>(s)];
    if (node.kind == State::Kind::star || node.kind == State::Kind::split)
      todo.insert(todo.end(), node.next.begin(), node.next.end());
  }
}

bool Glob::matches(std::string_view name) const {
  std::vector<char> active(states_.size(), 0);
  std::vector<int> now, then;
  enter(start_, active, now);
  for (char c : name) {
    active.assign(states_.size(), 0);
    then.clear();
    for (int s : now) {
      const State& node = states_[static_cast<size_t>(s)];
      if (node.kind == State::Kind::star)
        enter(s, active, then);
      else if (node.kind == State::Kind::any || (node.kind == State::Kind::literal && node.character == c))
        enter(node.next[0], active, then);
    }
    now.swap(then);
  }
  for (int s : now)
    if (states_[static_cast<size_t>(s)].kind == State::Kind::accept) return true;
  return false;
}

}  // namespace osprey
