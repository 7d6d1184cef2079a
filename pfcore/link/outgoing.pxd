# The submitting half of a connection: our packets, from the call to their end.
#
#   submit --(room)--> written --answer--> ended
#      |                  |--a refusal worth it, `retries` left--> delayed --> waiting
#      \--(no room)----> waiting --pump--> written
#   and from everywhere: deadline and a second --> PF408, cancelled --> nothing;
#   the connection goes --> PF502, or waiting again where `retries` are left
#
# It knows the output, which answers to the peer's packets share, and nothing of
# those: an Engine is this and them.

from libc.stdint cimport int64_t, uint8_t

from pfcore.link.pending cimport PendingTable
from pfcore.link.reply cimport Canceller, Reply, Want
from pfcore.memory.buffers cimport OutputBuffer
from pfcore.memory.heap cimport PriorityHeap
from pfcore.wire.reader cimport FrameReader

cdef enum:
    # Bytes of output that are worth a write before a batch has ended: with less, the system
    # call costs more than the overlap gains; with much more, the peer idles while we fill it.
    GOOD_WRITE = 32768
    # With few submits in flight all of them fit into less than that, and the two sides would
    # take turns; two writes' worth of them keep both at work.
    LEAST_WRITE = 6144
    WRITE_PER_SUBMIT = 64        # bytes, about a third of a small frame

cdef enum EngineState:
    OFFLINE = 0
    OPEN = 1
    CLOSED = 2

cdef class Outgoing(Canceller):
    cdef:
        readonly Py_ssize_t max_frame    # bytes of a message, ours and theirs
        readonly int max_depth
        object loop                  # handed to replies, otherwise untouched; None in simulations
        OutputBuffer out             # messages ready to be written
        PendingTable pending         # our submits, waiting or sent
        PriorityHeap waiting         # of them, those not sent: (Reply, frame bytes)
        PriorityHeap delayed         # of them, those to be sent again, by time: (Reply, due in ns)
        object wake                  # callable(): output or timers have changed outside a batch; or None
        int64_t cap                  # submits that it may have at once, whatever it announces; 0: as it announces
        int64_t routed               # submits handed on to this peer and not yet answered: they share its window
        list ready                   # replies that ended and have someone waiting
        Py_ssize_t ready_at          # the first of them that was not yet resumed
        uint8_t state                # EngineState
        bint paused                  # the transport takes no more for now
        bint in_batch                # whoever drives us flushes soon: no need to `wake`
        bint sent_since_wake         # `wake` was called and has not yet been answered by a flush
        readonly int fatal           # close code once the connection must go, 0
        readonly object fatal_reason  # str
        int64_t now                  # the latest `now`
        int64_t earliest             # `wake_at` as far as it is known, -1: look
        int64_t came_back            # when the connection was made again after a loss, 0: not yet
        readonly int64_t peer_window  # submits it takes at once, 0: it did not say
        readonly bint peer_cancels   # it understands PF499
        readonly int64_t submitted   # submits sent
        readonly int64_t answered    # results that ended a submit
        readonly int64_t unasked     # results and errors for nothing that is pending: dropped

    # `now` in ns. Raises InvalidPacket, or the exception of PF502, PF409, PF413 or PF429.
    cdef Reply submit(self, bytes address, object data, int priority, int64_t timeout_ms,
                      bytes packet_id, bytes extra, Want want, int64_t now, int retries=*)
    # Resumes who waits for what has ended, in order. True, before all were: there is a good write's worth of output.
    cdef bint fire_ready(self) except -1
    # Own submits that were sent and not yet answered.
    cdef inline Py_ssize_t sent(self) noexcept:
        return self.pending.count - self.waiting.live() - self.delayed.live()

    # Is there output that should leave before the batch ends, with so many packets that its peer works on?
    cdef inline bint worth_writing(self, int64_t in_flight) noexcept:
        return self.out.size >= LEAST_WRITE and not self.paused and (
            self.out.size >= GOOD_WRITE or (in_flight > 0 and self.out.size >= in_flight * WRITE_PER_SUBMIT))

    # The end of a submit, in `reader`: its result, a refusal of its frame, or a result that is malformed. False: it is
    # of none of ours.
    cdef bint result(self, FrameReader reader) except -1
    cdef bint refused_there(self, FrameReader reader, object code, object message, object details) except -1
    cdef bint malformed(self, FrameReader reader, object message) except -1
    # Ends every submit that was sent, or every submit, but so many at most; False: there are more.
    cdef bint fail_sent(self, object code, object message, bint waiting_too, Py_ssize_t most) except -1
    # Sends what waited, as far as there is room.
    cdef int pump(self, int64_t now) except -1
    # What time has come for; when that is next, ns, -1 never.
    cdef int tick_submits(self, int64_t now) except -1
    cdef int64_t submits_due(self) except? -2
    # One has ended, whatever the way, or is to be sent again later: the peer has room.
    cdef int freed(self) except -1

    # -- of both halves
    cdef int note_output(self) except -1
    # -- private
    cdef bint _room(self) noexcept
    cdef int _unqueue(self, Reply reply) except -1
    cdef bint _again(self, Reply reply, object code, object details) except -1
    cdef int _settle(self, Reply reply) except -1
    cdef int _send_error(self, int64_t seq, bytes packet_id, object code, object message) except -1
    cdef int _die(self, int close_code, object reason) except -1
    cdef int _overflow(self, object error) except -1
