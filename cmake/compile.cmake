# How everything here is compiled: the target `kvc_options` carries it.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(THREADS_PREFER_PTHREAD_FLAG ON)
# GLOBAL: a project that adds this folder links the same target from its own.
find_package(Threads REQUIRED GLOBAL)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(KVC_X86_64 1)
else()
  set(KVC_X86_64 0)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(KVC_ARM64 1)
else()
  set(KVC_ARM64 0)
endif()

add_library(kvc_options INTERFACE)
target_compile_options(kvc_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor> $<$<COMPILE_LANGUAGE:CXX>:-Woverloaded-virtual>
  # A product and a sum stay two roundings unless the source says fma: results must not depend on
  # what the compiler of a platform likes to fuse.
  -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 warns of its own std::string (GCC bug 105651), and of whatever an optional holds
  # (GCC bug 80635); clang reads the same sources in the lint.
  target_compile_options(kvc_options INTERFACE -Wno-restrict -Wno-maybe-uninitialized)
endif()
target_compile_definitions(kvc_options INTERFACE KVC_X86_64=${KVC_X86_64} KVC_ARM64=${KVC_ARM64})
target_link_libraries(kvc_options INTERFACE Threads::Threads)

# What a sanitizer makes of kernels, whose every function is inlined into the next: as much as it can leave to
# calls, it leaves to calls, and nothing is unrolled. They compile in a quarter of the time. Products of models are
# what tests of the runner wait for, and run six times as fast with checks in place.
set(KVC_SANITIZED_KERNELS "")
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize")
  set(KVC_SANITIZED_KERNELS -O1)
  if(CMAKE_CXX_FLAGS MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND KVC_SANITIZED_KERNELS --param=asan-instrumentation-with-call-threshold=0)
  elseif(CMAKE_CXX_FLAGS MATCHES "address")
    list(APPEND KVC_SANITIZED_KERNELS -mllvm -asan-instrumentation-with-call-threshold=0)
  endif()
endif()

# kvc_kernel_flags(SOURCES...): optimisation of inner loops in every other kind of build, and the
# instruction set that the name of a file states: x_avx2.cc, x_avx512.cc, x_avx512bf16.cc. Any other
# file is compiled for the baseline of the platform, which on arm64 has what x_neon.cc needs.
function(kvc_kernel_flags)
  foreach(source IN LISTS ARGN)
    set(flags -O3 ${KVC_SANITIZED_KERNELS})
    if(source MATCHES "/product_" AND KVC_SANITIZED_KERNELS)
      set(flags -O2)
    endif()
    if(source MATCHES "_avx2\\.cc$")
      list(APPEND flags -mavx2 -mfma -mf16c)
    elseif(source MATCHES "_avx512(bf16)?\\.cc$")
      list(APPEND flags -mavx512f -mavx512bw -mavx512vl -mavx2 -mfma -mf16c)
      if(source MATCHES "bf16\\.cc$")
        list(APPEND flags -mavx512bf16 -mavx512vnni)
      endif()
      if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
        # g++ 12 warns of its own _mm512_undefined_ps (GCC bug 105593).
        list(APPEND flags -Wno-uninitialized -Wno-maybe-uninitialized)
      endif()
    endif()
    if(CMAKE_CXX_FLAGS MATCHES "undefined" AND source MATCHES "_(avx2|avx512|avx512bf16)\\.cc$")
      # Checks of undefined behaviour make these compile ten times as long. The same sources have
      # them where they are compiled for the baseline, x_portable.cc; all but what is multiplied by
      # pairs or as whole numbers, which the baseline does not have.
      list(APPEND flags -fno-sanitize=undefined)
    endif()
    set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS ${flags})
  endforeach()
endfunction()
