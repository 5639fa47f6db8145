# The C core, and how all of our own C is compiled.

file(GLOB pccl_sources CONFIGURE_DEPENDS
    "${PROJECT_SOURCE_DIR}/csrc/base/*.c"
    "${PROJECT_SOURCE_DIR}/csrc/wire/*.c"
    "${PROJECT_SOURCE_DIR}/csrc/data/*.c"
    "${PROJECT_SOURCE_DIR}/csrc/core/*.c"
    "${PROJECT_SOURCE_DIR}/csrc/net/*.c"
    "${PROJECT_SOURCE_DIR}/csrc/*.c")

function(pccl_compile_options target)
    target_compile_features(${target} PRIVATE c_std_11)
    set_target_properties(${target} PROPERTIES
        C_STANDARD 11
        C_STANDARD_REQUIRED ON
        C_EXTENSIONS OFF
        POSITION_INDEPENDENT_CODE ON)
    # -ffp-contract=off: a fused multiply-add rounds once where others round twice, and all peers must
    # hold the same bits. -UNDEBUG: Python's default flags carry -DNDEBUG.
    target_compile_options(${target} PRIVATE
        -Wall -Wextra -Wconversion -Wshadow
        $<$<BOOL:${PCCL_WERROR}>:-Werror>
        -ffp-contract=off
        -UNDEBUG)
    target_include_directories(${target} PRIVATE
        "${PROJECT_SOURCE_DIR}/csrc" "${PROJECT_SOURCE_DIR}/csrc/include")
    target_link_libraries(${target} PUBLIC Threads::Threads)
    if(PCCL_SANITIZE)
        target_compile_options(${target} PRIVATE
            -g -O1 -fno-omit-frame-pointer -fsanitize=${PCCL_SANITIZE} -fno-sanitize-recover=all)
        target_link_options(${target} PUBLIC -fsanitize=${PCCL_SANITIZE})
    endif()
endfunction()

add_library(pccl_core OBJECT ${pccl_sources})
pccl_compile_options(pccl_core)
set_target_properties(pccl_core PROPERTIES C_VISIBILITY_PRESET hidden)
