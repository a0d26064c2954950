#include "kernels.h"

#if LEVEL == 1
/* Of the generations that the kernels are compiled for, the newest that this processor belongs to. */
int64_t level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
    return 1;
}
#endif
