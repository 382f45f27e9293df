# kvc_glob(VAR FOLDER): the sources below FOLDER, without those of another platform.
function(kvc_glob var folder)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${folder}/*.cc)
  if(NOT KVC_X86_64)
    list(FILTER sources EXCLUDE REGEX "_(avx2|avx512)\\.cc$")
  endif()
  set(${var} ${sources} PARENT_SCOPE)
endfunction()
