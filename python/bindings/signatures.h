// What signatures say of arguments and results that nanobind takes for any object. The names are
// those of python/kvcache/typing.py; python/stubs.py makes the stubs of them.
#ifndef KVCACHE_PYTHON_BINDINGS_SIGNATURES_H_
#define KVCACHE_PYTHON_BINDINGS_SIGNATURES_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <utility>

namespace kvcache::python {

// An argument: whatever was given. Functions check it themselves.
template <const auto& kName>
class Given : public nanobind::handle {
 public:
  static constexpr auto Name = nanobind::detail::const_name(kName);
  using handle::handle;
  Given(nanobind::handle given) noexcept : handle(given) {}  // NOLINT: implicit
};

// A result.
template <const auto& kName>
class Made : public nanobind::object {
 public:
  static constexpr auto Name = nanobind::detail::const_name(kName);
  using object::object;
  Made(nanobind::object given) noexcept  // NOLINT: implicit
      : nanobind::object(std::move(given)) {}
};

// Named, because a literal as the argument of a template is spelt out in every symbol it is part
// of.
namespace said {
inline constexpr char kArray[] = "kvcache.typing.Array";
inline constexpr char kIds[] = "kvcache.typing.Ids";
inline constexpr char kPositions[] = "kvcache.typing.Positions";
inline constexpr char kBlockTable[] = "kvcache.typing.BlockTable";
inline constexpr char kNumbers[] = "kvcache.typing.Numbers";
inline constexpr char kMask[] = "kvcache.typing.Mask";
inline constexpr char kMaskOrNone[] = "kvcache.typing.Mask | None";
inline constexpr char kKv[] = "kvcache.typing.KV";
inline constexpr char kDType[] = "kvcache.typing.DType";
inline constexpr char kLayout[] = "kvcache.typing.Layout";
inline constexpr char kLse[] = "kvcache.typing.Lse";
inline constexpr char kExecutor[] = "kvcache._core.ThreadPool";
inline constexpr char kMemo[] = "dict[int, object]";
inline constexpr char kFirst[] = "kvcache.typing.ArrayT";
inline constexpr char kFirstPair[] = "tuple[kvcache.typing.ArrayT, kvcache.typing.ArrayT]";
inline constexpr char kAttended[] =
    "kvcache.typing.ArrayT | tuple[kvcache.typing.ArrayT, kvcache.typing.ArrayT]";
inline constexpr char kTensor[] = "kvcache.typing.TensorT";
inline constexpr char kTensorOrNone[] = "kvcache.typing.TensorT | None";
inline constexpr char kNewTensor[] = "kvcache.typing.Tensor";
inline constexpr char kLayerRows[] =
    "kvcache._core.hf.PagedLayer | tuple[kvcache.typing.Tensor, kvcache.typing.Tensor]";
inline constexpr char kCounted[] = "int | dict[str, int]";
inline constexpr char kAny[] = "kvcache.typing.AnyArray";
inline constexpr char kInt32[] = "numpy.typing.NDArray[numpy.int32]";
inline constexpr char kFloat32[] = "numpy.typing.NDArray[numpy.float32]";
inline constexpr char kSelf[] = "typing_extensions.Self";
}  // namespace said

using GivenArray = Given<said::kArray>;
using GivenIds = Given<said::kIds>;
using GivenPositions = Given<said::kPositions>;
using GivenBlockTable = Given<said::kBlockTable>;
using GivenNumbers = Given<said::kNumbers>;
using GivenMask = Given<said::kMask>;
using GivenKv = Given<said::kKv>;
using GivenDType = Given<said::kDType>;
using GivenLayout = Given<said::kLayout>;
using GivenLse = Given<said::kLse>;
using GivenExecutor = Given<said::kExecutor>;
using GivenMemo = Given<said::kMemo>;  // of copy.deepcopy

// Results are of the library that the first array came from: NumPy's for all but tensors.
using FirstArray = Given<said::kFirst>;
using FirstPair = Given<said::kFirstPair>;
using LikeFirst = Made<said::kFirst>;
using PairLikeFirst = nanobind::typed<nanobind::tuple, LikeFirst, LikeFirst>;
using Attended = Made<said::kAttended>;  // out, or (out, lse)
// (key, value, length, mask)
using Fetched =
    nanobind::typed<nanobind::tuple, LikeFirst, LikeFirst, std::int64_t, Made<said::kMaskOrNone>>;

// What takes tensors of PyTorch alone.
using GivenTensor = Given<said::kTensor>;
using LikeTensor = Made<said::kTensor>;
using TensorOrNone = Made<said::kTensorOrNone>;
using NewTensor = Made<said::kNewTensor>;
// What holds the rows of one layer of a call of transformers.
using GivenLayerRows = Given<said::kLayerRows>;

// Of the library whose array came in last.
using AnyArray = Made<said::kAny>;
using AnyPair = nanobind::typed<nanobind::tuple, AnyArray, AnyArray>;

using Int32Array = Made<said::kInt32>;
using Float32Array = Made<said::kFloat32>;
using Self = Made<said::kSelf>;

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_SIGNATURES_H_
