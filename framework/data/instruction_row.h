#pragma once
// One row of instruction data, whatever the format it came in.

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace osprey {

/// A turn of a conversation.
struct Message {
  enum class Role { system, user, assistant, tool };
  Role role = Role::user;
  std::string content;
  std::string input = {};  // of alpaca rows: what an instruction is about, in a place of its own
  bool train = true;       // whether an assistant's turn is learnt
};
using Conversation = std::vector<Message>;
/// "system", "user", "assistant" or "tool".
const char* name(Message::Role role);

/// Text that no template touches.
struct Passage {
  std::string text;
  bool train = true;
};

/// Tokens, and which of them are targets.
struct TokenRow {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> trained;  // one for each token, 0 or 1
};

using InstructionRow = std::variant<Conversation, std::vector<Passage>, TokenRow>;

enum class InstructionFormat {
  automatic,
  alpaca,             // instruction, input?, output, system?, history?
  sharegpt,           // conversations: [{from, value}], system?
  messages,           // messages: [{role, content, train? | training? | weight?}]
  prompt_completion,  // prompt, completion: texts or messages
  completion,         // text
  input_output,       // segments: [{text, label}]
  tokenized,          // input_ids, labels? (-100: not a target)
};
/// As recipes write it: "auto", "alpaca", ...
const char* name(InstructionFormat format);

/// Why a row is not used.
struct DroppedRow {
  std::string reason;  // the same words for all rows that suffer from it
  std::string detail;  // about this row
};

/// The format that the keys of a row tell. `where` is "file:line".
/// Errors: throws for what is no JSON object or has the keys of no format.
InstructionFormat sniff_format(const std::string& where, std::string_view text);

/// Reads a row; `format` is not automatic.
/// Errors: throws when the row has the keys of another format; anything else that is wrong drops the row.
std::variant<InstructionRow, DroppedRow> parse_row(const std::string& where, std::string_view text,
                                                   InstructionFormat format);

}  // namespace osprey
