// What the fuzz targets share.
#ifndef KVCACHE_TESTS_SUPPORT_FUZZ_H_
#define KVCACHE_TESTS_SUPPORT_FUZZ_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

// The door libFuzzer knocks at.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace kvcache::fuzz {

// Ends the program, which libFuzzer reports with the input that led here.
inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "expected: %s\n", what.c_str());
  std::abort();
}

// The input as text, up to a byte 0, and what comes after that byte.
struct Halves {
  std::string_view first;
  std::string_view second;
};
inline Halves split_at_zero(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t at = text.find('\0');
  if (at == std::string_view::npos) return {text, {}};
  return {text.substr(0, at), text.substr(at + 1)};
}

// The input as numbers, one at a time; 0 after its end.
class Numbers {
 public:
  Numbers(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  bool empty() const { return at_ >= size_; }
  std::uint32_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  std::uint32_t two_bytes() {
    const std::uint32_t low = byte();
    return low | byte() << 8;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
  std::size_t at_ = 0;
};

}  // namespace kvcache::fuzz

#endif  // KVCACHE_TESTS_SUPPORT_FUZZ_H_
