"""Runs handlers. See ``dispatch.pxd`` for the way of a packet through it."""

import asyncio
import collections
import sys

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject, Py_EQ, PyObject_RichCompareBool
from libc.stdint cimport int32_t, int64_t, uint64_t

from pfcore.link.engine cimport Engine, Incoming, incoming_of
from pfcore.memory.budget cimport Account, shared_room
from pfcore.memory.bytes_ops cimport pf_count_openers, pf_count_values
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns
from pfcore.memory.cpythonx cimport (
    pf_is_awaitable,
    pf_own,
    pf_take_error,
    Py_None,
    Py_REFCNT,
    PyContext_Copy,
    PyContext_CopyCurrent,
    PyContext_Enter,
    PyContext_Exit,
    PyCoro_CheckExact,
    PYGEN_ERROR,
    PYGEN_NEXT,
    PyIter_Send,
    PySendResult,
)
from pfcore.memory.heap cimport HeapEntry
from pfcore.memory.queue cimport Queue, Rounds, Share
from pfcore.wire.packets cimport Packet, new_packet
from pfcore.wire.reader cimport F_DATA, MAX_CODE, FrameReader, decode_span, group_code, group_index, text_to_str
from pfcore.wire.scan cimport Kind, Span
from pfcore.wire.terms cimport DEFAULT_TIMEOUT_MS, GROUP_CO, GROUP_DF, GROUP_ED, GROUP_MC, GROUP_RM, MILLISECOND
from pfcore.work.fair cimport FairQueue
from pfcore.work.handler cimport Handler
from pfcore.work.keys cimport KeyTable, concurrency_key
from pfcore.work.worker cimport SLOW, Job, Lane, Worker, WorkerHost

import msgspec

from pfcore.errors import PacketFlowError
from pfcore.wire import codes

__all__ = ["Dispatcher"]

cdef enum:
    # how long handlers may run in one iteration of the loop, inside reads of all links and again out of the queue
    SLICE = 1000000
    MOST_CONTAINERS = 100000     # arrays and objects in data that is decoded here: some 10 ms
    MARKED = 500000              # ns of batches from which on they are counted together
    # ... and how long unbounded ones (the standard elements) may in one iteration of the loop, over all links
    UNBOUNDED_SLICE = 1000000
    UNBOUNDED_TURN = 200000           # ns that one account has before it is another's turn
    JOB_BYTES = 2048             # what a packet that waits or is suspended takes, besides its data
    VALUE_BYTES = 56             # what each value in its data may take as a Python object
    CANCELS = 32                 # suspended handlers that are cancelled in one iteration of the loop

cdef object _CancelledError = asyncio.CancelledError
cdef object _Task = asyncio.Task
cdef object _enter_task = asyncio.tasks._enter_task
cdef object _leave_task = asyncio.tasks._leave_task
# Until 3.13 the current task of each loop stands in this dict, which C and Python share;
# writing it costs a fifth of the two calls above. From 3.14 on there are only the calls.
cdef dict _current_tasks = getattr(asyncio.tasks, "_current_tasks", None) if sys.version_info < (3, 14) else None
cdef object _ValidationError = msgspec.ValidationError
# what ends the process; anything else that a handler raises is its packet's failure
cdef tuple _PASSED_ON = (SystemExit, KeyboardInterrupt)
# codes that say: it never began, send it again
cdef frozenset _REFUSALS = codes.REFUSALS


cdef inline Py_ssize_t cost_of(FrameReader reader) noexcept:
    """Bytes that a packet takes while it waits: an upper bound, its data decoded."""
    cdef Span* data = &reader.fields[<int>F_DATA]
    if reader._length <= 256:
        return JOB_BYTES + 8 * reader._length
    return JOB_BYTES + reader._length + VALUE_BYTES * (
        pf_count_values(data.p, data.p + data.n) if data.kind >= Kind.ARRAY else 1)


@cython.final
cdef class Dispatcher(WorkerHost):
    """Handlers, and the limits under which they run.

    `concurrency`: async handlers that may be suspended at once (default 1,024);
    beyond it packets queue, the most urgent first. `max_queue`: packets that may
    wait (default 8,192), `max_queue_bytes`: and their bytes (default 64 MiB);
    beyond them the answer is PF429. `max_waiting`: unbounded handlers that may be
    suspended (default 65,536), PF429 past it. `expose_errors`: handlers' exception texts
    go to the submitter (default True). `on_slow`: called with ``(key, ms)``
    after a handler kept the loop for over 100 ms. `on_error`: called with ``(key,
    packet id, exception)`` when a handler raised anything but a `PacketFlowError`.
    """

    def __init__(self, *, Py_ssize_t concurrency=1024, Py_ssize_t max_queue=8192,
                 Py_ssize_t max_queue_bytes=67108864, Py_ssize_t max_waiting=65536, bint expose_errors=True,
                 on_slow=None, on_error=None):
        if concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1, got {concurrency}")
        if max_queue < 0:
            raise ValueError(f"max_queue: expected 0 or more, got {max_queue}")
        self.concurrency = concurrency
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self.max_waiting = max_waiting
        self.expose_errors = expose_errors
        self.on_slow = on_slow
        self.on_error = on_error
        self.queue = FairQueue()
        self.unbounded_queue = FairQueue()
        self.lanes = {}
        self.handlers = KeyTable()
        self.parked = []
        self.doomed = collections.deque()
        self.suspended_jobs = {}

    def tune(self, *, concurrency=None, max_queue=None):
        """Other limits from now on; ValueError for what cannot be, and then nothing changes."""
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1, got {concurrency}")
        if max_queue is not None and max_queue < 0:
            raise ValueError(f"max_queue: expected 0 or more, got {max_queue}")
        if max_queue is not None:
            self.max_queue = max_queue
        if concurrency is not None:
            self.concurrency = concurrency
            self.blocked = False
            if self.loop is not None:
                self._schedule()

    # -- handlers

    def register(self, Handler handler not None):
        """Adds a handler, in place of an earlier one for the same key."""
        self.handlers.put(handler)

    def unregister(self, str key not None):
        """Takes a handler out; KeyError if there is none."""
        self.handlers.take(key)

    @property
    def keys(self):
        """The keys that have a handler, sorted: ``["df:transform"]``."""
        return sorted(self.handlers.by_key)

    def finds(self, str group not None, str element not None):
        """Is there a handler, as a packet would find it?"""
        raw, code = element.encode(), group.encode()
        return self.handlers.find(
            group_index(<const unsigned char*>PyBytes_AS_STRING(code), PyBytes_GET_SIZE(code)),
            <const unsigned char*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)) is not None

    cdef Handler find(self, FrameReader reader):
        """The packet's handler or None."""
        return <Handler>self.handlers.find(reader.group, reader.element.p, reader.element.n)

    # -- life

    def start(self, loop, later=None):
        """Handlers run on `loop` from now on, in copies of the present context.

        None for simulations: plain functions only, and nothing queues. `later`: how
        slices of the queue get their turn, `Sharing.later` where links share the
        loop (default: the loop's next iteration).
        """
        self.loop = loop
        self.later = later if later is not None or loop is None else loop.call_soon
        self.base = PyContext_CopyCurrent()
        self.draining = False

    @property
    def queued(self):
        """Packets that wait for their turn."""
        return self.queued_jobs

    async def drain(self, timeout):
        """No new packets (PF503); waits up to `timeout` seconds for the accepted ones, True if all ended."""
        self.draining = True
        if self.running == 0 and self.waiting == 0 and self.queued_jobs == 0:
            return True
        self.idle = self.loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                await self.idle
            return True
        except TimeoutError:
            return False
        finally:
            self.idle = None

    def let_go(self):
        """Ends the parked workers: new ones are made as they are needed."""
        cdef Worker worker
        for worker in self.parked:
            worker.retire()
        self.parked.clear()

    def stop(self):
        """Ends the parked workers. Call once the links are gone."""
        self._cancel_some(len(self.doomed))
        self.let_go()
        if self.spare is not None:
            self.spare.retire()
            self.spare = None

    # -- accepting

    cdef int begin_batch(self, int64_t now) except -1:
        self.batch_began = now
        self.slice_ends = now + SLICE - self.spent
        return 0

    cdef int end_batch(self) except -1:
        cdef int64_t took
        if self.batch_began > 0:
            took = pf_monotonic_ns() - self.batch_began
            self.batch_began = 0
            if took >= MARKED and self.loop is not None:
                self.spent += took
                self._schedule()
        return self.deactivate()

    cdef int accept(self, Engine engine, FrameReader reader, int64_t now) except -1:
        cdef Incoming incoming = incoming_of(reader)
        self.take(engine, reader, &incoming, self.find(reader), None, now)
        return 0

    cdef Job take(self, Engine engine, FrameReader reader, Incoming* incoming, Handler handler, object caller,
                  int64_t now):
        cdef object data
        cdef Packet packet = None
        cdef Lane lane = None
        cdef LaneClaim claim
        cdef Span* span = &reader.fields[<int>F_DATA]
        if handler is None:
            key = f"{group_code(reader.group)}:{text_to_str(reader.element.p, reader.element.n, True)}"
            engine.respond_error(incoming, "PF001", f"no handler for {key}", None, 0)
            return None
        if self.draining:
            engine.respond_error(incoming, "PF503", "shutting down: no new packets", None, 0)
            return None
        if span.n > MOST_CONTAINERS and pf_count_openers(span.p, span.p + span.n, MOST_CONTAINERS) > MOST_CONTAINERS:
            # each is an object of Python's: a megabyte of brackets would keep everybody waiting for it
            engine.respond_error(
                incoming, "PF413",
                f"data: more than {MOST_CONTAINERS} arrays and objects (or brackets in texts)", None, 0)
            return None
        # decoded even if it will wait: bad data is refused at once, and the frame's bytes are borrowed
        try:
            if handler.decoder is None or (handler.plain_str and span.kind == Kind.STRING):
                data = decode_span(span, None)
            else:
                data = decode_span(span, handler.decoder)
            if handler.wants_packet:
                packet = new_packet(reader, data)
        except _ValidationError as error:
            engine.respond_error(incoming, "PF400", f"data: {error}", None, 0)
            return None
        except RecursionError:
            engine.respond_error(incoming, "PF400", "data: nested too deep", None, 0)
            return None
        except Exception as error:
            # a type's own code, a __post_init__ perhaps: this packet's failure, and no other's
            self._answer_error(engine, handler, incoming, None, error, now)
            return None
        if engine.inbound.count > 0 and engine.inbound.find_id(reader.id.p, reader.id.n) >= 0:
            engine.respond_error(incoming, "PF409", "a packet with this id is already in flight", None, 0)
            return None
        claim.limit = 0
        if self.loop is not None:
            if handler.unbounded:
                if not shared_room(self.max_waiting, self.waiting, engine.account.waits if engine.account is not None
                                   else 0):
                    engine.respond_error(
                        incoming, "PF429",
                        f"{self.waiting} packets wait here already, the most that may is {self.max_waiting}",
                        {"retry_after_ms": 100}, 0)
                    return None
                if (self.unbounded_queue.count > 0 or self.unbounded_used >= UNBOUNDED_SLICE
                        or engine.now >= self.slice_ends or self._inside_task()):
                    return self._enqueue(engine, reader, incoming, handler, data, packet, caller, &claim, now)
            elif handler.group == GROUP_ED and handler.limit == 0:
                # at once; but even events have a bound, and not inside somebody's task
                if not shared_room(self.concurrency + self.max_queue, self.running,
                                   engine.account.runs if engine.account is not None else 0) or self._inside_task():
                    return self._enqueue(engine, reader, incoming, handler, data, packet, caller, &claim, now)
            else:
                lane = self._claim(handler, reader, &claim)
                if (not self._may_run(engine.account) or self.queue.count > 0 or engine.now >= self.slice_ends
                        or lane is not None and lane.busy >= lane.limit or self._inside_task()):
                    return self._enqueue(engine, reader, incoming, handler, data, packet, caller, &claim, now)
        if engine.account is not None and not engine.account.room(JOB_BYTES):
            engine.respond_error(incoming, "PF429", engine.account.refusal(JOB_BYTES), {"retry_after_ms": 100}, 0)
            return None
        return self._run(engine, handler, incoming, data, packet,
                         now + (reader.timeout_ms if reader.timeout_ms > 0 else DEFAULT_TIMEOUT_MS) * MILLISECOND,
                         None, cost_of(reader) if engine.account is not None else 0, caller, &claim, now)

    cdef bint _inside_task(self) except -1:
        """Is the code of some other task running just now? A handler must not become part of it."""
        if self.active:
            return self.inside  # somebody's code has come back here from within a handler
        if _current_tasks is not None:
            return _current_tasks.get(self.loop) is not None
        return asyncio.current_task(self.loop) is not None

    cdef Lane _claim(self, Handler handler, FrameReader reader, LaneClaim* claim):
        """Which lane the packet needs, if it needs one; that lane, where someone is in it already."""
        claim.key = handler.hash
        if handler.limit > 0:
            claim.limit = handler.limit
        elif handler.unbounded or handler.group == GROUP_DF or handler.group == GROUP_CO or handler.group == GROUP_ED:
            return None
        else:
            if handler.group != GROUP_MC and concurrency_key(reader, handler.group == GROUP_RM, &claim.key):
                claim.key += <uint64_t>handler.group
            elif handler.group == GROUP_RM:
                return None
            else:
                claim.key = <uint64_t>handler.group
            claim.limit = 1
        return <Lane>self.lanes.get(claim.key)

    cdef int _leave_lane(self, Job job) except -1:
        """One less in its lane: the next may join the queue."""
        cdef Lane lane = job.lane
        cdef Job following
        if lane is None:
            return 0
        job.lane = None
        lane.busy -= 1
        while len(lane.queue) > 0 and lane.busy < lane.limit:
            following = <Job>lane.queue.next(lane.rounds)
            lane.busy += 1
            self._put(following, self.queue)
        if lane.busy == 0:
            self.lanes.pop(lane.key, None)
        return 0

    cdef Lane _enter_lane(self, LaneClaim* claim):
        """The lane, made where there is none."""
        cdef Lane lane = <Lane>self.lanes.get(claim.key)
        if lane is None:
            lane = Lane.__new__(Lane)
            lane.key = claim.key
            lane.limit = claim.limit
            lane.queue = Queue()
            lane.rounds = Rounds()
            self.lanes[lane.key] = lane
        return lane

    cdef Job _enqueue(self, Engine engine, FrameReader reader, Incoming* incoming, Handler handler, object data,
                      Packet packet, object caller, LaneClaim* claim, int64_t now):
        """The packet as a job that waits; None where it was refused."""
        cdef Job job
        cdef Py_ssize_t cost = cost_of(reader)
        if self._refuse_full(engine, incoming, cost):
            return None
        job = Job.__new__(Job)
        job.engine = engine
        job.handler = handler
        job.seq = reader.seq
        job.data = data
        job.packet = packet
        job.caller = caller if handler.wants_caller else None
        job.priority = reader.priority
        job.number = engine.keep(
            job, reader.id.p, reader.id.n,
            now + (reader.timeout_ms if reader.timeout_ms > 0 else DEFAULT_TIMEOUT_MS) * MILLISECOND)
        if job.number == 0:
            engine.respond_error(incoming, "PF409", "a packet with this id is already in flight", None, 0)
            return None
        self._charge(job, engine, cost)
        self.queue_bytes += cost
        self.queued_jobs += 1
        if job.account is not None:
            job.account.jobs += 1
        if claim.limit > 0:
            job.lane = self._enter_lane(claim)
            if job.lane.busy >= job.lane.limit:
                job.entry = job.lane.queue.push(job, job.account, job.priority)
                job.share = <Share>job.lane.queue.shares[job.account]
                return job
            job.lane.busy += 1
        self.blocked = False
        self._put(job, self.unbounded_queue if handler.unbounded else self.queue)
        self._schedule()
        return job

    cdef bint _refuse_full(self, Engine engine, Incoming* incoming, Py_ssize_t cost) except -1:
        """Is there no room for one more in the queue? Then it was refused."""
        cdef Account account = engine.account
        if not shared_room(self.max_queue, self.queued_jobs, account.jobs if account is not None else 0) \
                or cost > self.max_queue_bytes - self.queue_bytes or engine.inbound.count >= engine.window:
            message = (f"{self.queued_jobs} packets wait already, the most that may is {self.max_queue}"
                       f" (this connection: {engine.inbound.count} of {engine.window})")
        elif account is not None and not account.room(cost):
            account.refused += 1
            message = account.refusal(cost)
        else:
            return False
        engine.respond_error(incoming, "PF429", message, {"retry_after_ms": 100}, 0)
        return True

    cdef int _charge(self, Job job, Engine engine, Py_ssize_t cost) except -1:
        job.cost = cost
        job.account = engine.account
        if job.account is not None:
            job.account.settle(cost)
        return 0

    cdef bint charge_to(self, Job job, Account account, bint insist) except -1:
        cdef Account before = job.account
        cdef FairQueue queue = job.home
        if before is None or before is account:
            return True
        if insist:
            account.settle(job.cost)
        elif not account.take(job.cost):
            return False
        before.settle(-job.cost)
        if job.suspended:
            if job.handler.unbounded:
                before.waits -= 1
                account.waits += 1
            else:
                before.runs -= 1
                account.runs += 1
        else:
            before.jobs -= 1
            account.jobs += 1
            if queue is not None:
                queue.remove(job.entry, before)
        job.account = account
        if queue is not None:
            self._put(job, queue)
        return True

    cdef int _settle(self, Job job) except -1:
        """It is over, or nobody waits for it: what it was charged with is given back."""
        if job.account is not None:
            job.account.settle(-job.cost)
            job.account = None
        return 0

    cdef int _put(self, Job job, FairQueue queue) except -1:
        job.home = queue
        job.entry = queue.push(job, job.account, job.priority)
        return 0

    cdef bint _may_run(self, Account account) noexcept:
        """May one more handler of this account be suspended?"""
        return shared_room(self.concurrency, self.running - self.events, account.runs if account is not None else 0)

    cdef int _schedule(self) except -1:
        """Queued jobs get a turn in the loop's next iteration, if there is room for one."""
        if not self.scheduled and (self.unbounded_queue.count > 0 or self.unbounded_used > 0 or self.spent > 0
                                   or self.cancelled > 0
                                   or (self.running - self.events < self.concurrency and self.queue.count > 0
                                       and not self.blocked)):
            self.scheduled = True
            self.later(self.run_queue)
        return 0

    def run_queue(self):
        """Starts queued jobs for one slice of time: unbounded ones by turns of their accounts, others by urgency."""
        cdef int64_t now = pf_monotonic_ns()
        cdef int64_t end = now + UNBOUNDED_SLICE
        self.scheduled = False
        self.unbounded_used = 0
        self.spent = 0
        self._cancel_some(CANCELS)
        try:
            self._run_some(self.unbounded_queue, now, end)
            now = pf_monotonic_ns()
            self._run_some(self.queue, now, now + SLICE)
        finally:
            self.deactivate()
            self._schedule()
            self._check_idle()

    cdef int _run_some(self, FairQueue queue, int64_t now, int64_t end) except -1:
        cdef Job job
        cdef int64_t began
        while now < end and (queue is self.unbounded_queue or self.running - self.events < self.concurrency):
            if queue is self.unbounded_queue:
                job = <Job>queue.pop(1 << 40, 0)
            else:
                job = <Job>queue.pop(self.concurrency, self.running - self.events)
            if job is None:
                # what is left belongs to accounts that have their share of handlers: until one of those ends
                self.blocked = queue is self.queue and queue.count > 0
                break
            began = now
            self._run_job(job, now)
            now = pf_monotonic_ns()
            queue.used(now - began)
        return 0

    cdef int _run_job(self, Job job, int64_t now) except -1:
        """A job that was just taken out of its queue."""
        cdef object data = job.data
        cdef Packet packet = job.packet
        job.entry = None
        job.home = None
        job.data = None
        job.packet = None
        self.queued_jobs -= 1
        self.queue_bytes -= job.cost
        if job.account is not None:
            job.account.jobs -= 1
        if job.account is not None and not job.account.room(0):
            return self._refuse_queued(job, now)
        try:
            self._run(job.engine, job.handler, NULL, data, packet, 0, job, job.cost, job.caller, NULL, now)
        except _PASSED_ON:
            raise
        except Exception as error:
            self._report(job.handler, error)
        return 0

    cdef int _refuse_queued(self, Job job, int64_t now) except -1:
        """Its account has come to hold too much while it waited, results of others perhaps: it does not begin."""
        cdef str message = job.account.refusal(0)
        job.account.refused += 1
        self._leave_lane(job)
        self._settle(job)
        job.engine.now = now
        job.engine.finish_error(job.number, job.seq, "PF429", message, {"retry_after_ms": 100}, 0, False)
        return 0

    # -- running

    cdef Worker _take_worker(self):
        cdef Worker worker
        while self.parked:
            worker = <Worker>self.parked.pop()
            # its own reference and that of the wake-up: one more, and the last handler kept the task
            if worker.wakeup is not None and Py_REFCNT(<PyObject*>worker.task) <= 2:
                return worker
            worker.retire()
        worker = Worker.__new__(Worker)
        worker.host = self
        worker.context = PyContext_Copy(self.base)
        worker.task = _Task(worker, loop=self.loop, context=worker.context, name="packetflow-handler")
        return worker

    cdef Job _run(self, Engine engine, Handler handler, Incoming* incoming, object data, Packet packet,
                  int64_t deadline, Job job, Py_ssize_t cost, object caller, LaneClaim* claim, int64_t now):
        """Calls the handler and answers, or leaves it with a worker: then its job.

        `job`: that of a packet that had to wait; else None, and there is an `incoming`.
        """
        cdef Worker worker = self.spare
        cdef object value = None
        cdef object error = None
        cdef object inner = None
        cdef object task
        cdef PyObject* out = NULL
        cdef PySendResult status
        cdef Py_ssize_t references
        cdef bint suspended = False
        if self.loop is None:
            self._run_simulated(engine, handler, incoming, data, packet, now)
            return None
        if not self.active:
            if worker is None:
                worker = self._take_worker()
                self.spare = worker
            self._activate(worker)
        task = worker.task
        references = Py_REFCNT(<PyObject*>task)
        self.inside = True
        try:
            if handler.wants_caller:
                value = handler.function(data, packet, caller)
            elif handler.wants_packet:
                value = handler.function(data, packet)
            else:
                value = handler.function(data)
            if PyCoro_CheckExact(value) or pf_is_awaitable(value):
                inner = value if PyCoro_CheckExact(value) else value.__await__()
                value = None
                status = PyIter_Send(<PyObject*>inner, Py_None, &out)
                if status == PYGEN_ERROR:
                    error = pf_take_error()
                else:
                    value = pf_own(out)
                    suspended = status == PYGEN_NEXT
        except BaseException as raised:
            error = raised
        self.inside = False
        if suspended:
            self.deactivate()
            self.spare = None
            if job is None:
                job = Job.__new__(Job)
                job.engine = engine
                job.handler = handler
                job.seq = incoming.seq
                job.number = engine.keep(job, incoming.name, incoming.name_length, deadline)
                self._charge(job, engine, cost)
            if claim != NULL and claim.limit > 0:
                job.lane = self._enter_lane(claim)
                job.lane.busy += 1
            job.started = now
            job.caller = None
            job.suspended = True
            self.suspended_jobs[job] = None
            if handler.unbounded:
                self.waiting += 1
                if job.account is not None:
                    job.account.waits += 1
                self._used_free(now)
            else:
                self.running += 1
                self.events += handler.group == GROUP_ED
                if job.account is not None:
                    job.account.runs += 1
            worker.go_on(job, inner, value)
            if self.on_slow is not None and pf_monotonic_ns() - now > SLOW:
                self.was_slow(handler, pf_monotonic_ns() - now)
            return job
        inner = None
        if handler.unbounded:
            self._used_free(now)
        # someone kept the task, cancelled it, or set a context variable: not for the next handler. A parked
        # worker is told when its task is cancelled; one whose task has not run yet has to be asked.
        if (Py_REFCNT(<PyObject*>task) > references or worker.retired
                or (worker.wakeup is None and task.cancelling())
                or not PyObject_RichCompareBool(worker.context, self.base, Py_EQ)):
            self.deactivate()
            self.spare = None
            worker.retire()
        if job is not None:
            self._leave_lane(job)
        try:
            if error is None:
                self._answer(engine, handler, incoming, job, value, now)
            else:
                self._answer_error(engine, handler, incoming, job, error, now)
        finally:
            if job is not None:
                self._settle(job)
        if error is not None and isinstance(error, _PASSED_ON):
            self.deactivate()
            raise error
        return None

    def _used_free(self, int64_t began):
        """An unbounded handler has had its time; from a bound on the others wait for the loop's next iteration."""
        self.unbounded_used += pf_monotonic_ns() - began
        self._schedule()

    cdef int was_slow(self, Handler handler, int64_t took) except -1:
        if self.on_slow is not None:
            try:
                self.on_slow(handler.key, took // MILLISECOND)
            except Exception as error:
                self._report(handler, error)

    def _report(self, Handler handler, error):
        """What should not have raised did: said once, and nothing else suffers."""
        self.loop.call_exception_handler(
            {"message": f"packetflow: handling {handler.key} failed", "exception": error})

    cdef int _run_simulated(self, Engine engine, Handler handler, Incoming* incoming, object data, Packet packet,
                            int64_t now) except -1:
        """Without a loop there are no tasks, and only functions that return at once can run."""
        try:
            value = handler.function(data, packet) if handler.wants_packet else handler.function(data)
        except Exception as error:
            return self._answer_error(engine, handler, incoming, None, error, pf_monotonic_ns())
        return self._answer(engine, handler, incoming, None, value, pf_monotonic_ns())

    cdef int _activate(self, Worker worker) except -1:
        """Makes the worker's task the current one and its context the present one.

        Until `deactivate`, which whoever began the batch calls before anything
        else may run: entering and leaving once a packet was a tenth of it.
        """
        PyContext_Enter(worker.context)
        if _current_tasks is None:
            _enter_task(self.loop, worker.task)
        elif _current_tasks.get(self.loop) is None:
            _current_tasks[self.loop] = worker.task
        else:
            PyContext_Exit(worker.context)
            raise RuntimeError("handlers cannot be started from inside another task")
        self.active = True
        return 0

    cdef int deactivate(self) except -1:
        if self.active and not self.inside:
            self.active = False
            if _current_tasks is None:
                _leave_task(self.loop, self.spare.task)
            else:
                del _current_tasks[self.loop]
            PyContext_Exit(self.spare.context)
        return 0

    cdef int _answer(self, Engine engine, Handler handler, Incoming* incoming, Job job, object value,
                     int64_t started) except -1:
        cdef int64_t now = pf_monotonic_ns()
        cdef int64_t took = now - started
        if took > SLOW and job is None and self.on_slow is not None:
            self.was_slow(handler, took)
        if handler.check is not None and type(value) is not handler.returns:
            try:
                value = handler.check(value)
            except _PASSED_ON:
                raise
            except BaseException as error:
                return self._answer_error(engine, handler, incoming, job, error, started)
        self.completed += 1
        engine.now = now
        if job is None:
            incoming.ran = True
            return engine.respond(incoming, value, took // MILLISECOND)
        engine.finish(job.number, job.seq, value, took // MILLISECOND)
        return 0

    cdef int _answer_error(self, Engine engine, Handler handler, Incoming* incoming, Job job, object error,
                           int64_t started) except -1:
        cdef int64_t now = pf_monotonic_ns()
        cdef int64_t took = (now - started) // MILLISECOND
        cdef str code = "PF500"
        cdef object message, details = None
        cdef bint ran
        self.failed += 1
        engine.now = now
        if isinstance(error, PacketFlowError):
            # a handler may answer with any code of the protocol, but for those that say that it never began
            code, message, details = _told_by(error)
            if code in _REFUSALS and not handler.unbounded:
                details = {**(details or {}), "code": code}
                code = "PF500"
        elif isinstance(error, _CancelledError):
            message = "the handler was cancelled"
        else:
            if self.on_error is not None:
                self._tell_error(engine, handler, incoming, job, error)
            if self.expose_errors:
                try:
                    message = str(error) or type(error).__name__
                except Exception:
                    message = type(error).__name__
            else:
                message = "the handler failed"
        # a standard element has run where something that it set off has
        ran = not handler.unbounded or getattr(error, "began", False) is True
        if job is None:
            incoming.ran = ran
            return engine.respond_error(incoming, code, message, details, took)
        engine.finish_error(job.number, job.seq, code, message, details, took, ran)
        return 0

    cdef int _tell_error(self, Engine engine, Handler handler, Incoming* incoming, Job job,
                         object error) except -1:
        cdef int32_t slot
        cdef str packet_id
        if job is None:
            packet_id = text_to_str(incoming.packet_id, incoming.n, False)
        else:
            slot = engine.inbound.find_seq(job.number)
            if slot < 0:
                return 0  # nobody waits for it any more
            packet_id = text_to_str(engine.inbound.id_of(slot), engine.inbound.entries[slot].id_length, False)
        try:
            self.on_error(handler.key, packet_id, error)
        except Exception as failure:
            self._report(handler, failure)
        return 0

    cdef int ended(self, Job job, object value, object error) except -1:
        try:
            # counts and lanes first: what an answer may set off finds them right
            self._job_done(job)
            if error is None:
                self._answer(job.engine, job.handler, NULL, job, value, job.started)
            else:
                self._answer_error(job.engine, job.handler, NULL, job, error, job.started)
        except Exception as failure:
            self._report(job.handler, failure)
        finally:
            self._settle(job)
            self._check_idle()
        return 0

    cdef int _job_done(self, Job job) except -1:
        """A handler that had suspended has ended."""
        if job.suspended:
            self.blocked = False
            job.suspended = False
            self.suspended_jobs.pop(job, None)
            if job.handler.unbounded:
                self.waiting -= 1
                if job.account is not None:
                    job.account.waits -= 1
            else:
                self.running -= 1
                self.events -= job.handler.group == GROUP_ED
                if job.account is not None:
                    job.account.runs -= 1
            self._leave_lane(job)
        return self._schedule()

    cdef int _check_idle(self) except -1:
        if (self.idle is not None and self.running == 0 and self.waiting == 0 and self.queued_jobs == 0
                and not self.idle.done()):
            self.idle.set_result(None)
        return 0

    cdef int drop(self, Engine engine, object job, int why) except -1:
        """Nobody waits for this job's answer any more: it need not start, or is cancelled."""
        cdef Job dropped = <Job>job
        cdef object _data, _packet  # let go of when this returns
        if dropped.entry is not None:
            _data, _packet = dropped.data, dropped.packet
            if dropped.home is not None:
                dropped.home.remove(<HeapEntry>dropped.entry, dropped.account)
            else:
                dropped.lane.queue.remove(dropped.share, <HeapEntry>dropped.entry)
            self.queue_bytes -= dropped.cost
            self.queued_jobs -= 1
            if dropped.account is not None:
                dropped.account.jobs -= 1
            dropped.entry = None
            if dropped.home is not None:
                self._leave_lane(dropped)  # it had its place there
            dropped.lane = None
            dropped.home = None
            dropped.data = dropped.packet = dropped.caller = None
            self._settle(dropped)
            self._schedule()
            return self._check_idle()
        if dropped.worker is not None:
            # a task runs its handler's `finally` in the loop's next iteration: a thousand that end at once, by their
            # deadline or with a connection, must not all do so in one
            if self.cancelled < CANCELS and not self.doomed:
                self.cancelled += 1
                dropped.worker.task.cancel()
            else:
                self.doomed.append(dropped)
            self._schedule()
        return 0

    cdef int _cancel_some(self, Py_ssize_t most) except -1:
        cdef Job job
        self.cancelled = 0
        while self.doomed and self.cancelled < most:
            job = <Job>self.doomed.popleft()
            if job.worker is not None:  # it has not ended by itself meanwhile
                self.cancelled += 1
                job.worker.task.cancel()
        return 0

    def end_all(self, str message not None):
        """Ends what a drain has left: PF503 for what has not begun, which may be sent again, PF502 for the rest."""
        cdef Job job
        cdef list waiting = []
        # a lane's next moves up when its place is given back: until nobody waits anywhere
        for lane in list(self.lanes.values()):
            while (<Lane>lane).queue.live() > 0:
                job = <Job>(<Lane>lane).queue.first()
                self.drop(job.engine, job, 0)
                waiting.append(job)
        for queue in (self.unbounded_queue, self.queue):
            while True:
                job = <Job>(<FairQueue>queue).pop(1 << 60, 0)
                if job is None:
                    break
                job.entry = (<FairQueue>queue).push(job, job.account, job.priority)
                self.drop(job.engine, job, 0)
                waiting.append(job)
        for job in waiting:
            job.engine.finish_error(job.number, job.seq, "PF503", message, None, 0, False)
        for job in list(self.suspended_jobs):
            job.engine.finish_error(job.number, job.seq, "PF502", f"{message}: the packet had begun", None, 0, True)
            if job.worker is not None:
                job.worker.task.cancel()


cdef tuple _told_by(object error):
    """``(code, message, details)`` of a `PacketFlowError`, whatever somebody has put there."""
    try:
        code, message, details = error.code, error.message, error.details
        if type(code) is not str or not 0 < len(code) <= MAX_CODE or not (<str>code).isascii():
            code = "PF500"
        if not isinstance(message, str):
            message = str(message)
        return code, message, details if isinstance(details, dict) else None
    except Exception as failure:
        return "PF500", f"{type(error).__name__}, which cannot be read: {type(failure).__name__}", None
