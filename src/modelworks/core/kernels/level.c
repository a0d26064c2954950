#include "kernels.h"

#if LEVEL == 1

#if defined(__x86_64__)
#include <cpuid.h>

enum { FMA = 1 << 12, MOVBE = 1 << 22, XSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };  /* leaf 1, ecx */
enum { BMI1 = 1 << 3, AVX2 = 1 << 5, BMI2 = 1 << 8, LZCNT = 1 << 5 };  /* leaf 7, ebx; leaf 0x80000001, ecx */
enum { AVX512 = 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1u << 31 };  /* leaf 7, ebx: F, DQ, CD, BW, VL */
enum { SAVES_AVX = 6, SAVES_AVX512 = 0xE6 };  /* which registers the operating system keeps for each process */

/* (The compiler's own way, __builtin_cpu_supports, finds nothing in a library that zig links.) */
static int x86_level(void) {
    const unsigned third = FMA | MOVBE | XSAVE | AVX | F16C, bits = BMI1 | AVX2 | BMI2;
    unsigned a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & third) != third) return 1;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & LZCNT)) return 1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & bits) != bits) return 1;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & SAVES_AVX) != SAVES_AVX) return 1;
    return (b & AVX512) == (unsigned)AVX512 && (saved & SAVES_AVX512) == SAVES_AVX512 ? 4 : 3;
}
#endif

/* Of the generations that the kernels are compiled for, the newest that this processor belongs to. */
int64_t level(void) {
#if defined(__x86_64__)
    return x86_level();
#else
    return 1;
#endif
}

#endif
