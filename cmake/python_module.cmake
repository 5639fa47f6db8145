# pccl._native: the cffi extension module, with the core linked in statically.

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module ${SKBUILD_SABI_COMPONENT})

set(native_source "${PROJECT_BINARY_DIR}/_native.c")
set(public_headers
    "${PROJECT_SOURCE_DIR}/csrc/include/ccoip_inet.h"
    "${PROJECT_SOURCE_DIR}/csrc/include/ccoip.h"
    "${PROJECT_SOURCE_DIR}/csrc/include/pccl.h")
add_custom_command(
    OUTPUT "${native_source}"
    COMMAND Python::Interpreter "${PROJECT_SOURCE_DIR}/bindings/build_native.py" "${native_source}"
    DEPENDS "${PROJECT_SOURCE_DIR}/bindings/build_native.py" ${public_headers}
    VERBATIM)

if(SKBUILD_SABI_VERSION)
    python_add_library(_native MODULE "${native_source}" WITH_SOABI USE_SABI ${SKBUILD_SABI_VERSION})
else()
    python_add_library(_native MODULE "${native_source}" WITH_SOABI)
endif()

add_library(pccl_static STATIC $<TARGET_OBJECTS:pccl_core>)
set_target_properties(pccl_static PROPERTIES LINKER_LANGUAGE C)
target_link_libraries(pccl_static PUBLIC Threads::Threads $<$<PLATFORM_ID:Linux>:m>)
target_include_directories(_native PRIVATE "${PROJECT_SOURCE_DIR}/csrc" "${PROJECT_SOURCE_DIR}/csrc/include")
target_link_libraries(_native PRIVATE pccl_static)
target_compile_options(_native PRIVATE -UNDEBUG)
set_target_properties(_native PROPERTIES C_VISIBILITY_PRESET hidden)
if(NOT APPLE)
    target_link_options(_native PRIVATE -Wl,--exclude-libs,ALL)
endif()
install(TARGETS _native LIBRARY DESTINATION pccl)
