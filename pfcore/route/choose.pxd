# Which reactor gets a packet, by the policy of its element's group.

from libc.stdint cimport uint64_t

from pfcore.route.flights cimport Asked, Flight, Member, Route
from pfcore.wire.reader cimport FrameReader

# May it have packets of this route at all? `flight`: this one, None: any.
cdef inline bint eligible(Member member, Route route, Flight flight) noexcept:
    if member.draining or member.gone:
        return False
    # what announces nothing is given nothing before it has said anything at all
    if not member.listed and (member.asked != Asked.ANSWERED or member.refuses(route.hash)
                              or not route.may_handle >> member.principal.role & 1
                              or (route.local and not route.may_replace >> member.principal.role & 1)):
        return False
    return flight is None or not flight.was_refused_by(member)

# Who gets it; None where nobody has room. `some`: is there anyone at all? For a key that only one reactor may have,
# that one, room or not. `unlisted`: those that announce nothing and have answered something. `chance`: state of the
# random choices.
cdef Member choose(Route route, Flight flight, Member origin, list unlisted, uint64_t* chance, bint* some)

# Another one that may have it, room or not; None where there is none.
cdef Member another(Route route, Flight flight, Member member, list unlisted)

# Has everybody who announces it, and takes work, refused it, or so many that it is enough? `flight.tried` is not None.
cdef bint all_refused(Route route, Flight flight) except -1

# How often it may be sent again: its metadata.retry, true being 10.
cdef int retries_of(FrameReader reader) noexcept

# The packet's metadata.key, for rm else data.key, hashed; False where it has none, or the policy does not ask.
cdef bint routing_key(FrameReader reader, Route route, uint64_t* key) noexcept
