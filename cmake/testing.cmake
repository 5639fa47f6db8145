# What only the tests need. All of it lands in testing/ of the build folder.

set(testing_dir "${PROJECT_BINARY_DIR}/testing")

# The core with every symbol visible, so that the pure floors can be driven from Python.
add_library(pccl_testing SHARED ${pccl_sources})
pccl_compile_options(pccl_testing)
target_link_libraries(pccl_testing PRIVATE $<$<PLATFORM_ID:Linux>:m>)
set_target_properties(pccl_testing PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${testing_dir}")

# A program with the core linked in.
function(pccl_test_program target folder)
    add_executable(${target} ${ARGN})
    pccl_compile_options(${target})
    target_compile_options(${target} PRIVATE -D_GNU_SOURCE=) # empty, as where files define it themselves
    target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(${target} PRIVATE pccl_static)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${testing_dir}/${folder}")
endfunction()

file(GLOB drivers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/c/driver_*.c")
foreach(source IN LISTS drivers)
    get_filename_component(name "${source}" NAME_WE)
    pccl_test_program(${name} drivers "${source}")
endforeach()

# It counts what the core's calls of these functions touch.
foreach(counted memcpy memmove copy_past_cache reduce reduce_average crc32c crc32c_extend)
    target_link_options(driver_copies PRIVATE "LINKER:--wrap=${counted}")
endforeach()

file(GLOB fuzz_targets CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_*.c")
foreach(source IN LISTS fuzz_targets)
    get_filename_component(name "${source}" NAME_WE)
    if(PCCL_LIBFUZZER)
        pccl_test_program(${name} fuzz "${source}")
        target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    else()
        pccl_test_program(${name} fuzz "${source}" "${PROJECT_SOURCE_DIR}/tests/fuzz/standalone.c")
    endif()
endforeach()
if(PCCL_LIBFUZZER)
    target_compile_options(pccl_core PRIVATE -fsanitize=fuzzer-no-link)
endif()
