#pragma once
// A parsed template at work.

#include <string>

#include "framework/data/jinja/parser.h"
#include "framework/data/jinja/value.h"

namespace osprey::jinja {

/// Renders with these variables. A pure function: there is no clock (strftime_now is undefined, as it is for
/// templates that ask whether it is defined), no file and no randomness.
/// Errors: throws "[name:line] ..." for anything undefined that is used, for what raise_exception() says, and
/// past a million steps or 64 MiB of text.
Text render(const Block& block, const Dict& variables, const std::string& name);

}  // namespace osprey::jinja
