#pragma once
// The HTML page of `osprey report`: one file, no network, no library.

#include <string>
#include <vector>

#include "launch/report/run_data.h"

namespace osprey::report {

/// The whole page for one or several runs. Every string that comes from a run is escaped; the page
/// forbids itself to load anything (content security policy).
std::string page(const std::vector<RunData>& runs);

/// `text` for HTML text and quoted attributes.
std::string escape_html(std::string_view text);

/// The parts of the page that do not depend on runs (style.cpp, script.cpp).
extern const char* const page_css;
extern const char* const page_js;

}  // namespace osprey::report
