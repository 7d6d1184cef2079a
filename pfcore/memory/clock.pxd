# The clock that link, loopback and dispatcher read: monotonic time in
# nanoseconds, on the clock that asyncio's loops use.
#
# A simulation sets it: `simulated` is then the time, and each reading moves it
# on by `stride`, so that slices of time run out and durations are not all 0.
# The same script gives the same readings, whatever machine it runs on.

from libc.stdint cimport int64_t

cdef extern from "memory/clock.h" nogil:
    int64_t pf_real_ns "pf_monotonic_ns"() noexcept

cdef int64_t simulated           # ns; 0: the machine's clock is read
cdef int64_t stride              # ns

cdef inline int64_t monotonic_ns() noexcept nogil:
    global simulated
    if simulated == 0:
        return pf_real_ns()
    simulated += stride
    return simulated
