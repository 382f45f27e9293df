# Public headers whose code exists. prefix.h and tier.h are designed but not written yet, and join
# the list with their code.
set(KVC_INSTALLED_HEADERS
  attention.h backend.h batching_cache.h cache.h dynamic_cache.h executor.h full_cache.h
  functional.h kv_view.h kvcache.h layer_handle.h layer_spec.h mask.h memory.h memory_plan.h
  paged_cache.h static_cache.h status.h tensor_view.h types.h version.h)

if(NOT PROJECT_IS_TOP_LEVEL OR NOT TARGET kvcache)
  return()
endif()
include(GNUInstallDirs)
install(TARGETS kvcache)
foreach(header IN LISTS KVC_INSTALLED_HEADERS)
  install(FILES include/kvcache/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvcache)
endforeach()
if(TARGET kvcache_cli)
  install(TARGETS kvcache_cli)
  install(DIRECTORY models/storyteller DESTINATION ${CMAKE_INSTALL_DATADIR}/kvcache/models)
  install(FILES tools/plot.py DESTINATION ${CMAKE_INSTALL_DATADIR}/kvcache/tools)
endif()
