# A Worker is a coroutine-like object under one asyncio.Task. Handlers are
# driven with that task as the current one and in its context, so that
# asyncio.timeout, TaskGroup and contextvars work from the first line; only if
# the handler suspends does the task go on with it. A task and context that the
# handler left as they were (nobody kept the task, no variable was set) serve
# the next handler: a task of its own for each halves the throughput.
#
# A Job is a packet that waits for its turn, or whose handler has suspended; a
# Lane is a line of jobs that must not run at the same time.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from pfcore.link.engine cimport Sink, Engine
from pfcore.memory.budget cimport Account
from pfcore.memory.queue cimport Queue, Rounds, Share
from pfcore.wire.packets cimport Packet
from pfcore.work.fair cimport FairQueue
from pfcore.work.handler cimport Handler

cdef enum:
    SLOW = 100000000             # ns; a handler that keeps the loop this long is worth a warning

# Packets that must not run at the same time: at most `limit` of them are suspended.
cdef class Lane:
    cdef:
        uint64_t key
        Py_ssize_t limit
        Py_ssize_t busy              # suspended, or in the dispatcher's own queue
        Queue queue                  # of Job: those behind them
        Rounds rounds                # whose packets have had the lane

cdef class Job:
    cdef:
        Engine engine
        Handler handler
        readonly int64_t seq         # the peer's
        readonly bytes packet_id     # the peer's, where the engine keeps it under another; None
        int64_t number               # under which the engine keeps it; 0: not kept
        int64_t started              # ns; when it was called
        object data
        Packet packet                # where the handler wants it
        object caller                # where the handler wants it
        object entry                 # HeapEntry while queued
        FairQueue home               # where, None: in its lane's
        Share share                  # ... of which account
        Lane lane                    # None: it may run beside any other
        uint8_t priority
        Worker worker                # while running
        object flight                # the switch's side of it, None
        Py_ssize_t cost              # bytes that it is charged with, 0: none
        Account account              # who pays them, None
        bint suspended               # the handler has begun and is counted in `running` or `waiting`

cdef class Worker:
    cdef:
        WorkerHost host
        object task                  # its asyncio.Task
        object context               # the task's
        object inner                 # the handler's coroutine, once it has suspended
        object first                 # what that had yielded when it suspended; NULL-like sentinel otherwise
        bint has_first
        Job job
        object wakeup                # the task's callback while it is parked
        bint retired                 # serves no more
        bint cancelled               # its task was cancelled while parked
        public bint _asyncio_future_blocking

    cdef object step(self, object value)
    cdef object _finished(self, object value, object error)
    cdef int go_on(self, Job job, object inner, object first) except -1
    cdef int retire(self) except -1

# What a worker needs of whoever gives it work: the dispatcher.
cdef class WorkerHost(Sink):
    cdef:
        object loop
        object base                  # the context that handlers' contexts copy
        list parked                  # workers that wait for work

    # A handler that had suspended has ended: its packet is answered. Raises nothing of a packet's.
    cdef int ended(self, Job job, object value, object error) except -1
    # It kept the loop so long (ns).
    cdef int was_slow(self, Handler handler, int64_t took) except -1
