"""A handler's coroutine under a task that is used again. See ``worker.pxd``."""

import asyncio
from collections.abc import Coroutine

cimport cython
from cpython.object cimport PyObject, Py_EQ, PyObject_RichCompareBool
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t

from pfcore.link.reply cimport done_future
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns
from pfcore.memory.cpythonx cimport (
    pf_own,
    pf_restore,
    pf_set_am_send,
    pf_take_error,
    Py_None,
    PYGEN_ERROR,
    PYGEN_NEXT,
    PYGEN_RETURN,
    PyIter_Send,
    PySendResult,
)
from pfcore.work.handler cimport Handler

__all__ = []

cdef enum:
    SPARE_WORKERS = 1024

cdef object _CancelledError = asyncio.CancelledError
cdef object _ENDED = object()
# what ends the process; anything else that a handler raises is its packet's failure
cdef tuple PASSED_ON = (SystemExit, KeyboardInterrupt)


cdef class WorkerHost(Sink):
    """What a worker needs of whoever gives it work."""

    cdef int ended(self, Job job, object value, object error) except -1:
        raise NotImplementedError

    cdef int was_slow(self, Handler handler, int64_t took) except -1:
        return 0


@cython.final
cdef class Lane:
    pass


@cython.final
@cython.freelist(256)
cdef class Job:
    pass


@cython.final
cdef class Worker:
    """A coroutine, for its task, and the future that the task waits on while it is parked."""

    # -- as the task's coroutine

    def send(self, value):
        cdef PyObject* out = NULL
        if _worker_send(<PyObject*>self, <PyObject*>value, &out) == PYGEN_NEXT:
            return pf_own(out)
        if out == NULL:
            raise pf_take_error()
        raise StopIteration(pf_own(out))

    cdef object step(self, object value):
        """What the handler yields next, or `_ENDED`."""
        cdef PyObject* out = NULL
        cdef PySendResult status
        cdef object raised = None
        cdef int64_t began
        if self.inner is None:
            if self.retired:
                self.task = None  # it holds us: together they would be the garbage collector's
                return _ENDED
            self._asyncio_future_blocking = True
            return self  # park
        if self.has_first:
            self.has_first = False
            first = self.first
            self.first = None
            return first
        began = pf_monotonic_ns()
        status = PyIter_Send(<PyObject*>self.inner, <PyObject*>value, &out)
        if status == PYGEN_ERROR:
            raised = pf_take_error()  # before anything else is called
        if pf_monotonic_ns() - began > SLOW and self.job is not None:
            self.host.was_slow(self.job.handler, pf_monotonic_ns() - began)
        if status == PYGEN_NEXT:
            return pf_own(out)
        if status == PYGEN_RETURN:
            return self._finished(pf_own(out), None)
        return self._finished(None, raised)

    def throw(self, kind, value=None, traceback=None):
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        if self.inner is None:
            # cancelled while parked: the loop is being shut down
            self.retired = True
            self.task = None
            raise value
        if self.has_first:
            # cancelled before the task has come to wait for what the handler waits for: as a task would, cancel that
            first = self.first
            self.has_first = False
            self.first = None
            if isinstance(value, _CancelledError) and hasattr(first, "cancel"):
                first.cancel()
            first = None
        raised = None
        try:
            return self.inner.throw(value)
        except StopIteration as stop:
            value = stop.value
        except BaseException as error:
            value, raised = None, error
        value = self._finished(value, raised)
        if value is _ENDED:
            raise StopIteration(None)
        return value

    def close(self):
        self.retired = True
        if self.inner is not None:
            self.inner.close()

    cdef object _finished(self, object value, object error):
        """The handler has ended: answer, and park for the next one or end the task."""
        cdef Job job = self.job
        cdef WorkerHost host = self.host
        self.inner = None
        self.job = None
        if job is not None:
            job.worker = None
            host.ended(job, value, error)
            job = None
        value = None
        if isinstance(error, PASSED_ON) or isinstance(error, _CancelledError):
            # CancelledError ends the task as cancelled; an interrupt goes on to the loop
            self.retired = True
            self.task = None
            if isinstance(error, _CancelledError):
                # not the handler's own: the task keeps it, it keeps the frames, and `asyncio.timeout` in one of them
                # the task, which would be for the collector to find
                error = _CancelledError(*error.args)
            raise error
        error = None
        if (self.retired or len(host.parked) >= SPARE_WORKERS or self.task.cancelling()
                or not PyObject_RichCompareBool(self.context, host.base, Py_EQ)):
            self.retired = True
            self.task = None
            return _ENDED
        host.parked.append(self)
        self._asyncio_future_blocking = True
        return self

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    # -- as the future that its parked task waits on

    def get_loop(self):
        return self.host.loop

    def add_done_callback(self, callback, *, context=None):
        self.wakeup = callback

    def result(self):
        if self.cancelled:
            raise _CancelledError()
        return None

    def cancel(self, msg=None):
        """The parked task is cancelled: it ends."""
        cdef object wakeup = self.wakeup
        self.cancelled = True
        self.retired = True
        self.wakeup = None
        if wakeup is not None:
            self.host.loop.call_soon(wakeup, self)
        return True

    # -- for whoever gives it work

    cdef int go_on(self, Job job, object inner, object first) except -1:
        """The handler has suspended: the task takes it over from here."""
        cdef object wakeup = self.wakeup
        self.job = job
        job.worker = self
        self.inner = inner
        self.first = first
        self.has_first = True
        self.wakeup = None
        if wakeup is not None:
            wakeup(done_future(self.host.loop))  # steps the task, which waits on `first` from now on
        return 0

    cdef int retire(self) except -1:
        """Parked and no longer needed: the task ends by itself."""
        cdef object wakeup = self.wakeup
        self.retired = True
        if wakeup is not None:
            self.wakeup = None
            self.host.loop.call_soon(wakeup, self)
        return 0


cdef PySendResult _worker_send(PyObject* self, PyObject* value, PyObject** out) noexcept:
    cdef object yielded
    try:
        yielded = (<Worker>self).step(<object>value)
    except BaseException as error:
        pf_restore(error)
        out[0] = NULL
        return PYGEN_ERROR
    if yielded is _ENDED:
        out[0] = Py_None
        Py_INCREF(None)
        return PYGEN_RETURN
    out[0] = <PyObject*>yielded
    Py_INCREF(yielded)
    return PYGEN_NEXT


pf_set_am_send(Worker, _worker_send)

Coroutine.register(Worker)
