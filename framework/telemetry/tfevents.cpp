#include "framework/telemetry/tfevents.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <chrono>

#include "kernels/core/check.h"

namespace osprey {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1u) ? 0x82F63B78u : 0u);
    table[i] = c;
  }
  return table;
}

template <class T>
void put_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>((value >> (8 * i)) & 0xff);
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7f) | 0x80);
  out += static_cast<char>(value);
}

enum Wire { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
void put_key(std::string& out, int field, Wire wire) {
  put_varint(out, static_cast<uint64_t>(field << 3 | wire));
}

void put_bytes(std::string& out, int field, std::string_view value) {
  put_key(out, field, bytes);
  put_varint(out, value.size());
  out += value;
}

uint32_t masked_crc(std::string_view data) {
  const uint32_t crc = crc32c(data);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

/// Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5;
///         SessionLog session_log = 7; }
std::string event_head(double wall_s, int64_t step) {
  std::string out;
  put_key(out, 1, fixed64);
  put_little_endian(out, std::bit_cast<uint64_t>(wall_s));
  if (step != 0) {
    put_key(out, 2, varint);
    put_varint(out, static_cast<uint64_t>(step));
  }
  return out;
}

double wall_now_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

uint32_t crc32c(std::string_view data) {
  static constexpr auto table = make_crc_table();
  uint32_t c = 0xFFFFFFFFu;
  for (const char ch : data) c = table[(c ^ static_cast<uint8_t>(ch)) & 0xff] ^ (c >> 8);
  return ~c;
}

std::string tfrecord(std::string_view payload) {
  std::string out;
  put_little_endian(out, static_cast<uint64_t>(payload.size()));
  put_little_endian(out, masked_crc(out));
  out += payload;
  put_little_endian(out, masked_crc(payload));
  return out;
}

std::string tf_version_event(double wall_s) {
  std::string out = event_head(wall_s, 0);
  put_bytes(out, 3, "brain.Event:2");
  return out;
}

std::string tf_start_event(double wall_s, int64_t step) {
  std::string log;  // SessionLog { SessionStatus status = 1; }, START = 1
  put_key(log, 1, varint);
  put_varint(log, 1);
  std::string out = event_head(wall_s, step);
  put_bytes(out, 7, log);
  return out;
}

std::string tf_scalar_event(double wall_s, int64_t step, std::span<const TfScalar> scalars) {
  // Summary { repeated Value value = 1; }  Value { string tag = 1; float simple_value = 2; }
  std::string summary;
  for (const TfScalar& s : scalars) {
    std::string value;
    put_bytes(value, 1, s.tag);
    put_key(value, 2, fixed32);
    put_little_endian(value, std::bit_cast<uint32_t>(static_cast<float>(s.value)));
    put_bytes(summary, 1, value);
  }
  std::string out = event_head(wall_s, step);
  put_bytes(out, 5, summary);
  return out;
}

/// A name of its own in `dir`, which is made where it is missing.
static std::filesystem::path fresh_file(const std::filesystem::path& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  require(!error, "tensorboard", "cannot make {}: {}", dir.string(), error.message());
  char host[256] = "host";
  gethostname(host, sizeof host - 1);
  static std::atomic<int> opened{0};  // two writers of one process in one second
  return dir / fmt::format("events.out.tfevents.{}.{}.{}.{}", static_cast<int64_t>(wall_now_s()), host,
                           getpid(), opened++);
}

TfEventsWriter::TfEventsWriter(const std::filesystem::path& dir, int64_t first_step, AppendFile::Tell tell)
    : file_(fresh_file(dir), std::move(tell)) {
  file_.write(tfrecord(tf_version_event(wall_now_s())));
  if (first_step > 0) file_.write(tfrecord(tf_start_event(wall_now_s(), first_step)));
}

void TfEventsWriter::scalars(int64_t step, std::span<const TfScalar> list) {
  if (!list.empty()) file_.write(tfrecord(tf_scalar_event(wall_now_s(), step, list)));
}

}  // namespace osprey
