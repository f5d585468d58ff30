#pragma once
// Mutates valid inputs until a time budget is spent: OSPREY_FUZZ_SECONDS, 2 when it is not set.

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey::test {

/// Draws that are a function of (case, count), so that a failing case can be run again by its number.
class FuzzDraws {
 public:
  explicit FuzzDraws(uint64_t number) : number_(number) {}
  uint64_t bits() {
    // SplitMix64: plenty for mutations, and independent of what the product draws.
    uint64_t z = (number_ * 0x9e3779b97f4a7c15u) ^ (++count_ * 0xbf58476d1ce4e5b9u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  size_t below(size_t n) { return n == 0 ? 0 : static_cast<size_t>(bits() % n); }

 private:
  uint64_t number_;
  uint64_t count_ = 0;
};

/// One to six edits: bit flips, bytes of choice, cut tails, repeated and removed stretches, and words of
/// `dictionary` written over or into the text.
inline std::string mutate(std::string text, FuzzDraws& draws, const std::vector<std::string>& dictionary) {
  for (size_t edits = 1 + draws.below(6); edits > 0; --edits) {
    const size_t at = draws.below(text.size() + 1);
    const size_t length = draws.below(std::min<size_t>(text.size() - at, 24) + 1);
    switch (draws.below(7)) {
      case 0:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << draws.below(8)));
        break;
      case 1:
        if (at < text.size()) text[at] = static_cast<char>(draws.bits());
        break;
      case 2:
        text.resize(at);
        break;
      case 3:
        text.erase(at, length);
        break;
      case 4:
        text.insert(at, text.substr(draws.below(text.size() + 1), length));
        break;
      case 5:
        if (!dictionary.empty()) text.insert(at, dictionary[draws.below(dictionary.size())]);
        break;
      case 6:
        if (!dictionary.empty()) {
          const std::string& word = dictionary[draws.below(dictionary.size())];
          text.replace(at, std::min(word.size(), text.size() - at), word);
        }
        break;
    }
  }
  return text;
}

/// When a fuzz test that begins now may stop.
inline std::chrono::steady_clock::time_point fuzz_end() {
  const char* budget = std::getenv("OSPREY_FUZZ_SECONDS");
  const std::chrono::duration<double> seconds(budget ? std::atof(budget) : 2.0);
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(seconds);
}

/// Calls `parse` with mutations of `seeds` until the budget is spent. It may throw Error and nothing else.
/// Returns how many inputs were accepted and how many refused.
struct FuzzCount {
  int64_t accepted = 0, refused = 0;
};
inline FuzzCount fuzz(const std::vector<std::string>& seeds, const std::vector<std::string>& dictionary,
                      const std::function<void(const std::string&)>& parse) {
  const auto end = fuzz_end();
  FuzzCount count;
  for (uint64_t number = 0; std::chrono::steady_clock::now() < end; ++number) {
    FuzzDraws draws(number);
    const std::string input = mutate(seeds[number % seeds.size()], draws, dictionary);
    try {
      parse(input);
      ++count.accepted;
    } catch (const Error&) {
      ++count.refused;
    } catch (const std::exception& e) {
      ADD_FAILURE() << "case " << number << " threw something that is not an Error: " << e.what();
      return count;
    }
  }
  return count;
}

}  // namespace osprey::test
