if(NOT KVCACHE_INSTALL)
  return()
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS kvcache EXPORT kvcache-targets)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")

# find_package(kvcache): the target kvcache::kvcache, which links nothing but threads. Versions below
# 1.0 promise no compatibility beyond their minor number.
set(KVC_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/kvcache)
install(EXPORT kvcache-targets NAMESPACE kvcache:: DESTINATION ${KVC_PACKAGE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvcache-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES cmake/kvcache-config.cmake ${PROJECT_BINARY_DIR}/kvcache-config-version.cmake
        DESTINATION ${KVC_PACKAGE_DIR})

# pkg-config: the prefix is found from the file's own place, so that an installed tree may move. A
# static library brings along what it needs, for those who link it from C too.
file(RELATIVE_PATH KVC_PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" KVC_PC_UP "${KVC_PC_UP}")
set(KVC_PC_STATIC "")
if(NOT BUILD_SHARED_LIBS)
  set(KVC_PC_STATIC " -lstdc++ -lm -pthread")
endif()
configure_file(cmake/kvcache.pc.in ${PROJECT_BINARY_DIR}/kvcache.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kvcache.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET kvcache_cli)
  install(TARGETS kvcache_cli)
  install(DIRECTORY models/storyteller DESTINATION ${CMAKE_INSTALL_DATADIR}/kvcache/models)
  install(FILES tools/plot.py DESTINATION ${CMAKE_INSTALL_DATADIR}/kvcache/tools)
endif()
