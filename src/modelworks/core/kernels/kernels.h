/* A kernel takes addresses and int64, and returns int64. It is compiled once for every generation of processors. */

#pragma once

#include <stdint.h>
#include <string.h>

#define NAMED(name, level) name##_##level
#define NAME(name, level) NAMED(name, level)
#define KERNEL(name) int64_t NAME(name, LEVEL)

/* Numbers that are computed together; a comparison gives -1 where it is true. */
enum { WIDE = 16 };
typedef int32_t whole_numbers __attribute__((ext_vector_type(WIDE)));
typedef uint32_t unsigned_numbers __attribute__((ext_vector_type(WIDE)));
typedef float floats __attribute__((ext_vector_type(WIDE)));
typedef double doubles __attribute__((ext_vector_type(WIDE)));
typedef uint16_t bfloats __attribute__((ext_vector_type(WIDE)));
typedef _Bool truths __attribute__((ext_vector_type(WIDE)));

/* Compiled as part of each kernel that it is used in. */
#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t as_mask(whole_numbers compared) {
    const truths found = __builtin_convertvector(compared, truths);
    uint16_t mask;
    memcpy(&mask, &found, sizeof mask);
    return mask;
}

INLINE whole_numbers as_bits(floats values) { return __builtin_bit_cast(whole_numbers, values); }
INLINE floats as_floats(whole_numbers bits) { return __builtin_bit_cast(floats, bits); }

INLINE floats read_floats(const float *from) {
    floats found;
    memcpy(&found, from, sizeof found);
    return found;
}

INLINE floats read_bfloats(const uint16_t *from) {
    bfloats found;
    memcpy(&found, from, sizeof found);
    return as_floats(__builtin_convertvector(found, whole_numbers) << 16);
}

INLINE void write_floats(floats values, float *to) { memcpy(to, &values, sizeof values); }

/* Do a part of something: from first to last, of as many as there are. */
typedef void (*Work)(void *given, int64_t first, int64_t last);

/* Have the threads that torch computes with do all of it, each an equal share; see team.c. */
void share_out(Work work, void *given, int64_t count);
