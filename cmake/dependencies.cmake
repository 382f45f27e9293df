# Libraries of the runner. The core links none of them.
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
find_package(nlohmann_json 3.11 REQUIRED)

# Found by header and library: the config file of Debian's package asks for OpenCL, which a product on
# a CPU does not need.
set(KVC_HAVE_ONEDNN 0)
if(NOT KVCACHE_WITH_ONEDNN STREQUAL "OFF")
  find_path(KVC_ONEDNN_INCLUDE oneapi/dnnl/dnnl.hpp)
  find_library(KVC_ONEDNN_LIBRARY dnnl)
  if(KVC_ONEDNN_INCLUDE AND KVC_ONEDNN_LIBRARY)
    set(KVC_HAVE_ONEDNN 1)
    add_library(kvc_onednn INTERFACE)
    target_include_directories(kvc_onednn SYSTEM INTERFACE ${KVC_ONEDNN_INCLUDE})
    # gomp is the OpenMP of Debian's oneDNN: the runner tells it to use one thread, and neither g++
    # nor clang compiles anything of ours as OpenMP.
    target_link_libraries(kvc_onednn INTERFACE ${KVC_ONEDNN_LIBRARY} gomp)
  elseif(KVCACHE_WITH_ONEDNN STREQUAL "ON")
    message(FATAL_ERROR "KVCACHE_WITH_ONEDNN: found no oneDNN, expected one (Debian: libdnnl-dev)")
  endif()
endif()
message(STATUS "oneDNN for the runner's products: ${KVC_HAVE_ONEDNN}")
