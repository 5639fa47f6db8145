#include "data/reduce.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

#include <stdatomic.h>

#include "base/check.h"
#include "base/limits.h"
#include "data/datatype.h"
#include "data/reduce_kernels.h"
#include "include/pccl.h"

static enum reduce_level detect_level(void) {
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_F16C) || !__builtin_cpu_supports("avx2")) {
        return REDUCE_SCALAR;
    }
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512 ? REDUCE_AVX512 : REDUCE_AVX2;
#elif defined(__aarch64__)
    return REDUCE_NEON;
#else
    return REDUCE_SCALAR;
#endif
}

enum reduce_level reduce_best_level(void) {
    /* Asking the processor can take microseconds in a virtual machine. Threads that race here write the
     * same value. */
    static atomic_int known = -1;
    int level = atomic_load_explicit(&known, memory_order_relaxed);
    if (level < 0) {
        level = (int)detect_level();
        atomic_store_explicit(&known, level, memory_order_relaxed);
    }
    return (enum reduce_level)level;
}

static const struct reduce_kernels *kernels_of(enum reduce_level level) {
    switch (level) {
    case REDUCE_SCALAR:
        return &reduce_kernels_scalar;
#if defined(__x86_64__)
    case REDUCE_AVX2:
        return &reduce_kernels_avx2;
    case REDUCE_AVX512:
        return &reduce_kernels_avx512;
#endif
#if defined(__aarch64__)
    case REDUCE_NEON:
        return &reduce_kernels_neon;
#endif
    default:
        return NULL;
    }
}

/* A program may have set its threads to flush subnormals to zero (torch.set_flush_denormal), to round
 * otherwise or to trap, and new threads inherit that; peers that differ in it would get different bits.
 * So kernels run in the default mode, and the thread gets its own back. */
#if defined(__x86_64__)
typedef unsigned float_mode;
enum { FLOAT_MODE_DEFAULT = 0x1F80, FLOAT_MODE_FLAGS = 0x3F }; /* MXCSR; its low bits only record */

static float_mode float_mode_enter(void) {
    float_mode own = _mm_getcsr();
    if ((own & ~(float_mode)FLOAT_MODE_FLAGS) != FLOAT_MODE_DEFAULT) {
        _mm_setcsr(FLOAT_MODE_DEFAULT);
    }
    return own;
}

static void float_mode_leave(float_mode own) {
    if ((own & ~(float_mode)FLOAT_MODE_FLAGS) != FLOAT_MODE_DEFAULT) {
        _mm_setcsr(own);
    }
}
#elif defined(__aarch64__)
typedef uint64_t float_mode; /* FPCR; all zero by default */

static float_mode float_mode_enter(void) {
    float_mode own;
    __asm__ volatile("mrs %0, fpcr" : "=r"(own));
    if (own != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"((float_mode)0) : "memory");
    }
    return own;
}

static void float_mode_leave(float_mode own) {
    if (own != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"(own) : "memory");
    }
}
#else
typedef int float_mode;

static float_mode float_mode_enter(void) {
    return 0;
}

static void float_mode_leave(float_mode own) {
    (void)own;
}
#endif

void reduce_at(enum reduce_level level, uint8_t datatype, uint8_t reduce_op, void *destination, const void *a,
               const void *b, size_t count) {
    const struct reduce_kernels *kernels = kernels_of(level);
    CHECK(kernels != NULL && datatype_valid(datatype) && reduce_op_valid(reduce_op));
    float_mode own = float_mode_enter();
    kernels->reduce[datatype][reduce_op](destination, a, b, count);
    float_mode_leave(own);
}

void reduce_average_at(enum reduce_level level, uint8_t datatype, void *destination, const void *a,
                       const void *b, uint32_t divisor, size_t count) {
    const struct reduce_kernels *kernels = kernels_of(level);
    CHECK(kernels != NULL && datatype_valid(datatype) && divisor > 0 && divisor <= MAX_PEERS);
    float_mode own = float_mode_enter();
    if (divisor == 1) {
        kernels->reduce[datatype][pcclSum](destination, a, b, count);
    } else {
        kernels->average[datatype](destination, a, b, divisor, count);
    }
    float_mode_leave(own);
}

void reduce(uint8_t datatype, uint8_t reduce_op, void *destination, const void *a, const void *b,
            size_t count) {
    reduce_at(reduce_best_level(), datatype, reduce_op, destination, a, b, count);
}

void reduce_average(uint8_t datatype, void *destination, const void *a, const void *b, uint32_t divisor,
                    size_t count) {
    reduce_average_at(reduce_best_level(), datatype, destination, a, b, divisor, count);
}
