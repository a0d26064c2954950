/* What lies between a layer's products, each in one pass where torch's operations take three to six. */

#include "floats.h"

#if LEVEL >= 3

/* So few numbers are done sooner by one thread than shared out. */
enum { FEW = 1 << 13 };

INLINE void do_rows(Work work, void *given, int64_t rows, int64_t width) {
    if (rows * width < FEW) work(given, 0, rows);
    else share_out(work, given, rows);
}

typedef struct {
    const float *x, *weight;
    float *out;
    int64_t width;
    float epsilon;
} Norm;

static void norm_rows(void *given, int64_t first, int64_t last) {
    const Norm *its = given;
    const int64_t width = its->width, whole = width - width % WIDE;
    for (int64_t row = first; row < last; row++) {
        const float *x = its->x + row * width;
        float *out = its->out + row * width;
        floats squares = 0;
        for (int64_t i = 0; i < whole; i += WIDE) squares += read_floats(x + i) * read_floats(x + i);
        float sum = sum_of(squares);
        for (int64_t i = whole; i < width; i++) sum += x[i] * x[i];
        const float scale = 1 / __builtin_sqrtf(sum / (float)width + its->epsilon);
        for (int64_t i = 0; i < width; i++) out[i] = x[i] * scale * its->weight[i];
    }
}

/* RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) of every row of x (rows, width). */
KERNEL(norm)(const float *x, const float *weight, float *out, int64_t rows, int64_t width, const float *epsilon) {
    Norm norm = {x, weight, out, width, *epsilon};
    do_rows(norm_rows, &norm, rows, width);
    return 0;
}

typedef struct {
    const float *both;
    float *out;
    int64_t width;
} Gate;

static void gate_rows(void *given, int64_t first, int64_t last) {
    const Gate *its = given;
    for (int64_t row = first; row < last; row++)
        for (int64_t i = 0; i < its->width; i += WIDE) {
            const floats gate = read_floats(its->both + 2 * row * its->width + i);
            const floats up = read_floats(its->both + (2 * row + 1) * its->width + i);
            const floats small = exponential(as_floats(as_bits(gate) | (int32_t)0x80000000)); /* of minus its magnitude */
            const floats large = as_floats((as_bits((floats)1.0f) & (gate >= 0)) | (as_bits(small) & ~(gate >= 0)));
            write_floats(gate * large / (1.0f + small) * up, its->out + row * its->width + i);
        }
}

/* SiLU of the first half of each row of `both` (rows, 2 * width) times the second: (rows, width), a multiple of 16. */
KERNEL(gate)(const float *both, float *out, int64_t rows, int64_t width) {
    Gate gate = {both, out, width};
    do_rows(gate_rows, &gate, rows, width);
    return 0;
}

typedef struct {
    float *qkv;
    const float *cos, *sin;
    const int64_t *places;
    void *cache;
    int64_t heads, kv_heads, head, narrow;
} Turn;

INLINE void keep(void *cache, int64_t at, floats values, int64_t narrow) {
    if (!narrow) {
        write_floats(values, (float *)cache + at);
        return;
    }
    const halves kept = __builtin_convertvector(values, halves);
    memcpy((__fp16 *)cache + at, &kept, sizeof kept);
}

static void turn_rows(void *given, int64_t first, int64_t last) {
    const Turn *its = given;
    const int64_t head = its->head, half = head / 2, all = its->heads + 2 * its->kv_heads;
    for (int64_t row = first; row < last; row++) {
        const float *cos = its->cos + row * head, *sin = its->sin + row * head;
        const int64_t *places = its->places + row * 2 * its->kv_heads;
        for (int64_t number = 0; number < all; number++) {
            float *x = its->qkv + (row * all + number) * head;
            const int64_t kept = number - its->heads;
            for (int64_t i = 0; i < half; i += WIDE) {
                floats low = read_floats(x + i), high = read_floats(x + half + i);
                if (kept < its->kv_heads) {
                    const floats turned = low * read_floats(cos + i) + high * read_floats(sin + i);
                    high = high * read_floats(cos + half + i) + low * read_floats(sin + half + i);
                    low = turned;
                }
                if (kept < 0) {
                    write_floats(low, x + i);
                    write_floats(high, x + half + i);
                } else {
                    keep(its->cache, places[kept] * head + i, low, its->narrow);
                    keep(its->cache, places[kept] * head + half + i, high, its->narrow);
                }
            }
        }
    }
}

/* Rotary positions (Su et al. 2021, arXiv:2104.09864) of queries, in place, and of keys, and keys and values kept.

   qkv (rows, heads + 2 * kv_heads, head); cos and sin (rows, head), the first half of sin negative; `places` (rows,
   2 * kv_heads) where in a cache (any, head), float32 or, if narrow, float16, keys and values go. The head is a
   multiple of 32. */
KERNEL(turn)(float *qkv, const float *cos, const float *sin, const int64_t *places, void *cache, int64_t rows,
             int64_t heads, int64_t kv_heads, int64_t head, int64_t narrow) {
    Turn turn = {qkv, cos, sin, places, cache, heads, kv_heads, head, narrow};
    do_rows(turn_rows, &turn, rows, (heads + 2 * kv_heads) * head);
    return 0;
}

#endif
