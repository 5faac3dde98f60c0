/* The clock of a machine that is an hour fast. Clocks that never go back are right. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *now)
{
    static int (*original)(clockid_t, struct timespec *);
    int result;

    if (original == NULL)
        original = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    result = original(id, now);
    if (result == 0 && id == CLOCK_REALTIME)
        now->tv_sec += 3600;
    return result;
}
