# A gateway's link to itself: what it submits takes the same way as everyone's.
#
# Two engines in one process, `engine` (the submitting side) and `far` (the
# side of the switch), and no socket between them: what one has written, the
# other receives, in the loop's next iteration or when the switch flushes.

from pfcore.engine cimport Engine
from pfcore.link cimport Link

cdef class Loopback(Link):
    cdef:
        readonly Engine far
        bint moving                  # bytes are on their way from near to far

    cdef int _to_far(self) except -1
    cdef int _to_near(self) except -1
