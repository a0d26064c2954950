/* Several LoRA adapters in one batch: each row's update by its own adapter, which is read once for all of its rows.
   A row's sums do not depend on the other rows. */

#include "floats.h"

#if LEVEL >= 3

enum { ROWS = 4, COLUMNS = 4 }; /* rows, and vectors of a row, whose sums are in registers */

typedef struct {
    const float *in;
    const void *weight;
    float *out;
    const int64_t *rows, *starts;
    int64_t adapters, inner, width, in_step, out_step, chunk, narrow, adds;
} Adapt;

/* The sums of some rows, at most 16 * vectors columns of them from `column` on. */
INLINE void adapt_block(const Adapt *its, int64_t adapter, int64_t column, const int64_t *rows, const int count,
                        const int vectors, const int64_t last, const int64_t narrow) {
    floats sums[count][vectors];
    const int64_t weight = adapter * its->inner * its->width + column;
#define SIZE(vector) ((vector) < vectors - 1 ? WIDE : last) * sizeof(float)
    for (int r = 0; r < count; r++)
        for (int v = 0; v < vectors; v++) {
            sums[r][v] = 0;
            if (its->adds) memcpy(&sums[r][v], its->out + rows[r] * its->out_step + column + v * WIDE, SIZE(v));
        }
    for (int64_t i = 0; i < its->inner; i++)
        for (int v = 0; v < vectors; v++) {
            const int64_t place = weight + i * its->width + v * WIDE;
            floats weights = 0;
            halves kept = 0;
            if (narrow) {
                memcpy(&kept, (const __fp16 *)its->weight + place, SIZE(v) / 2);
                weights = __builtin_convertvector(kept, floats);
            } else memcpy(&weights, (const float *)its->weight + place, SIZE(v));
            for (int r = 0; r < count; r++) {
                const floats value = its->in[rows[r] * its->in_step + i];
                sums[r][v] = __builtin_elementwise_fma(weights, value, sums[r][v]);
            }
        }
    for (int r = 0; r < count; r++)
        for (int v = 0; v < vectors; v++)
            memcpy(its->out + rows[r] * its->out_step + column + v * WIDE, &sums[r][v], SIZE(v));
}

INLINE void adapt_rows(const Adapt *its, int64_t adapter, int64_t column, const int vectors, const int64_t last,
                       const int64_t narrow) {
    int64_t at = its->starts[adapter];
    const int64_t end = its->starts[adapter + 1];
    for (; at + ROWS <= end; at += ROWS) adapt_block(its, adapter, column, its->rows + at, ROWS, vectors, last, narrow);
    for (; at < end; at++) adapt_block(its, adapter, column, its->rows + at, 1, vectors, last, narrow);
}

INLINE void adapt_unit(const Adapt *its, int64_t adapter, int64_t start, const int64_t narrow) {
    const int64_t end = its->width - start < its->chunk ? its->width : start + its->chunk;
    for (; end - start >= COLUMNS * WIDE; start += COLUMNS * WIDE) adapt_rows(its, adapter, start, COLUMNS, WIDE, narrow);
    for (; end - start >= WIDE; start += WIDE) adapt_rows(its, adapter, start, 1, WIDE, narrow);
    if (start < end) adapt_rows(its, adapter, start, 1, end - start, narrow);
}

static void adapt_units(void *given, int64_t first, int64_t last) {
    const Adapt *its = given;
    const int64_t chunks = (its->width + its->chunk - 1) / its->chunk;
    for (int64_t unit = first; unit < last; unit++)
        if (its->narrow) adapt_unit(its, unit / chunks, unit % chunks * its->chunk, 1);
        else adapt_unit(its, unit / chunks, unit % chunks * its->chunk, 0);
}

/* out (any, out_step) of each row of each adapter = in (any, in_step) times the adapter's weight, or added to that.

   weight (adapters, inner, width), float32 or, if narrow, float16; `rows` are the rows of the first adapter, then of
   the second, and so on, and `starts` (adapters + 1) where each one's begin. */
KERNEL(adapt)(const float *in, int64_t in_step, const void *weight, int64_t narrow, float *out, int64_t out_step,
              const int64_t *rows, const int64_t *starts, int64_t adapters, int64_t inner, int64_t width, int64_t adds) {
    const int64_t chunk = width <= 2 * COLUMNS * WIDE ? WIDE : COLUMNS * WIDE; /* enough of them for all threads */
    Adapt all = {in, weight, out, rows, starts, adapters, inner, width, in_step, out_step, chunk, narrow, adds};
    share_out(adapt_units, &all, adapters * ((width + chunk - 1) / chunk));
    return 0;
}

#endif
