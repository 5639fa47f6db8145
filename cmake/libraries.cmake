# libpccl for C and C++ programs: shared and static, headers, pkg-config and a CMake package.

include(CMakePackageConfigHelpers)

foreach(kind IN ITEMS SHARED STATIC)
    string(TOLOWER "pccl_${kind}" target)
    add_library(${target} ${kind} $<TARGET_OBJECTS:pccl_core>)
    add_library(pccl::${target} ALIAS ${target})
    target_include_directories(${target} INTERFACE
        $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
        $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    target_link_libraries(${target} PUBLIC Threads::Threads $<$<PLATFORM_ID:Linux>:m>)
    set_target_properties(${target} PROPERTIES OUTPUT_NAME pccl LINKER_LANGUAGE C)
    if(PCCL_SANITIZE)
        target_link_options(${target} PUBLIC -fsanitize=${PCCL_SANITIZE})
    endif()
endforeach()
# Until 1.0 a new minor version may change the ABI.
set_target_properties(pccl_shared PROPERTIES
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})

install(TARGETS pccl_shared pccl_static EXPORT pcclTargets
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES
    "${PROJECT_SOURCE_DIR}/csrc/include/pccl.h"
    "${PROJECT_SOURCE_DIR}/csrc/include/ccoip.h"
    "${PROJECT_SOURCE_DIR}/csrc/include/ccoip_inet.h"
    DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

# Relative: `cmake --install --prefix` may name another folder than was configured.
file(RELATIVE_PATH pcfiledir_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/pccl.pc.in "${PROJECT_BINARY_DIR}/pccl.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/pccl.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pccl)
configure_package_config_file(cmake/pcclConfig.cmake.in "${PROJECT_BINARY_DIR}/pcclConfig.cmake"
    INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file("${PROJECT_BINARY_DIR}/pcclConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/pcclConfig.cmake" "${PROJECT_BINARY_DIR}/pcclConfigVersion.cmake"
    DESTINATION ${package_dir})
install(EXPORT pcclTargets NAMESPACE pccl:: DESTINATION ${package_dir})
