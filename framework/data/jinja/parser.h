#pragma once
// The part of Jinja that chat templates are written in, as a tree. What is not of this part is refused by
// name and line. Reference: the template documentation of Jinja 3; blocks trimmed as Hugging Face does
// (trim_blocks, lstrip_blocks).

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "framework/data/jinja/value.h"

namespace osprey::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  enum class Kind {
    literal,    // value
    name,       // word
    list,       // args
    dict,       // args: key, value, key, value, ...
    attribute,  // args[0].word
    item,       // args[0][args[1]]
    slice,      // args[0][args[1]:args[2]:args[3]], null where left out
    call,       // args[0](args[1], ...), named
    filter,     // args[0] | word(args[1], ...), named
    test,       // args[0] is word(args[1], ...)
    unary,      // word args[0]: not, -, +
    binary,     // args[0] word args[1]
    choice,     // args[0] if args[1] else args[2], which may be null
  };
  Kind kind;
  int line;
  std::string word = {};
  Value value = {};
  std::vector<ExprPtr> args = {};
  std::vector<std::pair<std::string, ExprPtr>> named = {};
};

struct Stmt;
using Block = std::vector<Stmt>;
struct Stmt {
  enum class Kind {
    text,    // text
    print,   // exprs[0]
    set,     // names[0] = exprs[0], or names[0].names[1] = exprs[0]
    branch,  // blocks[i] where exprs[i] holds; one block more is the else
    loop,    // for names in exprs[0] if exprs[1]: blocks[0], else blocks[1]
  };
  Kind kind;
  int line;
  std::string text = {};
  std::vector<std::string> names = {};
  std::vector<ExprPtr> exprs = {};
  std::vector<Block> blocks = {};
};

/// `name` is for messages.
/// Errors: throws "[name:line] ..." for what is no Jinja, not of this part, or nested too deeply.
Block parse(std::string_view source, const std::string& name);

}  // namespace osprey::jinja
