"""The awaitable that a submit gives back."""

import asyncio

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from pfcore.memory.cpythonx cimport (
    pf_is_wakeup,
    pf_restore,
    pf_set_am_send,
    PyContext_Enter,
    PyContext_Exit,
    PYGEN_ERROR,
    PYGEN_NEXT,
    PYGEN_RETURN,
    PySendResult,
)
from pfcore.wire.packets cimport Result

from pfcore.errors import exception_for

__all__ = ["Reply"]

cdef object _Future = asyncio.Future
cdef object _Task = asyncio.Task
cdef object _done = None         # a finished asyncio.Future of the loop below
cdef object _done_loop = None


cdef inline bint _is_task_wakeup(object callback) noexcept:
    return pf_is_wakeup(callback, _Task)


cdef object _CancelledError = asyncio.CancelledError
cdef object _InvalidStateError = asyncio.InvalidStateError


cdef class Canceller:
    cdef int cancel_submit(self, int64_t seq) except -1:
        return 0


cdef object done_future(object loop):
    global _done_loop, _done
    if _done_loop is not loop:
        _done = _Future(loop=loop)
        _done.set_result(None)
        _done_loop = loop
    return _done


cdef Reply new_reply(object loop, Canceller owner, Want want):
    cdef Reply reply = Reply.__new__(Reply)
    reply._loop = loop
    reply.owner = owner
    reply.want = want
    return reply


@cython.final
@cython.no_gc
@cython.freelist(1024)  # not more: what is kept of a crowd pins the pages that it stood on
cdef class Reply:
    """The answer to come: await it, or treat it as an `asyncio.Future`.

    Awaiting gives what the method that made it promises (`submit`: a `Result`;
    `call`: the data) or raises. `cancel` also cancels the work at the peer,
    where the peer can. It belongs to one event loop and is not thread-safe.
    """

    def __init__(self):
        raise TypeError("Reply: made by submit and call only")

    # -- the engine's side

    cdef void resolve(self, object value) noexcept:
        self.value = value
        self.state = ReplyState.DONE
        self.owner = None
        self.entry = None
        self.frame = None

    cdef void fail(self, object code, object message, object details) noexcept:
        self.value = (code, message, details)
        self.state = ReplyState.FAILED
        self.owner = None
        self.entry = None
        self.frame = None

    cdef int fire(self) except -1:
        cdef object callback = self.callback
        cdef object context = self.context
        cdef list more = self.more
        if callback is None:
            return 0
        self.callback = None
        self.context = None
        self.more = None
        self._run(callback, context)
        if more is not None:
            for callback, context in more:
                self._run(callback, context)
        return 0

    cdef int _run(self, object callback, object context) except -1:
        if context is not None:
            try:
                PyContext_Enter(context)
            except RuntimeError:  # that context is in use further up: let the loop run it
                self._loop.call_soon(callback, self, context=context)
                return 0
        try:
            if _is_task_wakeup(callback):
                # A Task's wake-up only looks at whether its future has failed, and for any
                # but an asyncio.Future that costs a method call by name. Give it one that is
                # done: the coroutine then gets our outcome, good or bad, from `_send` itself.
                callback(done_future(self._loop))
            else:
                callback(self)
        except Exception as error:
            self._loop.call_exception_handler(
                {"message": f"Exception in callback {callback!r}", "exception": error, "future": self})
        finally:
            if context is not None:
                PyContext_Exit(context)
        return 0

    cdef int fire_soon(self) except -1:
        cdef object callback = self.callback
        cdef object context = self.context
        cdef list more = self.more
        if callback is None:
            return 0
        self.callback = None
        self.context = None
        self.more = None
        self._loop.call_soon(callback, self, context=context)
        if more is not None:
            for callback, context in more:
                self._loop.call_soon(callback, self, context=context)
        return 0

    cdef object outcome(self):
        if self.state == ReplyState.DONE:
            if self.want == Want.WANT_DATA and type(self.value) is Result:
                # a `call` whose packet ended in an error
                raise self._error()
            return self.value
        if self.state == ReplyState.CANCELLED:
            raise _CancelledError() if self.value is None else _CancelledError(self.value)
        if self.state == ReplyState.PENDING:
            raise _InvalidStateError("Result is not set.")
        raise self._error()

    cdef object _error(self):
        """A fresh exception for a reply that has failed."""
        cdef Result result
        if self.state == ReplyState.FAILED:
            code, message, details = <tuple>self.value
            return exception_for(code, message, details, None)
        result = <Result>self.value
        error = result.error
        if not isinstance(error, dict):
            error = {}
        code = error.get("code")
        message = error.get("message")
        details = error.get("details")
        return exception_for(
            code if isinstance(code, str) else "PF500",
            message if isinstance(message, str) else "the packet ended in an error that says no more",
            details if isinstance(details, dict) else None,
            result.packet_id,
        )

    # -- asyncio's Future protocol

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self.state == ReplyState.PENDING:
            self._asyncio_future_blocking = True
            return self
        raise StopIteration(self.outcome())

    def send(self, value):
        """As a coroutine's `send`; for `yield from`."""
        if self.state == ReplyState.PENDING:
            self._asyncio_future_blocking = True
            return self
        raise StopIteration(self.outcome())

    def throw(self, kind, value=None, traceback=None):
        """As a coroutine's `throw`: raises what it is given."""
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        raise value if traceback is None else value.with_traceback(traceback)

    def get_loop(self):
        """The event loop it belongs to."""
        return self._loop

    # what asyncio.gather looks at in a cancelled future

    @property
    def _cancel_message(self):
        return self.value if self.state == ReplyState.CANCELLED else None

    def _make_cancelled_error(self):
        return _CancelledError() if self._cancel_message is None else _CancelledError(self._cancel_message)

    def done(self):
        """True once it has a value, failed or was cancelled."""
        return self.state != ReplyState.PENDING

    def cancelled(self):
        """True if it was cancelled."""
        return self.state == ReplyState.CANCELLED

    def result(self):
        """The value; raises what awaiting would raise, InvalidStateError before it is done."""
        return self.outcome()

    def exception(self):
        """The exception that awaiting raises, or None."""
        if self.state == ReplyState.CANCELLED:
            raise _CancelledError() if self.value is None else _CancelledError(self.value)
        if self.state == ReplyState.PENDING:
            raise _InvalidStateError("Exception is not set.")
        if self.state == ReplyState.FAILED or (self.want == Want.WANT_DATA and type(self.value) is Result):
            return self._error()
        return None

    def cancel(self, msg=None):
        """Gives the work up; False if it is already done. The peer is told, if it understands."""
        cdef Canceller owner = self.owner
        if self.state != ReplyState.PENDING:
            return False
        self.state = ReplyState.CANCELLED
        self.value = msg
        self.owner = None
        if owner is not None:
            owner.cancel_submit(self.seq)
        self.fire_soon()
        return True

    def add_done_callback(self, callback, *, context=None):
        """Calls ``callback(self)`` in `context` once it is done."""
        if context is None:
            import contextvars
            context = contextvars.copy_context()
        if self.state != ReplyState.PENDING:
            self._loop.call_soon(callback, self, context=context)
        elif self.callback is None:
            self.callback = callback
            self.context = context
        else:
            if self.more is None:
                self.more = []
            self.more.append((callback, context))

    def remove_done_callback(self, callback):
        """Forgets every such callback; returns how many there were."""
        cdef list every = [] if self.callback is None else [(self.callback, self.context)]
        if self.more is not None:
            every.extend(self.more)
        kept = [pair for pair in every if pair[0] != callback]
        self.callback, self.context = kept[0] if kept else (None, None)
        self.more = kept[1:] or None
        return len(every) - len(kept)

    def __repr__(self):
        return f"<Reply {('pending', 'done', 'failed', 'cancelled')[self.state]} seq={self.seq}>"


cdef PySendResult _am_send(PyObject* self, PyObject* value, PyObject** out) noexcept:
    return _send(<Reply>self, out)


cdef PySendResult _send(Reply self, PyObject** out) noexcept:
    cdef object value
    if self.state == ReplyState.PENDING:
        self._asyncio_future_blocking = True
        out[0] = <PyObject*>self
        Py_INCREF(self)
        return PYGEN_NEXT
    try:
        value = self.outcome()
    except BaseException as error:
        _restore(error)
        out[0] = NULL
        return PYGEN_ERROR
    out[0] = <PyObject*>value
    Py_INCREF(value)
    return PYGEN_RETURN


cdef void _restore(object error) noexcept:
    """Leaves the exception set for our C caller."""
    pf_restore(error)


pf_set_am_send(Reply, _am_send)
