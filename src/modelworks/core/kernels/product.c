/* Products with matrices whose weights are kept in float16: for a model that is served, whose time is that of reading
   them. Every sum is in the order of the inner dimension, whatever the number of rows: a row gives the same bits alone
   and beside others. */

#include "floats.h"

#include <stdlib.h>

#if LEVEL >= 3

/* As many rows at once as there are registers for, and from how many on they are laid out beside each other. */
enum { MOST_ROWS = LEVEL >= 4 ? 14 : 6, FEW_ROWS = 8 };

/* A float16 that is further off is not the same weight: half of what lies between its smallest numbers. */
#define SAME 0x1p-25f

typedef struct {
    const float *weight;
    __fp16 *panels;
    int64_t outer, inner;
    int32_t wrong;
} Packing;

static void pack_panels(void *given, int64_t first, int64_t last) {
    Packing *p = given;
    int32_t wrong = 0;
    for (int64_t panel = first; panel < last; panel++) {
        const int64_t rows = p->outer - panel * WIDE < WIDE ? p->outer - panel * WIDE : WIDE;
        for (int64_t start = 0; start < p->inner; start += WIDE) {
            const int64_t columns = p->inner - start < WIDE ? p->inner - start : WIDE;
            __fp16 tile[WIDE][WIDE] = {0};
            for (int64_t row = 0; row < rows; row++) {
                floats values = 0;
                memcpy(&values, p->weight + (panel * WIDE + row) * p->inner + start, columns * sizeof(float));
                const halves kept = __builtin_convertvector(values, halves);
                const floats off = __builtin_convertvector(kept, floats) - values;
                wrong |= as_mask(~((off <= SAME) & (off >= -SAME)));
                memcpy(tile[row], &kept, sizeof kept);
            }
            __fp16 *out = p->panels + (panel * p->inner + start) * WIDE;
            for (int64_t column = 0; column < columns; column++)
                for (int64_t row = 0; row < WIDE; row++) out[column * WIDE + row] = tile[row][column];
        }
    }
    if (wrong) __atomic_store_n(&p->wrong, 1, __ATOMIC_RELAXED);
}

/* A weight, float32 (outer, inner), as float16 in panels of 16 outputs, (ceil(outer / 16), inner, 16), the last one
   filled up with zeros. Returns whether float16 does not hold some of it. */
KERNEL(pack)(const float *weight, __fp16 *panels, int64_t outer, int64_t inner) {
    Packing packing = {weight, panels, outer, inner, 0};
    share_out(pack_panels, &packing, (outer + WIDE - 1) / WIDE);
    return packing.wrong;
}

typedef struct {
    const float *x, *start;
    const __fp16 *panels;
    float *y;
    int64_t rows, outer, inner, start_step;
} Product;

/* Some rows of x by some panels; x at row r and inner index i is at x[r * step + i * next]. */
INLINE void block(const Product *p, const int rows, const int panels, const float *x, int64_t step, int64_t next,
                  int64_t row, int64_t panel) {
    floats sums[rows][panels];
    const __fp16 *weights = p->panels + panel * p->inner * WIDE;
    const int64_t left = p->outer - (panel + panels - 1) * WIDE, last = left < WIDE ? left : WIDE;
#define BYTES(column) ((column) < panels - 1 ? WIDE : last) * sizeof(float)
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < panels; c++) {
            sums[r][c] = 0;
            if (p->start) memcpy(&sums[r][c], p->start + (row + r) * p->start_step + (panel + c) * WIDE, BYTES(c));
        }
    for (int64_t i = 0; i < p->inner; i++)
        for (int c = 0; c < panels; c++) {
            halves narrow;
            memcpy(&narrow, weights + (c * p->inner + i) * WIDE, sizeof narrow);
            const floats wide = __builtin_convertvector(narrow, floats);
            for (int r = 0; r < rows; r++) {
                const floats value = x[r * step + i * next];
                sums[r][c] = __builtin_elementwise_fma(wide, value, sums[r][c]);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < panels; c++)
            memcpy(p->y + (row + r) * p->outer + (panel + c) * WIDE, &sums[r][c], BYTES(c));
}

#define ROWS(n) \
    case n: \
        if (packed) block(p, n, 1, packed + row * p->inner, 1, n, row, panel); \
        else block(p, n, 1, p->x + row * p->inner, p->inner, 1, row, panel); \
        break;

INLINE void block_of(const Product *p, const float *packed, int64_t rows, int64_t row, int64_t panel) {
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if LEVEL >= 4
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14)
#endif
    }
}

static void multiply_panels(void *given, int64_t panel, int64_t last) {
    const Product *p = given;
    /* With few rows, several panels: a sum waits for the one before it. */
    if (p->rows == 1)
        for (; panel + 4 <= last; panel += 4) block(p, 1, 4, p->x, p->inner, 1, 0, panel);
    if (p->rows == 2)
        for (; panel + 2 <= last; panel += 2) block(p, 2, 2, p->x, p->inner, 1, 0, panel);
    const int64_t blocks = (p->rows + MOST_ROWS - 1) / MOST_ROWS;
#define FIRST(b) (p->rows * (b) / blocks)
    float *packed = p->rows < FEW_ROWS ? NULL : malloc(p->rows * p->inner * sizeof(float));
    for (int64_t b = 0; packed && b < blocks; b++) {
        const int64_t row = FIRST(b), rows = FIRST(b + 1) - row;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < p->inner; i++)
                packed[row * p->inner + i * rows + r] = p->x[(row + r) * p->inner + i];
    }
    for (; panel < last; panel++)
        for (int64_t b = 0; b < blocks; b++) block_of(p, packed, FIRST(b + 1) - FIRST(b), FIRST(b), panel);
    free(packed);
}

/* y (rows, outer) = x (rows, inner) times panels, and `start`, if there is one, added: (rows, outer) or, where
   start_step is 0, (outer). All of them float32 but the panels, which `pack` made. */
KERNEL(multiply)(const float *x, const __fp16 *panels, const float *start, float *y, int64_t rows, int64_t outer,
                 int64_t inner, int64_t start_step) {
    Product product = {x, start, panels, y, rows, outer, inner, start_step};
    share_out(multiply_panels, &product, (outer + WIDE - 1) / WIDE);
    return 0;
}

#endif
