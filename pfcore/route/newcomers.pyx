"""Links that announce nothing. See ``newcomers.pxd``."""

from collections import OrderedDict

cimport cython
from libc.stdint cimport int64_t

from pfcore.link.outgoing cimport EngineState
from pfcore.memory.buffers cimport OP_TEXT, OutputBuffer
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns
from pfcore.memory.ids cimport ID_LENGTH, write_id
from pfcore.memory.queue cimport Queue
from pfcore.route.flights cimport Asked, Flight, FlightState, Member, Principal, Route
from pfcore.route.queues cimport Queues
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way
from pfcore.wire.terms cimport W_SUBMIT, W_UUID_PACKET

from pfcore.link.pending import PendingFull

__all__ = ["Newcomers"]

cdef enum:
    LOOK_AGAIN = 128             # packets that waited for an answer, and are tried again in one go
    SLICE = 1000000              # ns that this may take
    MAX_DOUBTS = 4               # links that did not answer a question, until nobody waits for the next

cdef int64_t DOUBTING = 60000000000      # ns for which those are remembered


@cython.final
cdef class Newcomers:
    """Those of one switch."""

    def __init__(self, FlightTable flights not None, Queues queues not None):
        self.flights = flights
        self.queues = queues
        self.unlisted = []
        self.unasked = OrderedDict()
        self.asked = OrderedDict()
        self.curious = queues.curious
        # a number that no link has: who is asked knows the question's id, and must not meet it by that
        self.asking = Principal("gateway", -1, 63)
        self.question = Route.__new__(Route)
        self.question.name("df", "packetflow.anyone")
        self.question.members = []
        self.question.queue = Queue()
        self.question.queued_at = -1

    cdef int enter(self, Member member, int64_t now) except -1:
        member.asked_at = now
        self.unasked[member] = None
        return 0

    cdef int _note_asked(self, Member member, int64_t now) except -1:
        member.asked = Asked.IN_FLIGHT
        member.asked_at = now
        self.unasked.pop(member, None)
        self.asked[member] = None
        return 0

    cdef int leave(self, Member member) except -1:
        self.unasked.pop(member, None)
        self.asked.pop(member, None)
        if member.asked == Asked.ANSWERED and member in self.unlisted:
            self.unlisted.remove(member)
        return 0

    cdef bint _has_answered(self, Member member) except -1:
        if member.asked == Asked.ANSWERED or member.listed or member.gone:
            return False
        member.asked = Asked.ANSWERED
        self.unasked.pop(member, None)
        self.asked.pop(member, None)
        self.unlisted.append(member)
        return True

    cdef bint awaits_word(self, Route route, Member origin, int64_t now) except -1:
        if route.local:
            if not route.yields:
                return False
            if (origin is not None and not origin.gone and not origin.listed and origin.asked <= Asked.IN_FLIGHT
                    and now - origin.asked_at < WAIT_FOR_ASKED):
                return True  # one who has just come may be the handler of its own packet
            # we have a handler ourselves: after a few who never answered nobody waits for strangers any more
            if self.doubts >= MAX_DOUBTS and now - self.doubted < DOUBTING:
                return False
        self._give_up(now)
        return len(self.unasked) > 0 or len(self.asked) > 0

    cdef int _give_up(self, int64_t now) except -1:
        cdef Member member
        while self.asked:
            member = <Member>next(iter(self.asked))
            if now - member.asked_at < WAIT_FOR_ASKED:
                break
            del self.asked[member]
            if member.asked == Asked.IN_FLIGHT:
                member.asked = Asked.SILENT
                if now - self.doubted >= DOUBTING:
                    self.doubts = 0
                self.doubts += 1
                self.doubted = now
        return 0

    cdef Member _due(self, int64_t now):
        cdef Member member
        if not self.unasked:
            return None
        member = <Member>next(iter(self.unasked))
        return member if now - member.asked_at >= ASK_AFTER else None

    cdef int64_t _next_look(self, int64_t now) except? -2:
        cdef int64_t when = -1
        if self.unasked:
            when = (<Member>next(iter(self.unasked))).asked_at + ASK_AFTER
        if self.asked and (when < 0 or (<Member>next(iter(self.asked))).asked_at + WAIT_FOR_ASKED < when):
            when = (<Member>next(iter(self.asked))).asked_at + WAIT_FOR_ASKED
        return when

    cdef int ask(self, Way way, Member member) except -1:
        """Asks a link that announces nothing for an element that nobody has: a reactor says PF001 at once."""
        cdef OutputBuffer out = member.engine.out
        cdef Flight flight
        cdef unsigned char[ID_LENGTH] text
        self._note_asked(member, way.now)
        if member.engine.state != EngineState.OPEN or member.engine.fatal != 0 or (
                member.outstanding + member.engine.sent() >= member.window):
            return 0  # with its window full of what was sent to it by name, an answer to that says as much
        write_id(text)
        flight = self.flights.new()
        try:
            self.flights.enter(flight, text, ID_LENGTH, way.now + 4 * WAIT_FOR_ASKED, 0, None)
        except PendingFull:
            return 0  # it counts as one that does not answer
        flight.state = FlightState.SENT
        flight.principal = self.asking
        flight.account = member.account
        flight.route = self.question
        flight.accepted = flight.sent = way.now
        self.question.flights += 1
        member.account.flights += 1
        member.gets(flight)
        try:
            out.begin_message()
            out.put_literal(W_SUBMIT)
            out.put_int(flight.seq)
            out.put_literal(W_UUID_PACKET)
            out.put(text, ID_LENGTH)
            out.put_literal(b'","group":"df","element":"packetflow.anyone","data":null,"priority":1}}')
            out.end_message(OP_TEXT)
        except BufferError as error:
            return member.engine._overflow(error)
        way.arm_at(way.now + WAIT_FOR_ASKED)
        return way.touch(member, member.outstanding)

    cdef int hears(self, Way way, Member member) except -1:
        """It is a reactor: those that waited for a word look again."""
        if self._has_answered(member):
            self.place_curious(way)
            way.offer(member)  # what waits for any reactor may be its
        return 0

    cdef int look_after(self, Way way) except -1:
        """Asks those that have said nothing for a while, and lets go what has waited for them long enough."""
        cdef Member member = self._due(way.now)
        cdef int64_t when
        while member is not None:
            self.ask(way, member)
            member = self._due(way.now)
        self._give_up(way.now)
        if self.looking == 0:
            self.looking = self.curious.live()
        if self.looking > 0:
            self._place_some(way)
        when = self._next_look(way.now)
        if when >= 0:
            way.arm_at(when)
        return 0

    cdef int place_curious(self, Way way) except -1:
        """Those that waited for an answer look again; who may wait on waits on."""
        # not here: a segment may hold a thousand heartbeats
        self.looking = self.curious.live()
        return way.arm_at(way.now) if self.looking > 0 else 0

    cdef int _place_some(self, Way way) except -1:
        """So many of them in an iteration of the loop; who waits on is looked at after all others."""
        cdef Flight flight
        cdef int64_t when, began = pf_monotonic_ns()
        cdef int placed = 0
        while self.looking > 0 and self.curious.live() > 0 and placed < LOOK_AGAIN and (
                pf_monotonic_ns() - began < SLICE):
            placed += 1
            self.looking -= 1
            flight = <Flight>self.curious.pop()
            self.queues.left(flight)
            way.place_again(flight, way.now)
        if self.curious.live() == 0:
            self.looking = 0
        elif self.looking > 0:
            way.arm_at(way.now)
        else:
            when = self._next_look(way.now)
            if when >= 0:
                way.arm_at(when)  # those that wait on
        return 0
