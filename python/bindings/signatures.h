// What signatures say of arguments and results that nanobind takes for any object. The names are
// those of python/kvcache/typing.py; python/stubs.py makes the stubs of them.
#ifndef KVCACHE_PYTHON_BINDINGS_SIGNATURES_H_
#define KVCACHE_PYTHON_BINDINGS_SIGNATURES_H_

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace kvcache::python {

template <std::size_t kSize>
struct Words {
  char text[kSize] = {};
  consteval Words(const char (&given)[kSize]) {  // NOLINT: implicit
    std::copy_n(given, kSize, text);
  }
};

// An argument: whatever was given. Functions check it themselves.
template <Words kName>
class Given : public nanobind::handle {
 public:
  static constexpr auto Name = nanobind::detail::const_name(kName.text);
  using handle::handle;
  Given(nanobind::handle given) noexcept : handle(given) {}  // NOLINT: implicit
};

// A result.
template <Words kName>
class Made : public nanobind::object {
 public:
  static constexpr auto Name = nanobind::detail::const_name(kName.text);
  using object::object;
  Made(nanobind::object given) noexcept  // NOLINT: implicit
      : nanobind::object(std::move(given)) {}
};

using GivenArray = Given<"kvcache.typing.Array">;
using GivenIds = Given<"kvcache.typing.Ids">;
using GivenPositions = Given<"kvcache.typing.Positions">;
using GivenBlockTable = Given<"kvcache.typing.BlockTable">;
using GivenNumbers = Given<"kvcache.typing.Numbers">;
using GivenMask = Given<"kvcache.typing.Mask">;
using GivenKv = Given<"kvcache.typing.KV">;
using GivenDType = Given<"kvcache.typing.DType">;
using GivenLayout = Given<"kvcache.typing.Layout">;
using GivenLse = Given<"kvcache.typing.Lse">;
using GivenExecutor = Given<"kvcache._core.ThreadPool">;
using GivenMemo = Given<"dict[int, object]">;  // of copy.deepcopy

// Results are of the library that the first array came from: NumPy's for all but tensors.
using FirstArray = Given<"kvcache.typing.ArrayT">;
using FirstPair = Given<"tuple[kvcache.typing.ArrayT, kvcache.typing.ArrayT]">;
using LikeFirst = Made<"kvcache.typing.ArrayT">;
using PairLikeFirst = nanobind::typed<nanobind::tuple, LikeFirst, LikeFirst>;
// out, or (out, lse)
using Attended =
    Made<"kvcache.typing.ArrayT | tuple[kvcache.typing.ArrayT, kvcache.typing.ArrayT]">;
// (key, value, length, mask)
using Fetched = nanobind::typed<nanobind::tuple, LikeFirst, LikeFirst, std::int64_t,
                                Made<"kvcache.typing.Mask | None">>;

// Of the library whose array came in last.
using AnyArray = Made<"kvcache.typing.AnyArray">;
using AnyPair = nanobind::typed<nanobind::tuple, AnyArray, AnyArray>;

using Int32Array = Made<"numpy.typing.NDArray[numpy.int32]">;
using Float32Array = Made<"numpy.typing.NDArray[numpy.float32]">;
using Self = Made<"typing_extensions.Self">;

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_SIGNATURES_H_
