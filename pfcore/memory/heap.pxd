# Priority heap: the most urgent first, first come first served among equals.
#
# A four-way heap of nodes in one C array. A node carries its whole key
# (priority, then arrival), so sifting compares integers that lie side by side
# and never touches an entry: following entries around memory was half of the
# time of a pop. Therefore an entry does not know its place; `remove` marks it
# dead and drops its item at once, and the dead nodes are swept out together
# when they are half of the array, which keeps `remove` O(1) amortised.

from libc.stdint cimport int64_t, uint64_t

cdef class HeapEntry:
    cdef:
        readonly object item     # what was pushed; None once it was removed
        readonly int64_t priority
        void* home               # the heap that holds it, borrowed; NULL once it has left

cdef struct Node:
    int64_t priority             # complemented: smaller leaves first
    uint64_t arrival
    void* entry                  # owned reference to a HeapEntry

cdef class PriorityHeap:
    cdef:
        Node* nodes              # owned
        Py_ssize_t size          # nodes, the dead included
        Py_ssize_t dead          # nodes whose entry was removed; never the first one
        Py_ssize_t capacity
        Py_ssize_t bound         # most live entries, -1 for no bound
        uint64_t arrivals        # entries pushed so far

    cpdef HeapEntry push(self, object item, int64_t priority)
    cpdef object pop(self)
    cpdef object peek(self)
    cpdef bint remove(self, HeapEntry entry) except -1

    # Entries that are there; `size` counts the dead, too.
    cdef inline Py_ssize_t live(self) noexcept:
        return self.size - self.dead

    cdef int _grow(self) except -1
    cdef void _sift_up(self, Py_ssize_t at, Node node) noexcept
    cdef void _sift_down(self, Py_ssize_t at, Node node) noexcept
    cdef void _drop_first(self) noexcept
    cdef void _sweep(self) noexcept
    cdef void _clear(self) noexcept
