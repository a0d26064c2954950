/* What computing a model's layers shares. */

#pragma once

#include "kernels.h"

#if LEVEL >= 3

typedef __fp16 halves __attribute__((ext_vector_type(WIDE)));

INLINE float sum_of(floats values) {
    const float __attribute__((ext_vector_type(8))) eight = values.lo + values.hi;
    const float __attribute__((ext_vector_type(4))) four = eight.lo + eight.hi;
    const float __attribute__((ext_vector_type(2))) two = four.lo + four.hi;
    return two.x + two.y;
}

/* e to the x for x <= 0, to a few units in the last place: 2 to the n times a polynomial of what is left (Cephes). */
INLINE floats exponential(floats x) {
#pragma clang fp contract(fast)
    x = as_floats((as_bits(x) & ~(x < -87.0f)) | (as_bits((floats)-87.0f) & (x < -87.0f)));
    const floats shifted = x * 1.44269504f + 12582912.0f; /* rounded to a whole number in its lowest bits */
    const floats n = shifted - 12582912.0f;
    const floats left = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats sum = left * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * left + 8.3334519073e-3f;
    sum = sum * left + 4.1665795894e-2f;
    sum = sum * left + 1.6666665459e-1f;
    sum = sum * left + 5.0000001201e-1f;
    sum = sum * left * left + left + 1.0f;
    return as_floats(as_bits(sum) + (as_bits(shifted) << 23));
}

#endif
