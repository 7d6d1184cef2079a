# The submitting face of a link: `submit`, `call` and `map` as Python sees them.
#
# `Submitter` is the base of the Reactor, so that `reactor.call(...)` enters
# compiled code directly; a Python method between would cost as much as the
# whole frame.

from libc.stdint cimport int64_t

from pfcore.link.driver cimport Driver
from pfcore.link.reply cimport Reply

cdef enum:
    ADDRESSES = 16               # a power of two

# A (group, element) pair seen lately, found again by the identity of its strings.
cdef struct Address:
    void* group                  # borrowed from the tuple that `keep` holds
    void* element
    void* encoded                # bytes: `"group":"df","element":"transform"`

cdef class Submitter:
    cdef:
        Driver link              # None before the start
        Address[ADDRESSES] addresses
        list keep                # references behind `addresses`

    cdef bytes address_of(self, object group, object element)
    cdef Driver ready_link(self)

cdef class PacketMap:
    cdef:
        Submitter submitter
        Driver link
        bytes address
        object items             # iterator
        object replies           # deque of Reply, in the order of the items
        Py_ssize_t window
        int priority
        int64_t timeout_ms
        int retries
        bytes extra              # metadata that says so, or None
        bint exhausted

    cdef int fill(self) except -1
