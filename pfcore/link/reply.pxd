# What `submit` and `call` give back: an awaitable of its own.
#
# It keeps asyncio's Future protocol, so `await`, gather, wait, wait_for and
# shield work on it, but it is not an asyncio.Future: when a batch of frames
# has been read, its waiters are resumed there and then by `fire`, in their own
# context, instead of through one `call_soon` each. On uvloop that is worth a
# few per cent, on the stock loop a factor of two.
#
#   PENDING --resolve--> DONE        value: data, or a Result
#           --fail-----> FAILED      value: (code, message, details or None)
#           --cancel---> CANCELLED
#
# `no_gc`: a Reply can be part of one cycle only, task -> coroutine -> reply ->
# callback -> task, and the engine ends every reply by its deadline, or when it
# goes itself, which drops the callback. Exceptions are made when they are
# raised and never kept, so no traceback closes another.

from libc.stdint cimport int64_t, uint8_t

cdef enum ReplyState:
    PENDING = 0
    DONE = 1
    FAILED = 2
    CANCELLED = 3

cdef enum Want:
    WANT_DATA = 0                # `call`: the data, or the error's exception
    WANT_RESULT = 1              # `submit`: the Result, whatever its status
    WANT_RAW = 2                 # the same, its data as msgspec.Raw: the JSON as it came, a copy

# Who can take a submit back; the engine.
cdef class Canceller:
    cdef int cancel_submit(self, int64_t seq) except -1

cdef class Reply:
    cdef:
        readonly object _loop
        object value
        object callback          # the first one; nearly always the only one
        object context
        list more                # [(callback, context)] beyond the first
        Canceller owner          # set while PENDING
        object entry             # HeapEntry while the submit waits to be sent, or to be sent again
        bytes frame              # the submit's frame, where it may be sent again
        int retries              # how often that may still be
        int priority
        int64_t seq
        int64_t timeout_ms       # as asked for, 0 for the default; for the message
        uint8_t state            # ReplyState
        uint8_t want             # Want
        public bint _asyncio_future_blocking

    cdef void resolve(self, object value) noexcept
    cdef void fail(self, object code, object message, object details) noexcept
    # Runs the callbacks now, each in its context. Only where no task is running.
    cdef int fire(self) except -1
    # Schedules the callbacks with call_soon. Anywhere.
    cdef int fire_soon(self) except -1
    cdef object outcome(self)    # the value, or raises

    cdef int _run(self, object callback, object context) except -1
    cdef object _error(self)

cdef Reply new_reply(object loop, Canceller owner, Want want)
# A finished asyncio.Future of `loop`: what a Task's wake-up is cheapest called with.
cdef object done_future(object loop)
