// The structures of DLPack (https://dmlc.github.io/dlpack), by which array libraries lend each
// other their memory. Their layout is fixed by that standard, version 1.
#ifndef KVCACHE_PYTHON_BINDINGS_DLPACK_H_
#define KVCACHE_PYTHON_BINDINGS_DLPACK_H_

#include <cstdint>

namespace kvcache::python {

struct DlDevice {
  std::int32_t type;
  std::int32_t index;
};
inline constexpr std::int32_t kDlCpu = 1;
inline constexpr std::int32_t kDlCuda = 2;

struct DlType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
enum DlCode : std::uint8_t { kDlInt = 0, kDlUInt = 1, kDlFloat = 2, kDlBfloat = 4, kDlBool = 6 };

struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t rank;
  DlType type;
  std::int64_t* shape;
  std::int64_t* strides;  // elements; null: dense and row-major
  std::uint64_t byte_offset;
};

// Before version 1: capsules named "dltensor".
struct DlManagedOld {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedOld*);
};

// Capsules named "dltensor_versioned".
struct DlManaged {
  std::uint32_t major;
  std::uint32_t minor;
  void* context;
  void (*deleter)(DlManaged*);
  std::uint64_t flags;
  DlTensor tensor;
};
inline constexpr std::uint64_t kDlReadOnly = 1;

// What a tensor type offers to C in `__dlpack_c_exchange_api__`, a capsule "dlpack_exchange_api".
// Each function returns 0, or -1 with a Python error set.
struct DlExchange {
  std::uint32_t major;
  std::uint32_t minor;
  DlExchange* previous;
  void* allocate;
  int (*managed_from_object)(void* object, DlManaged** out);
  int (*managed_to_object)(DlManaged* tensor, void** out);  // takes the tensor over
  int (*tensor_from_object)(void* object, DlTensor* out);   // borrows
  void* current_stream;
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_DLPACK_H_
