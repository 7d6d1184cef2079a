# What the parts of routing may ask of the switch.
#
# The switch holds its parts and calls them; where one of them has to move a
# packet on, it is given the switch, as a Way. So no part knows the switch, nor
# keeps it, and each can be read by itself.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pfcore.link.engine cimport Sink
from pfcore.memory.budget cimport Account
from pfcore.memory.queue cimport Queue
from pfcore.route.flights cimport Flight, Member, Route
from pfcore.wire.reader cimport FrameReader

cdef class Way(Sink):
    cdef:
        int64_t now              # ns, of the message or timer that is being dealt with
        bint in_batch            # what is written leaves when the batch ends

    # `advance` is needed at this time, or before.
    cdef int arm_at(self, int64_t deadline) except -1
    # A flight for the packet, in the table. The caller has seen to it that there is room; else PendingFull.
    # `renamed`: another principal has one of the same id.
    cdef Flight begin(self, Member origin, Route route, FrameReader reader, bint renamed, uint64_t fingerprint,
                      uint32_t tag, int64_t now)
    # The flight is handled here, or looks for its reactor. `reader`: the packet, where it is not held yet.
    cdef int launch(self, Flight flight, FrameReader reader, int64_t now) except -1
    # The same for one that is held, and for which nobody stands who could be told what goes wrong: it ends in that.
    cdef int launch_again(self, Flight flight, int64_t now) except -1
    cdef int place_again(self, Flight flight, int64_t now) except -1
    # It is handled here, now.
    cdef int run_here(self, Flight flight, int64_t now) except -1
    # The one outcome of a flight: to who waits for it, into the ledger, to who depends on it. `answered`: the
    # engine has written it to its submitter.
    cdef int end(self, Flight flight, const unsigned char* payload, Py_ssize_t length, bint success, object code,
                 bint answered, int64_t now) except -1
    # As `end`, with an error of ours.
    cdef int fail(self, Flight flight, object code, object message, object details, int64_t now,
                  FrameReader reader=*) except -1
    # Ends a flight that nobody waits for; whoever depends on it learns that it failed.
    cdef int forget(self, Flight flight) except -1
    # Ends one that is wanted no more, whatever has become of it: who has it is told, its submitter is not. If it has
    # begun it has an outcome, `code`, for whoever sends it again.
    cdef int take_back(self, Flight flight, object code) except -1
    # Another pays for it from now on, past his bound too.
    cdef int paid_by(self, Flight flight, Account account) except -1
    # Keeps the payload, for a reactor that has yet to be found. False, and it has failed: there is no room.
    cdef bint hold(self, Flight flight, FrameReader reader) except -1
    # It finds its reactor, is given to this one, or waits in this queue.
    cdef int place(self, Flight flight, FrameReader reader, int64_t now) except -1
    cdef int send(self, Flight flight, Member target, FrameReader reader, int64_t now) except -1
    cdef int enqueue(self, Flight flight, Queue queue, FrameReader reader, int64_t now) except -1
    # Gives a reactor that has room what waits for it: now, or soon. Whoever makes room somewhere does one of the two.
    cdef int pump(self, Member member, int64_t now) except -1
    cdef int offer(self, Member member) except -1
    # Tells the reactor that has it that it is wanted no more, where it understands.
    cdef int withdraw(self, Flight flight) except -1
    # It is over, and has had its outcome: out of all tables.
    cdef int give_back(self, Flight flight) except -1
    # A member has output: sees to it that it leaves, soon or at once. `in_flight`: packets that its peer works on.
    cdef int touch(self, Member member, int64_t in_flight) except -1
    # A packet that never had a flight has ended: those that depend on it go on, or fail.
    cdef int settled(self, int32_t number, const unsigned char* packet_id, Py_ssize_t n, bint success,
                     int64_t now) except -1
    cdef int write_result(self, Member member, int64_t seq, const unsigned char* payload, Py_ssize_t length) except -1
