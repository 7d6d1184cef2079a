"""The clock of the core, and how a simulation sets it. See ``clock.pxd``."""

from libc.stdint cimport int64_t

__all__ = ["now", "simulate"]


def now():
    """Monotonic time in nanoseconds, as the core reads it."""
    return monotonic_ns()


def simulate(int64_t now, int64_t stride=0):
    """For tests: the clock stands at `now` nanoseconds from now on, for the whole process.

    `now`: above 0; 0 gives the machine's clock back. `stride`: nanoseconds by
    which each reading moves it on (default 0).
    """
    if now < 0 or stride < 0:
        raise ValueError(f"simulate: expected nanoseconds of 0 or more, got {now} and {stride}")
    _set(now, stride)


cdef void _set(int64_t at, int64_t by) noexcept:
    global simulated, stride
    simulated = at
    stride = by
