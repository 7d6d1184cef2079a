# Links that announce nothing: does one of them handle anything?
#
# The specification's reactors announce nothing, and neither do mere clients. So
# such a link is asked, once it has been silent for a moment, for an element that
# nobody has: a reactor says PF001 at once. Only those that have answered are
# tried for elements that nobody announces. Packets that such an answer may help
# wait for it, half a second at most.

from libc.stdint cimport int64_t

from pfcore.memory.queue cimport Queue
from pfcore.route.flights cimport Member, Principal, Route
from pfcore.route.queues cimport Queues
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way

cdef enum:
    ASK_AFTER = 50000000         # ns until a link that says nothing is asked
    WAIT_FOR_ASKED = 500000000   # ns that a packet waits for such an answer at most

cdef class Newcomers:
    cdef:
        FlightTable flights
        Queues queues
        list unlisted            # members that announce nothing and have answered something
        object unasked           # OrderedDict: members that are yet to be asked, oldest first
        object asked             # OrderedDict: those that were asked and have not answered yet, likewise
        int doubts               # links that were asked lately and did not answer
        int64_t doubted          # ns; when the last of them did not
        Route question           # of what they are asked for: nobody has it
        Principal asking         # whose the questions are
        Queue curious            # flights that wait for such an answer
        Py_ssize_t looking       # of them, how many have yet to look again

    # A link that announces nothing has opened; it announces after all, or has gone.
    cdef int enter(self, Member member, int64_t now) except -1
    cdef int leave(self, Member member) except -1
    # Asks it for an element that nobody has: a reactor says PF001 at once.
    cdef int ask(self, Way way, Member member) except -1
    # It has answered something: it is a reactor, and tried for what nobody announces from now on.
    cdef int hears(self, Way way, Member member) except -1
    # Is there anyone of whom it is not yet known, or is known, that they may have what nobody announces?
    cdef inline bint some(self) except -1:
        return len(self.unlisted) > 0 or len(self.unasked) > 0 or len(self.asked) > 0
    # Is there a question whose answer may bring a handler for this route? Not for longer than half a second.
    cdef bint awaits_word(self, Route route, Member origin, int64_t now) except -1
    # Asks those that have said nothing for a while, and lets go what has waited for them long enough: some of it.
    cdef int look_after(self, Way way) except -1
    # Those that waited for an answer are to look again, in the next iterations; who may wait on waits on.
    cdef int place_curious(self, Way way) except -1
    # -- private
    # So many of those that are to look again do.
    cdef int _place_some(self, Way way) except -1
    cdef int _note_asked(self, Member member, int64_t now) except -1
    cdef bint _has_answered(self, Member member) except -1
    cdef int _give_up(self, int64_t now) except -1
    cdef Member _due(self, int64_t now)
    cdef int64_t _next_look(self, int64_t now) except? -2
