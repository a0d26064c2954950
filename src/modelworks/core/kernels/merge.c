/* What merging does with every element of every model. Floats are looked at as the bits that they are where that is
   cheaper: without their sign, they are whole numbers in the order of the magnitudes. */

#include "kernels.h"

/* With AVX-512 they were slower. */
#if LEVEL < 4

#define MAGNITUDE 0x7FFFFFFF
/* From this magnitude on bfloat16 has no finite number. */
#define FINITE_AS_BFLOAT16 0x7F7F8000

/* bfloat16 (n) to float32 (n). */
KERNEL(widen)(const uint16_t *bits, uint32_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = (uint32_t)bits[i] << 16;
    return 0;
}

/* float32 (n) to bfloat16 (n), to the nearest and of two such to the even one. Returns whether any is then not finite. */
KERNEL(narrow)(const uint32_t *bits, uint16_t *out, int64_t n) {
    uint32_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        out[i] = (uint16_t)((bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) >> 16);
        wrong |= (bits[i] & MAGNITUDE) >= FINITE_AS_BFLOAT16;
    }
    return wrong;
}

/* Add to float32 (n) what is stored in bfloat16 (n). */
KERNEL(add)(float *values, const uint16_t *bits, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t wide = (uint32_t)bits[i] << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        values[i] += value;
    }
    return 0;
}

/* WIDE changes: float32, or where a base is given, bfloat16 less that. */
INLINE floats changes_at(const void *values, const uint16_t *base, int64_t start) {
    if (!base) return read_floats((const float *)values + start);
    return read_bfloats((const uint16_t *)values + start) - read_bfloats(base + start);
}

/* The last changes, fewer than WIDE, with zeros behind them. */
INLINE floats last_changes(const void *values, const uint16_t *base, int64_t start, int64_t n) {
    union { float floats[WIDE]; uint16_t bfloats[WIDE]; } of_values = {{0}}, of_base = {{0}};
    const int64_t size = base ? sizeof *base : sizeof(float);
    memcpy(&of_values, (const char *)values + start * size, (n - start) * size);
    if (base) memcpy(&of_base, base + start, (n - start) * size);
    return changes_at(&of_values, base ? of_base.bfloats : base, 0);
}

INLINE floats beyond(floats changes, int32_t bound) {
    const whole_numbers bits = as_bits(changes);
    return as_floats(bits & ((bits & MAGNITUDE) > bound));
}

/* Copy to `out` the changes (n) of a magnitude beyond that of `bound`, the rest as zeros. */
KERNEL(shrink)(const void *values, const uint16_t *base, int64_t bound, float *out, int64_t n) {
    int64_t start = 0;
    for (; start + WIDE <= n; start += WIDE)
        write_floats(beyond(changes_at(values, base, start), (int32_t)bound), out + start);
    const floats last = beyond(last_changes(values, base, start, n), (int32_t)bound);
    memcpy(out + start, &last, (n - start) * sizeof *out);
    return 0;
}

/* Append the magnitudes of changes (n) from `low` to `high`, and their places from `first` on, behind the
   `found` ones that are there already, `most` of them at most; count in `found` those that do not fit as well. Returns how many are
   below `low`. */
KERNEL(between)(const void *values, const uint16_t *base, int64_t n, int64_t low, int64_t high, int64_t first,
                int32_t *magnitudes, int64_t *places, int64_t *found, int64_t most) {
    int64_t below = 0, at = *found;
    for (int64_t start = 0; start < n; start += WIDE) {
        const int64_t left = n - start;
        const uint32_t all = left < WIDE ? (1u << left) - 1 : (1u << WIDE) - 1;
        const floats changes = left < WIDE ? last_changes(values, base, start, n) : changes_at(values, base, start);
        const whole_numbers near = as_bits(changes) & MAGNITUDE;
        const uint32_t fewer = as_mask(near < (int32_t)low) & all;
        below += __builtin_popcount(fewer);
        for (uint32_t mask = all & ~fewer & as_mask(near <= (int32_t)high); mask; mask &= mask - 1) {
            const int i = __builtin_ctz(mask);
            if (at < most) {
                magnitudes[at] = near[i];
                places[at] = first + start + i;
            }
            at++;
        }
    }
    *found = at;
    return below;
}

/* Add to `total` the magnitudes of changes (n). */
KERNEL(add_up)(const void *values, const uint16_t *base, int64_t n, double *total) {
    doubles sums = 0;
    for (int64_t start = 0; start < n; start += WIDE) {
        const floats changes = n - start < WIDE ? last_changes(values, base, start, n) : changes_at(values, base, start);
        sums += __builtin_convertvector(as_floats(as_bits(changes) & MAGNITUDE), doubles);
    }
    for (int i = 0; i < WIDE; i++) *total += sums[i];
    return 0;
}

/* The sum of changes (m, n), each times its weight (m). */
KERNEL(mix)(const void *values, const uint16_t *base, int64_t m, int64_t n, const float *weights, float *out) {
    const int64_t row_bytes = n * (base ? sizeof *base : sizeof *out);
    for (int64_t start = 0; start < n; start += WIDE) {
        const int64_t left = n - start;
        floats total = 0;
        for (int64_t model = 0; model < m; model++) {
            const void *row = (const char *)values + model * row_bytes;
            const floats changes = left < WIDE ? last_changes(row, base, start, n) : changes_at(row, base, start);
            total = model ? total + changes * weights[model] : changes * weights[model];
        }
        memcpy(out + start, &total, (left < WIDE ? left : WIDE) * sizeof *out);
    }
    return 0;
}

/* Of changes (n) those that are kept by chance, divided; the others as zeros of their sign. An element is kept if its
   number, from -2^31 to 2^31, is below a bound; `numbers` are bound and divisor. The elements' numbers are lowbias32
   (C. Wellons) without its last shift, of the places from `first` on and two keys. */
KERNEL(drop)(const void *values, const uint16_t *base, int64_t n, int64_t first, int64_t key, int64_t second_key,
             const float *numbers, float *out) {
    whole_numbers places;
    for (int i = 0; i < WIDE; i++) places[i] = i;
    const floats one = 1.0f, bound = numbers[0], divisor = numbers[1];
    for (int64_t start = 0; start < n; start += WIDE) {
        const int64_t left = n - start;
        unsigned_numbers rolls = __builtin_bit_cast(unsigned_numbers, places + (int32_t)(first + start));
        rolls ^= rolls >> 16;
        rolls ^= (uint32_t)key ^ (uint32_t)key >> 16;
        rolls = rolls * 0x7FEB352Du + (uint32_t)second_key;
        rolls ^= rolls >> 15;
        rolls *= 0x846CA68Bu;
        const whole_numbers kept = __builtin_convertvector(__builtin_bit_cast(whole_numbers, rolls), floats) < bound;
        const floats changes = left < WIDE ? last_changes(values, base, start, n) : changes_at(values, base, start);
        const floats found = changes * as_floats(as_bits(one) & kept) / divisor;
        memcpy(out + start, &found, (left < WIDE ? left : WIDE) * sizeof *out);
    }
    return 0;
}

INLINE floats elected(const float *rows, int64_t m, int64_t apart, const float *weights, int64_t normalize) {
    floats total = read_floats(rows), sum = 0, divisor = 0;
    for (int64_t model = 1; model < m; model++) total += read_floats(rows + model * apart);
    for (int64_t model = 0; model < m; model++) {
        whole_numbers bits = as_bits(read_floats(rows + model * apart));
        bits &= ~((bits ^ as_bits(total)) >> 31);
        sum = model ? sum + as_floats(bits) : as_floats(bits);
        divisor += as_floats(as_bits((floats)weights[model]) & (as_floats(bits) != 0));
    }
    if (normalize) sum /= as_floats(as_bits(divisor) | (as_bits((floats)1.0f) & (divisor == 0)));
    return sum;
}

/* Of rows (m, n) the sum of what has the sign of the sum of all, in `out` (n). If `normalize`, it is divided by the
   weights (m) of those that are not 0, if their sum is not. */
KERNEL(elect)(const float *rows, int64_t m, int64_t n, const float *weights, int64_t normalize, float *out) {
    int64_t start = 0;
    for (; start + WIDE <= n; start += WIDE) write_floats(elected(rows + start, m, n, weights, normalize), out + start);
    if (start == n) return 0;
    float left[m][WIDE];
    memset(left, 0, sizeof left);
    for (int64_t model = 0; model < m; model++)
        memcpy(left[model], rows + model * n + start, (n - start) * sizeof *rows);
    const floats last = elected(left[0], m, WIDE, weights, normalize);
    memcpy(out + start, &last, (n - start) * sizeof *out);
    return 0;
}

#endif
