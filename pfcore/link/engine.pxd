# One connection's rules, without I/O and without a clock: whole messages in,
# framed bytes out, `now` (nanoseconds, monotonic) as an argument.
#
#   OFFLINE --connected--> OPEN --disconnected--> OFFLINE      (a reactor's: it dials again)
#      |                    |
#      +------- close ------+------------------> CLOSED        (final)
#
# Order of calls, for whoever drives it (link does):
#   connected(now)                    once the handshake is done
#   receive(p, n, now)                for every whole message, then, when no more has arrived:
#   fire_ready()                      resumes whoever waits for what arrived; True: write, call again
#   pump(now)                         sends submits that waited for room
#   ... write `out` and clear it
#   tick(now)                         when `wake_at()` has come; afterwards as above
#   disconnected(message, now)        when the connection has gone, however it went
# After each of these look at `fatal`: once set, the connection is to be closed
# with that WebSocket close code.
#
# OFFLINE accepts submits, too: they wait, within the bound and their deadline,
# for the connection. What was sent when the connection goes fails with PF502.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

from pfcore.link.outgoing cimport EngineState, Outgoing
from pfcore.link.pending cimport PendingTable
from pfcore.memory.budget cimport Account
from pfcore.memory.buffers cimport OutputBuffer
from pfcore.wire.reader cimport FrameReader

# A packet on its way from the frame to its answer: on the stack of whoever takes it, and handed down to who answers.
# Borrowed: the id, from the frame or from the table of what is kept.
cdef struct Incoming:
    int64_t seq
    const unsigned char* packet_id
    Py_ssize_t n                 # bytes of the id
    const unsigned char* name    # what it is kept under, if it is: the id, but where several submitters' packets meet
    Py_ssize_t name_length
    PyObject* job                # the one that was kept and is answered now; NULL: it was never kept
    bint noted                   # the sink wants to be shown the answer
    bint ran                     # a handler has begun, whatever the answer's code says

cdef inline Incoming incoming_as(int64_t seq, const unsigned char* packet_id, Py_ssize_t n) noexcept:
    cdef Incoming incoming
    incoming.seq = seq
    incoming.packet_id = packet_id
    incoming.n = n
    incoming.name = packet_id
    incoming.name_length = n
    incoming.job = NULL
    incoming.noted = False
    incoming.ran = False
    return incoming

cdef inline Incoming incoming_of(FrameReader reader) noexcept:
    return incoming_as(reader.seq, reader.id.p, reader.id.n)

# What an engine gives incoming packets to.
cdef class Sink:
    # Messages that arrived together begin; and they have ended: before any other task runs.
    cdef int begin_batch(self, int64_t now) except -1
    cdef int end_batch(self) except -1
    # The packet in `reader` (borrowed). Answers with the engine's `respond` methods, now or later.
    cdef int accept(self, Engine engine, FrameReader reader, int64_t now) except -1
    # An accepted packet's deadline has passed (expired) or its submitter has cancelled it,
    # or the connection has gone. `job` is what was given to `keep`; it is no longer kept.
    cdef int drop(self, Engine engine, object job, int why) except -1

    # -- for one that also hands packets on (the switch); others need none of these

    # A result, in `reader`, to no submit of the engine's own. False: it is nobody's.
    cdef bint answer(self, Engine engine, FrameReader reader, int64_t now) except -1
    # The peer refuses a frame that was handed on, or its answer is malformed. False: nobody's.
    cdef bint refuse(self, Engine engine, FrameReader reader, object code, object message, object details) except -1
    # The submitter takes a packet back that is not kept here.
    cdef int cancel(self, Engine engine, const unsigned char* packet_id, Py_ssize_t n) except -1
    # A packet that is `noted` was answered here, and this is the result's payload.
    cdef int answered(self, Engine engine, Incoming* incoming, object code,
                      const unsigned char* payload, Py_ssize_t length) except -1
    # The peer takes more again.
    cdef int resumed(self, Engine engine, int64_t now) except -1
    # A submit of the engine's own has ended: its peer has room for one more.
    cdef int freed(self, Engine engine) except -1

cdef enum DropReason:
    EXPIRED = 0
    CANCELLED_BY_PEER = 1
    DISCONNECTED = 2

cdef class Engine(Outgoing):
    cdef:
        # -- settings
        readonly bint client         # masks, as the side that dialled must
        readonly int64_t window      # submits that we take at once: announced
        readonly object name         # our reactor id: announced
        object instance              # secret that tells us from others of our name: announced; None
        int64_t heartbeat_ns         # interval of heartbeats
        int64_t silence_ns           # silence after which we ping, and then wait as long again
        # -- parts
        FrameReader reader
        PendingTable inbound         # their packets that are kept, by our own numbers
        Sink sink                    # None: every packet is answered with PF001
        object on_heartbeat          # callable(payload dict) or None
        object flush_now             # callable(): write what is ready; None without a connection
        readonly object member                # the switch's side of this link, None where nothing is handed on
        Account account              # who pays for what this peer causes; None: nobody counts (a reactor's side)
        bint mute                    # nobody reads its answers: they are shown to the sink, and written nowhere
        bint records                 # the sink wants to be shown the answers to packets that are kept
        # -- state
        public int64_t wall_offset   # ns from `now` to the Unix epoch's clock, for heartbeats' timestamps
        bint was_lost                # it was disconnected at least once
        int64_t last_heard           # when a byte last came
        int64_t ping_sent            # when we last pinged into silence, -1
        int64_t next_heartbeat
        list capabilities            # ["df:transform"] to announce, or None
        # -- what the peer has announced
        readonly object peer_name    # reactor id, None; a claim: whether it counts is the gateway's to say
        readonly object peer_instance  # secret that tells reactors of one name apart, None; shown to nobody
        readonly object peer_capabilities
        # -- counts
        readonly int64_t handled     # packets of theirs that were answered
        readonly int64_t refused     # their frames that were not valid
        int64_t strikes              # frames refused since the last heartbeat that named no packet

    cdef int receive(self, const unsigned char* p, Py_ssize_t n, int64_t now) except -1
    cdef int tick(self, int64_t now) except -1
    cdef int64_t wake_at(self) except? -2

    # Answers to the packet that `receive` is just handing over, or to a kept one. What `data` is made of may
    # run the user's code, which comes first: the id may be borrowed from the frame or from the table.
    cdef int respond(self, Incoming* incoming, object data, int64_t duration_ms) except -1
    cdef int respond_error(self, Incoming* incoming, object code, object message, object details,
                           int64_t duration_ms) except -1
    # As `respond`, for what `encode_value` gave.
    cdef int respond_value(self, Incoming* incoming, object value, int64_t duration_ms) except -1
    # Refuses the packet in `reader`, of which nobody is told.
    cdef int refuse(self, FrameReader reader, object code, object message, object details) except -1
    # Keeps a packet for later: returns the number to answer it under, or 0 if an equal id is kept already.
    cdef int64_t keep(self, object job, const unsigned char* packet_id, Py_ssize_t n, int64_t deadline) except? -1
    # Answers a kept packet, once; False if it is no longer kept. `ran`: a handler had begun.
    cdef bint finish(self, int64_t number, int64_t seq, object data, int64_t duration_ms) except -1
    cdef bint finish_error(self, int64_t number, int64_t seq, object code, object message, object details,
                           int64_t duration_ms, bint ran) except -1

    # Takes a submit back that was sent under this seq; only where `peer_cancels`.
    cdef int withdraw(self, int64_t seq, bytes packet_id) except -1
    cdef int ping_received(self, const unsigned char* p, Py_ssize_t n) except -1

    # -- private
    cdef OutputBuffer _answers(self, bint noted)
    cdef int _note_answer(self, OutputBuffer out, Py_ssize_t size, Py_ssize_t head, Incoming* incoming,
                          object code) except -1
    cdef bint _finish(self, int64_t number, int64_t seq, object value, tuple error, int64_t duration_ms,
                      bint ran) except -1
    cdef int _fail_frame(self, int64_t now) except -1
    cdef int _on_result(self) except -1
    cdef int _on_error(self) except -1
    cdef int _on_heartbeat(self) except -1
    cdef int _send_heartbeat(self) except -1
    cdef int _drop_inbound(self) except -1
    cdef int _expire_inbound(self, int32_t slot) except -1
