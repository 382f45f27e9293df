# What is built, and for whom. A project that embeds kvcache gets the library alone.
option(BUILD_SHARED_LIBS "Build libkvcache as a shared library" OFF)
option(KVCACHE_BUILD_RUNNER "The model runner (ON, OFF, AUTO: where its libraries are)" ${PROJECT_IS_TOP_LEVEL})
option(KVCACHE_BUILD_CLI "The command line (needs the runner)" ${PROJECT_IS_TOP_LEVEL})
option(KVCACHE_BUILD_BENCH "The measurements behind `kvcache bench`" ${PROJECT_IS_TOP_LEVEL})
option(KVCACHE_BUILD_EXAMPLES "The examples" ${PROJECT_IS_TOP_LEVEL})
option(KVCACHE_BUILD_TESTS "The tests (of what is built)" ${PROJECT_IS_TOP_LEVEL})
option(KVCACHE_BUILD_PYTHON "The Python package (needs nanobind in the Python that is found)" OFF)
option(KVCACHE_INSTALL "Rules for `cmake --install`" ${PROJECT_IS_TOP_LEVEL})
option(KVCACHE_BUILD_FUZZERS "The fuzz targets (clang with -fsanitize=fuzzer-no-link)" OFF)

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  set(KVC_PORTABLE_MEMORY_DEFAULT OFF)
else()
  set(KVC_PORTABLE_MEMORY_DEFAULT ON)
endif()
option(KVCACHE_PORTABLE_MEMORY "Grow buffers by copying instead of remapping"
       ${KVC_PORTABLE_MEMORY_DEFAULT})

set(KVCACHE_WITH_ONEDNN AUTO CACHE STRING "oneDNN for the runner's matrix products: AUTO, ON, OFF")
set_property(CACHE KVCACHE_WITH_ONEDNN PROPERTY STRINGS AUTO ON OFF)

if(KVCACHE_BUILD_CLI AND NOT KVCACHE_BUILD_RUNNER)
  message(FATAL_ERROR "KVCACHE_BUILD_RUNNER: found OFF, expected ON (the command line uses it)")
endif()

if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Type of build" FORCE)
  endif()
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  find_program(KVC_CCACHE ccache)
  if(KVC_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    # Presets and clones differ in their folder, not in most of their objects.
    set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_NOHASHDIR=1
        CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} ${KVC_CCACHE})
  endif()
endif()

set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib")

# Every program of a build lies in one folder, and finds the models and tools beside it the way an
# installed one does: ../share/kvcache.
set(KVC_BIN_DIR ${PROJECT_BINARY_DIR}/bin)
