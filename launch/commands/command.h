#pragma once
// One subcommand a file: launch/commands/<name>.cpp defines add_<name>() and registers nothing itself;
// launch/main.cpp lists them. A command parses its options, calls the library, prints, and throws Error.

#include <CLI/CLI.hpp>

namespace osprey {

void add_train(CLI::App& app);
void add_check(CLI::App& app);
void add_plan(CLI::App& app);
void add_prepare(CLI::App& app);
void add_eval(CLI::App& app);
void add_inspect(CLI::App& app);
void add_generate(CLI::App& app);
void add_export(CLI::App& app);
void add_report(CLI::App& app);
void add_fields(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace osprey
