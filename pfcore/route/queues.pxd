# Flights that wait for room: at the reactors of an element, or at one that alone may have them.

from pfcore.memory.budget cimport Account
from pfcore.memory.queue cimport Queue
from pfcore.route.flights cimport Flight, Member, Route

cdef class Queues:
    cdef:
        readonly Py_ssize_t count    # flights that wait
        readonly Py_ssize_t most     # that may wait for one element or reactor
        list routes              # those whose queue is not empty; Route.queued_at is the place
        Queue curious            # of those that wait for a word of links which announce nothing, in order of arrival
        dict behind              # Member -> None: has room, and more elements than were looked at

    # Is there room for one more of this account's in this queue?
    cdef bint room(self, Flight flight, Queue queue) except -1
    cdef int enter(self, Flight flight, Queue queue) except -1
    # Takes it out of the queue that it stands in, if it does; `left`: it was popped.
    cdef int leave(self, Flight flight) except -1
    # Another pays for a flight from now on, and it stands with what waits of his.
    cdef int paid_by(self, Flight flight, Account account) except -1
    # This reactor has room that it was offered nothing for: it is looked at soon. True: there is something to look at.
    cdef bint offer(self, Member member) except -1
    # This reactor gets it: what `most_urgent` has just said.
    cdef int take(self, Flight flight, Member member) except -1
    cdef int left(self, Flight flight) except -1
    # Where work for a reactor may wait.
    cdef list routes_of(self, Member member)
    # The most urgent of what a reactor with room may have, still in its queue; None: nothing. Accounts that have had
    # their part of its round come after all others. `urgent`: only what an event may have is left. Of many
    # elements a part is looked at: `member.unseen` says how many are left.
    cdef Flight most_urgent(self, Member member, bint urgent)
    # What has waited longest at the next of its elements where something waits; None: not among those looked at.
    cdef Flight _eldest(self, Member member, list routes, bint urgent)
    cdef bint _may_look(self, Member member, Route route, bint urgent) except -1
