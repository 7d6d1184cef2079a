# A gateway's link to itself: what it submits takes the same way as everyone's.
#
# Two engines in one process, `engine` (the submitting side) and `far` (the
# side of the switch), and no socket between them: what one has written, the
# other receives, in the loop's next iteration or when the switch flushes.

from pfcore.link.driver cimport Driver
from pfcore.link.engine cimport Engine
from pfcore.memory.buffers cimport OutputBuffer

cdef class Loopback(Driver):
    cdef:
        readonly Engine far
        bint moving                  # packets are on their way from near to far
        bint taking                  # results are on their way from far to near
        OutputBuffer packets         # what the near side wrote, while it moves: in several iterations perhaps
        Py_ssize_t packets_at        # bytes of them that the far side has had
        OutputBuffer results         # what the far side wrote, while it moves: in several iterations perhaps
        Py_ssize_t results_at        # bytes of them that the near side has had
        Py_ssize_t charged           # bytes not moved yet that the far side's account was charged with

    cdef int _to_far(self) except -1
    cdef int _to_near(self) except -1
    cdef void _settle(self) noexcept
