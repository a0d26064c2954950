/* Attention of one new token each of many sequences to what they have read: bound by reading keys and values once. */

#include "floats.h"

#if LEVEL >= 3

enum { BLOCK = 64, MOST_CHUNKS = 16, MOST_GROUP = 16 };

typedef struct {
    const float *queries;
    const void *cache;
    const int64_t *slots, *ends;
    float *out;
    int64_t count, apart, slots_of_all, kv_heads, group, length, chunks, narrow;
    float scale;
    int64_t next;
} attention;

/* 16 numbers of the cache, in float32 or, if narrow, float16. */
INLINE floats read_cache(const void *cache, int64_t start, const int64_t narrow) {
    if (!narrow) return read_floats((const float *)cache + start);
    halves found;
    memcpy(&found, (const __fp16 *)cache + start, sizeof found);
    return __builtin_convertvector(found, floats);
}

/* All queries of one key head in one sequence, block by block, with the sums kept as if the largest score were 0. */
INLINE void attend_one(const attention *its, int64_t unit, const int64_t chunks, const int64_t narrow) {
#pragma clang fp contract(fast)
    const int64_t row = unit / its->kv_heads, head = unit % its->kv_heads, width = chunks * WIDE;
    const int64_t held = its->length * width, slot = its->slots[row] * its->kv_heads + head, end = its->ends[row];
    const int64_t keys = slot * held, values = keys + its->slots_of_all * its->kv_heads * held;
    const float *queries = its->queries + row * its->apart + head * its->group * width;
    float most[MOST_GROUP], total[MOST_GROUP], scores[BLOCK];
    floats sums[MOST_GROUP][MOST_CHUNKS];
    for (int64_t query = 0; query < its->group; query++) {
        most[query] = -3.4e38f;
        total[query] = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) sums[query][chunk] = 0;
    }
    for (int64_t start = 0; start < end; start += BLOCK) {
        const int64_t count = end - start < BLOCK ? end - start : BLOCK;
        for (int64_t query = 0; query < its->group; query++) {
            floats wanted[MOST_CHUNKS], found[MOST_CHUNKS];
            float largest = most[query];
            for (int64_t chunk = 0; chunk < chunks; chunk++)
                wanted[chunk] = read_floats(queries + query * width + chunk * WIDE) * its->scale;
            for (int64_t place = 0; place < count; place++) {
                floats products = 0;
                for (int64_t chunk = 0; chunk < chunks; chunk++)
                    products += wanted[chunk] * read_cache(its->cache, keys + (start + place) * width + chunk * WIDE, narrow);
                scores[place] = sum_of(products);
                largest = scores[place] > largest ? scores[place] : largest;
            }
            for (int64_t place = count; place < BLOCK; place++) scores[place] = -3.4e38f;
            const float faded = exponential((floats)(most[query] - largest))[0];
            floats added = 0;
            for (int64_t place = 0; place < count; place += WIDE) {
                const floats shares = exponential(read_floats(scores + place) - largest);
                write_floats(shares, scores + place);
                added += shares;
            }
            /* What lies behind the end counts as e to the -87, which is nothing in float32. */
            total[query] = total[query] * faded + sum_of(added);
            most[query] = largest;
            for (int64_t chunk = 0; chunk < chunks; chunk++) found[chunk] = sums[query][chunk] * faded;
            for (int64_t place = 0; place < count; place++)
                for (int64_t chunk = 0; chunk < chunks; chunk++)
                    found[chunk] += scores[place] *
                                    read_cache(its->cache, values + (start + place) * width + chunk * WIDE, narrow);
            for (int64_t chunk = 0; chunk < chunks; chunk++) sums[query][chunk] = found[chunk];
        }
    }
    float *out = its->out + (row * its->kv_heads + head) * its->group * width;
    for (int64_t query = 0; query < its->group; query++)
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            write_floats(sums[query][chunk] / total[query], out + query * width + chunk * WIDE);
}

static void attend_some(void *given, int64_t first, int64_t last) {
    (void)first, (void)last; /* sequences are of all lengths: whoever is free takes the next */
    attention *its = given;
    const int64_t units = its->count * its->kv_heads;
    for (int64_t unit; (unit = __atomic_fetch_add(&its->next, 1, __ATOMIC_RELAXED)) < units;)
        if (its->chunks == 4 && its->narrow) attend_one(its, unit, 4, 1);
        else if (its->chunks == 4) attend_one(its, unit, 4, 0);
        else if (its->chunks == 8 && its->narrow) attend_one(its, unit, 8, 1);
        else attend_one(its, unit, its->chunks, its->narrow);
}

/* Of queries (count, kv_heads * group, head), float32, rows `apart` numbers from each other, the attention to the first
   `ends` (count) positions of `slots` (count) in a cache (2, slots_of_all, kv_heads, length, head) of keys and values,
   float32 or, if narrow, float16: `out` (count, kv_heads * group, head), float32. The head is a multiple of 16, 256 at
   most; a group has 16 queries at most; else nothing is done, and -1 returned. */
KERNEL(attend)(const float *queries, int64_t apart, const void *cache, const int64_t *slots, const int64_t *ends,
               float *out, int64_t count, int64_t slots_of_all, int64_t kv_heads, int64_t group, int64_t length,
               int64_t head, int64_t narrow, const float *scale) {
    attention all = {queries, cache, slots, ends, out, count, apart, slots_of_all, kv_heads, group, length,
                     head / WIDE, narrow, *scale, 0};
    if (head % WIDE || head > MOST_CHUNKS * WIDE || group > MOST_GROUP) return -1;
    share_out(attend_some, &all, count * kv_heads);
    return 0;
}

#endif
