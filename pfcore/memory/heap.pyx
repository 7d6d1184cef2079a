"""Priority heap: the most urgent first, first come first served among equals."""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc

__all__ = ["HeapEntry", "HeapFull", "PriorityHeap"]


class HeapFull(Exception):
    """The heap holds as many entries as it may."""


# `no_gc`: what its item refers back to would be a cycle through the heap, which
# ends when the entry leaves; and a hundred thousand tracked entries would set off
# the collector again and again.
@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class HeapEntry:
    """An item's place in a `PriorityHeap`, as `push` returns it.

    Attributes: `item`, `priority`, and `queued`: whether it is still there.
    """

    def __init__(self):
        raise TypeError("HeapEntry: made by PriorityHeap.push only")

    @property
    def queued(self):
        """True until the entry is popped or removed."""
        return self.home != NULL

    def __repr__(self):
        return f"<HeapEntry priority={self.priority} {'queued' if self.home != NULL else 'gone'} item={self.item!r}>"


cdef inline bint _before(const Node* a, const Node* b) noexcept nogil:
    # no short circuit: which of two nodes comes first is anybody's guess, and so the branch
    return (a.priority < b.priority) | ((a.priority == b.priority) & (a.arrival < b.arrival))


@cython.final
cdef class PriorityHeap:
    """A queue in order of urgency.

    `push` and `pop` are O(log n), `remove` O(1) amortised, `peek` and ``len()``
    O(1). `bound`: most entries, `HeapFull` past it (default None: no bound).
    Priorities are 64-bit integers, the greatest leaves first.
    """

    def __cinit__(self, bound=None):
        self.bound = -1
        if bound is not None:
            if type(bound) is not int or bound < 1:
                raise ValueError(f"bound: expected an integer of at least 1 or None, got {bound!r}")
            self.bound = bound

    def __dealloc__(self):
        self._clear()
        free(self.nodes)

    def __len__(self):
        return self.size - self.dead

    cdef void _clear(self) noexcept:
        # an item's finaliser may push again: the heap is whole each time one is dropped
        cdef HeapEntry entry
        cdef object item
        while self.size > 0:
            self.size -= 1
            entry = <HeapEntry>self.nodes[self.size].entry
            if entry.home == NULL:
                self.dead -= 1
            entry.home = NULL
            Py_DECREF(entry)  # the heap's own reference; `entry` holds another
            item = entry.item
            entry.item = None
            item = None

    cdef int _grow(self) except -1:
        cdef Py_ssize_t capacity = self.capacity * 2 if self.capacity else 16
        cdef void* nodes = realloc(self.nodes, <size_t>capacity * sizeof(Node))
        if nodes == NULL:
            raise MemoryError()
        self.nodes = <Node*>nodes
        self.capacity = capacity
        return 0

    cdef void _sift_up(self, Py_ssize_t at, Node node) noexcept:
        cdef Py_ssize_t parent
        while at > 0:
            parent = (at - 1) >> 2
            if not _before(&node, &self.nodes[parent]):
                break
            self.nodes[at] = self.nodes[parent]
            at = parent
        self.nodes[at] = node

    cdef void _sift_down(self, Py_ssize_t at, Node node) noexcept:
        cdef Py_ssize_t child, best, other
        cdef Node* nodes = self.nodes
        while True:
            child = 4 * at + 1
            if child + 3 < self.size:
                best = child + _before(&nodes[child + 1], &nodes[child])
                other = child + 2 + _before(&nodes[child + 3], &nodes[child + 2])
                if _before(&nodes[other], &nodes[best]):
                    best = other
            elif child < self.size:
                best = child
                for other in range(child + 1, self.size):
                    if _before(&nodes[other], &nodes[best]):
                        best = other
            else:
                break
            if not _before(&nodes[best], &node):
                break
            nodes[at] = nodes[best]
            at = best
        nodes[at] = node

    cdef void _drop_first(self) noexcept:
        """Takes the first node out of the array; its entry is the caller's."""
        self.size -= 1
        if self.size > 0:
            self._sift_down(0, self.nodes[self.size])

    cdef void _sweep(self) noexcept:
        """Takes the dead out: all of them if they are the half, else those that came up first."""
        cdef Py_ssize_t at, kept = 0
        cdef PyObject* entry
        if self.dead * 2 > self.size:
            for at in range(self.size):
                entry = <PyObject*>self.nodes[at].entry
                if (<HeapEntry>entry).home == NULL:
                    Py_DECREF(<object>entry)
                else:
                    self.nodes[kept] = self.nodes[at]
                    kept += 1
            self.size = kept
            self.dead = 0
            at = (kept - 2) >> 2
            while at >= 0:
                self._sift_down(at, self.nodes[at])
                at -= 1
            return
        while self.size > 0:
            entry = <PyObject*>self.nodes[0].entry
            if (<HeapEntry>entry).home != NULL:
                return
            self._drop_first()
            self.dead -= 1
            Py_DECREF(<object>entry)

    cpdef HeapEntry push(self, object item, int64_t priority):
        """Queues `item`; returns its entry, for `remove`. Raises `HeapFull` at the bound."""
        cdef HeapEntry entry
        cdef Node node
        if self.bound >= 0 and self.size - self.dead >= self.bound:
            raise HeapFull(f"the heap holds {self.bound} entries, the most it may")
        if self.size == self.capacity:
            self._grow()
        entry = HeapEntry.__new__(HeapEntry)
        entry.item = item
        entry.priority = priority
        entry.home = <void*>self
        # not the negation: that of the lowest int64 does not exist
        node.priority = ~priority
        node.arrival = self.arrivals
        node.entry = <void*>entry
        Py_INCREF(entry)
        self.arrivals += 1
        self.size += 1
        self._sift_up(self.size - 1, node)
        return entry

    cpdef object pop(self):
        """The most urgent item, removed. Raises IndexError when empty."""
        cdef HeapEntry entry
        if self.size == 0:
            raise IndexError("pop from an empty heap")
        entry = <HeapEntry>self.nodes[0].entry
        self._drop_first()
        entry.home = NULL
        Py_DECREF(entry)  # the heap's own reference; `entry` holds another
        if self.dead > 0:
            self._sweep()
        return entry.item

    cpdef object peek(self):
        """The most urgent item, left where it is. Raises IndexError when empty."""
        if self.size == 0:
            raise IndexError("peek into an empty heap")
        return (<HeapEntry>self.nodes[0].entry).item

    cpdef bint remove(self, HeapEntry entry) except -1:
        """Takes `entry` out, wherever it is; False if it has left already."""
        if entry is None:
            raise TypeError("remove: expected the HeapEntry that push returned, got None")
        if entry.home == NULL:
            return False
        if entry.home != <void*>self:
            raise ValueError("remove: the entry belongs to another heap")
        # its finaliser runs once the heap is whole again: when this returns
        cdef object _item = entry.item
        entry.home = NULL
        entry.item = None
        self.dead += 1
        self._sweep()
        return True

    def clear(self):
        """Takes everything out."""
        self._clear()
