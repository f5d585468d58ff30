#include "framework/data/byte_stream.h"

#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "kernels/core/check.h"

namespace osprey {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 17;

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

size_t read_file_chunk(const std::string& path, std::FILE* file, void* to, size_t most) {
  const size_t got = std::fread(to, 1, most, file);
  require(got > 0 || !std::ferror(file), "prepare", "cannot read {}: {}", path, std::strerror(errno));
  return got;
}

class PlainStream final : public ByteStream {
 public:
  PlainStream(std::string path, File file) : path_(std::move(path)), file_(std::move(file)) {}
  size_t read(std::string& out, size_t most_bytes) override {
    const size_t before = out.size();
    out.resize(before + most_bytes);
    const size_t got = read_file_chunk(path_, file_.get(), out.data() + before, most_bytes);
    out.resize(before + got);
    return got;
  }

 private:
  std::string path_;
  File file_;
};

class GzipStream final : public ByteStream {
 public:
  GzipStream(std::string path, File file)
      : path_(std::move(path)), file_(std::move(file)), input_(kChunkBytes) {
    require(::inflateInit2(&state_, 16 + MAX_WBITS) == Z_OK, "prepare", "zlib cannot start on {}", path_);
  }
  ~GzipStream() override { ::inflateEnd(&state_); }

  size_t read(std::string& out, size_t most_bytes) override {
    const size_t before = out.size();
    out.resize(before + most_bytes);
    state_.next_out = reinterpret_cast<Bytef*>(out.data() + before);
    state_.avail_out = static_cast<uInt>(most_bytes);
    while (state_.avail_out > 0) {
      if (state_.avail_in == 0 && !refill()) {
        require(between_members_, "prepare",
                "{} ends in the middle of its gzip data; it was cut off, fetch it again", path_);
        break;
      }
      if (between_members_ && !begin_member()) break;
      const int rc = ::inflate(&state_, Z_NO_FLUSH);
      require(rc == Z_OK || rc == Z_STREAM_END || rc == Z_BUF_ERROR, "prepare",
              "{} has damaged gzip data ({}); fetch it again", path_,
              state_.msg ? state_.msg : "no reason given");
      between_members_ = rc == Z_STREAM_END;
    }
    const size_t got = most_bytes - state_.avail_out;
    out.resize(before + got);
    return got;
  }

 private:
  bool refill() {
    state_.next_in = input_.data();
    state_.avail_in = static_cast<uInt>(read_file_chunk(path_, file_.get(), input_.data(), input_.size()));
    return state_.avail_in > 0;
  }
  /// Zeros after the last member are padding, as gzip itself takes them.
  bool begin_member() {
    while (members_ > 0 && state_.avail_in > 0 && *state_.next_in == 0) {
      ++state_.next_in;
      if (--state_.avail_in == 0) refill();
    }
    if (state_.avail_in == 0) return false;
    if (members_++ > 0) ::inflateReset(&state_);
    between_members_ = false;
    return true;
  }

  std::string path_;
  File file_;
  std::vector<Bytef> input_;
  z_stream state_{};
  bool between_members_ = true;
  int64_t members_ = 0;
};

class ZstdStream final : public ByteStream {
 public:
  ZstdStream(std::string path, File file)
      : path_(std::move(path)), file_(std::move(file)), bytes_(kChunkBytes), state_(ZSTD_createDCtx()) {
    require(state_ != nullptr, "prepare", "zstd cannot start on {}", path_);
  }
  ~ZstdStream() override { ZSTD_freeDCtx(state_); }

  size_t read(std::string& out, size_t most_bytes) override {
    const size_t before = out.size();
    out.resize(before + most_bytes);
    ZSTD_outBuffer to{out.data() + before, most_bytes, 0};
    while (to.pos < to.size) {
      if (input_.pos == input_.size) {
        const size_t got = read_file_chunk(path_, file_.get(), bytes_.data(), bytes_.size());
        if (got == 0) {
          require(frame_done_, "prepare",
                  "{} ends in the middle of its zstd data; it was cut off, fetch it again", path_);
          break;
        }
        input_ = {bytes_.data(), got, 0};
      }
      const size_t rc = ZSTD_decompressStream(state_, &to, &input_);
      require(!ZSTD_isError(rc), "prepare", "{} has damaged zstd data ({}); fetch it again", path_,
              ZSTD_getErrorName(rc));
      frame_done_ = rc == 0;
    }
    out.resize(before + to.pos);
    return to.pos;
  }

 private:
  std::string path_;
  File file_;
  std::vector<char> bytes_;
  ZSTD_DCtx* state_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool frame_done_ = false;
};

}  // namespace

std::unique_ptr<ByteStream> open_bytes(const std::string& path) {
  std::error_code ignored;
  require(!std::filesystem::is_directory(path, ignored), "prepare",
          "{} is a directory; name files in it, as in {}/*", path, path);
  for (const char* ending : {".xz", ".bz2", ".lz4", ".zip", ".7z"})
    require(!path.ends_with(ending), "prepare",
            "{} is compressed in a way that is not read here; unpack it, or compress it as .gz or .zst",
            path);
  File file(std::fopen(path.c_str(), "rbe"));
  require(file != nullptr, "prepare", "cannot open {}: {}", path, std::strerror(errno));
  unsigned char head[4] = {};
  const size_t got = read_file_chunk(path, file.get(), head, sizeof head);
  std::rewind(file.get());
  const bool gzip = got >= 2 && head[0] == 0x1f && head[1] == 0x8b;
  const bool zstd = got >= 4 && head[0] == 0x28 && head[1] == 0xb5 && head[2] == 0x2f && head[3] == 0xfd;
  require(gzip || !(path.ends_with(".gz") || path.ends_with(".dz")), "prepare",
          "{} is named as gzip but does not begin as gzip does; rename it or fetch it again", path);
  require(zstd || !path.ends_with(".zst"), "prepare",
          "{} is named as zstd but does not begin as zstd does; rename it or fetch it again", path);
  if (gzip) return std::make_unique<GzipStream>(path, std::move(file));
  if (zstd) return std::make_unique<ZstdStream>(path, std::move(file));
  return std::make_unique<PlainStream>(path, std::move(file));
}

}  // namespace osprey
