/* The threads of GNU's OpenMP, of whichever library of it the process computes with: others would fight for the cores. */

#include "kernels.h"

#if LEVEL == 1

static void (*parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);
static int (*this_thread)(void), (*thread_count)(void);

/* Without these, one thread does it all. */
KERNEL(team)(void *gomp_parallel, void *omp_get_thread_num, void *omp_get_num_threads) {
    parallel = gomp_parallel;
    this_thread = omp_get_thread_num;
    thread_count = omp_get_num_threads;
    return 0;
}

typedef struct {
    Work work;
    void *given;
    int64_t count;
} Share;

static void do_share(void *given) {
    const Share *share = given;
    const int64_t thread = this_thread(), threads = thread_count();
    share->work(share->given, share->count * thread / threads, share->count * (thread + 1) / threads);
}

void share_out(Work work, void *given, int64_t count) {
    Share share = {work, given, count};
    if (parallel) parallel(do_share, &share, 0, 0);
    else work(given, 0, count);
}

#endif
