/* Monotonic time in nanoseconds, on the clock that asyncio's loops use. */
#ifndef PFCORE_CLOCK_H
#define PFCORE_CLOCK_H

#include <stdint.h>

#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
static inline int64_t pf_monotonic_ns(void)
{
    static LARGE_INTEGER frequency;
    LARGE_INTEGER count;
    if (!frequency.QuadPart)
        QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&count);
    return (int64_t)(count.QuadPart / frequency.QuadPart) * INT64_C(1000000000)
           + (int64_t)(count.QuadPart % frequency.QuadPart) * INT64_C(1000000000) / frequency.QuadPart;
}
#else
#include <time.h>
static inline int64_t pf_monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}
#endif

#endif
