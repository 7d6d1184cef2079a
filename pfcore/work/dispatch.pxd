# Runs handlers: finds the one for a packet, calls it at once where it may,
# queues it by priority where it may not, and answers.
#
# It knows the engine, asyncio's Task protocol and the clock (for the time that
# a handler took); no sockets. One dispatcher serves all links of a reactor or
# gateway, so its limits hold for them together.
#
#   accept --(room)--> called inline --returns--------------------> answered
#      |                    \--is a coroutine: driven--returns-----> answered
#      |                                        \--suspends--> Worker's Task --> answered
#      \--(at the limit, or the slice is used up)--> Job in the heap --> later as above
#
# Which packets may run beside which is their group's (the specification's section 3):
#   cf   one at a time, per metadata.key where there is one
#   ed   at once, never behind queued work
#   mc   one at a time
#   rm   one at a time per metadata.key, else data.key
#   df, co  as many as there is room for
# A handler with a `limit` of its own has a lane of that width. An `unbounded` one waits
# rather than works (the standard elements): thousands of them may be suspended.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from pfcore.link.engine cimport Sink, Engine, Incoming
from pfcore.memory.budget cimport Account
from pfcore.wire.packets cimport Packet
from pfcore.wire.reader cimport FrameReader
from pfcore.wire.scan cimport Span
from pfcore.work.fair cimport FairQueue
from pfcore.work.handler cimport Handler
from pfcore.work.keys cimport KeyTable
from pfcore.work.worker cimport Job, Lane, Worker, WorkerHost

# Which lane a packet needs; `limit` 0: none.
cdef struct LaneClaim:
    uint64_t key
    Py_ssize_t limit

cdef class Dispatcher(WorkerHost):
    cdef:
        object later                 # callable(callback): a slice of the queue gets its turn
        readonly Py_ssize_t concurrency  # handlers that may be suspended at once
        readonly Py_ssize_t max_queue    # jobs that may wait
        Py_ssize_t max_queue_bytes
        readonly Py_ssize_t running  # suspended handlers, but for unbounded ones
        readonly Py_ssize_t events   # of them, those of ed: they take no share of `concurrency`
        readonly Py_ssize_t waiting  # suspended handlers that are unbounded
        readonly Py_ssize_t max_waiting
        Py_ssize_t queue_bytes
        readonly bint draining
        readonly bint expose_errors
        FairQueue queue
        FairQueue unbounded_queue    # of jobs whose handlers are unbounded
        dict suspended_jobs          # Job -> None: those whose handlers have begun and not ended
        object doomed                # deque of Jobs that nobody waits for, to be cancelled in the next iterations
        Py_ssize_t cancelled         # so many were in this one
        bint blocked                 # nothing in `queue` may leave it before a handler has ended
        int64_t unbounded_used       # ns that unbounded handlers have had in this iteration of the loop
        dict lanes                   # key -> Lane, while anyone is in it
        readonly Py_ssize_t queued_jobs  # in both queues and in all lanes
        KeyTable handlers
        Worker spare                 # the worker that the next handler is driven under
        bint active                  # the spare worker's task and context are the present ones
        bint inside                  # a handler's first step is running: they stay so until it ends
        bint scheduled               # `run_queue` was handed to call_soon
        int64_t slice_ends           # ns; inline handlers stop there and the rest queues
        int64_t batch_began          # ns
        int64_t spent                # ns of batches in this iteration of the loop, over all links
        object idle                  # Future or None: set when nothing runs or waits
        object on_slow               # callable(key, ms) or None
        object on_error              # callable(key, packet id, exception) or None
        # -- counts
        readonly int64_t completed
        readonly int64_t failed

    # As `accept`, by this handler (None: PF001), which may want to know who submitted: `caller` is a Member, or a
    # Principal. The packet's job, where it goes on: it waits, or its handler has suspended; None where it was answered.
    cdef Job take(self, Engine engine, FrameReader reader, Incoming* incoming, Handler handler, object caller,
                  int64_t now)
    # Another pays for a job from now on; False: he cannot. `insist`: past his bound, too.
    cdef bint charge_to(self, Job job, Account account, bint insist) except -1
    cdef Handler find(self, FrameReader reader)
    cdef int deactivate(self) except -1
    cdef int _activate(self, Worker worker) except -1
    cdef int _run_simulated(self, Engine engine, Handler handler, Incoming* incoming, object data, Packet packet,
                            int64_t now) except -1
    cdef Job _run(self, Engine engine, Handler handler, Incoming* incoming, object data, Packet packet,
                  int64_t deadline, Job job, Py_ssize_t cost, object caller, LaneClaim* claim, int64_t now)
    cdef Job _enqueue(self, Engine engine, FrameReader reader, Incoming* incoming, Handler handler, object data,
                      Packet packet, object caller, LaneClaim* claim, int64_t now)
    cdef int _answer(self, Engine engine, Handler handler, Incoming* incoming, Job job, object value,
                     int64_t started) except -1
    cdef int _answer_error(self, Engine engine, Handler handler, Incoming* incoming, Job job, object error,
                           int64_t started) except -1
    cdef bint _refuse_full(self, Engine engine, Incoming* incoming, Py_ssize_t cost) except -1
    cdef int _charge(self, Job job, Engine engine, Py_ssize_t cost) except -1
    cdef int _settle(self, Job job) except -1
    cdef int _put(self, Job job, FairQueue queue) except -1
    cdef bint _inside_task(self) except -1
    cdef int _run_some(self, FairQueue queue, int64_t now, int64_t end) except -1
    cdef int _run_job(self, Job job, int64_t now) except -1
    cdef int _refuse_queued(self, Job job, int64_t now) except -1
    cdef bint _may_run(self, Account account) noexcept
    cdef Worker _take_worker(self)
    cdef int _tell_error(self, Engine engine, Handler handler, Incoming* incoming, Job job,
                         object error) except -1
    cdef int _job_done(self, Job job) except -1
    cdef Lane _claim(self, Handler handler, FrameReader reader, LaneClaim* claim)
    cdef Lane _enter_lane(self, LaneClaim* claim)
    cdef int _leave_lane(self, Job job) except -1
    cdef int _schedule(self) except -1
    cdef int _check_idle(self) except -1
    cdef int _cancel_some(self, Py_ssize_t most) except -1
