# What only the tests need: the core with every symbol visible, so that the pure floors can be driven
# from Python, and the C drivers of tests/c that run under the sanitizers too.

add_library(pccl_testing SHARED ${pccl_sources})
pccl_compile_options(pccl_testing)
target_link_libraries(pccl_testing PRIVATE $<$<PLATFORM_ID:Linux>:m>)
set_target_properties(pccl_testing PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/testing")

file(GLOB pccl_drivers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/c/driver_*.c")
foreach(source IN LISTS pccl_drivers)
    get_filename_component(name "${source}" NAME_WE)
    add_executable(${name} "${source}")
    pccl_compile_options(${name})
    target_link_libraries(${name} PRIVATE pccl_testing)
    set_target_properties(${name} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/testing/drivers")
endforeach()
