"""Which reactor gets a packet. See ``choose.pxd``."""

from libc.stdint cimport int64_t, uint64_t

from pfcore.route.flights cimport Flight, Member, Policy, Route
from pfcore.wire.reader cimport F_METADATA, FrameReader, find_key
from pfcore.wire.scan cimport Kind, Span, span_to_int64
from pfcore.wire.terms cimport GROUP_ED
from pfcore.work.keys cimport concurrency_key

__all__ = []

cdef enum:
    TRIES = 256                  # candidates looked at before all count as full
    LOOKED_AT_FOR_LATENCY = 16
    MAX_RETRIES = 100
    MAX_TRIED = 64               # reactors that may refuse one packet
    MAX_TRIED_HERE = 4           # ... where we have a handler of our own


cdef inline uint64_t _random(uint64_t* chance) noexcept nogil:
    # xorshift64*: only has to spread load
    cdef uint64_t x = chance[0]
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    chance[0] = x
    return (x * <uint64_t>0x2545F4914F6CDD1D) >> 16


cdef inline uint64_t _mix(uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t h = (a ^ (b * <uint64_t>0x9E3779B97F4A7C15)) * <uint64_t>0xFF51AFD7ED558CCD
    h ^= h >> 32
    h *= <uint64_t>0xC4CEB9FE1A85EC53
    return h ^ (h >> 29)


cdef Member _hashed(list members, Route route, Flight flight, uint64_t key):
    """Rendezvous: the same key goes to the same reactor, and to few others when one comes or goes."""
    cdef Member member, best = None
    cdef uint64_t weight, most = 0
    for member in members:
        if eligible(member, route, flight):
            weight = _mix(key, <uint64_t>member.number)
            if best is None or weight > most:
                best = member
                most = weight
    return best


cdef Member choose(Route route, Flight flight, Member origin, list unlisted, uint64_t* chance, bint* some):
    cdef list members = route.members
    cdef Py_ssize_t n = len(members), at, tries
    cdef uint64_t key
    cdef Member a, b
    cdef bint urgent = route.group == GROUP_ED
    cdef bint sticky = route.policy == Policy.STICKY or (route.policy == Policy.KEYED and flight.has_key)
    some[0] = False
    # refusals are remembered, but many links that refuse must not make one packet's way long
    if flight.tried is not None and len(flight.tried) >= (
            MAX_TRIED_HERE if route.announced == 0 and route.local else MAX_TRIED):
        return None
    if route.announced == 0:
        if route.local and not route.yields:
            return None
        members = unlisted
        n = len(members)
        if n == 0:
            return None
    if n == 1:
        a = <Member>members[0]
        if not eligible(a, route, flight):
            return None
        some[0] = True
        return a if sticky or a.room(urgent) else None
    if sticky:
        key = flight.key_hash
        if not flight.has_key:
            key = <uint64_t>origin.number * <uint64_t>0xD6E8FEB86659FD93 if origin is not None else 0
        a = _hashed(members, route, flight, key)
        some[0] = a is not None
        return a
    if route.policy == Policy.FASTEST:
        b = None
        at = <Py_ssize_t>(_random(chance) % <uint64_t>n)
        for tries in range(min(n, LOOKED_AT_FOR_LATENCY)):
            a = <Member>members[(at + tries) % n]
            if eligible(a, route, flight):
                some[0] = True
                if a.room(urgent) and (b is None or a.latency < b.latency):
                    b = a
        if b is not None or n <= LOOKED_AT_FOR_LATENCY:
            return b
    else:
        # the better of two random ones
        at = <Py_ssize_t>(_random(chance) % <uint64_t>n)
        tries = <Py_ssize_t>(_random(chance) % <uint64_t>(n - 1))
        a = <Member>members[at]
        b = <Member>members[tries if tries < at else tries + 1]
        if b.outstanding * a.window < a.outstanding * b.window:
            a, b = b, a
        if eligible(a, route, flight):
            some[0] = True
            if a.room(urgent):
                return a
        if eligible(b, route, flight):
            some[0] = True
            if b.room(urgent):
                return b
    at = <Py_ssize_t>(_random(chance) % <uint64_t>n)
    for tries in range(min(n, TRIES) if some[0] else n):
        a = <Member>members[(at + tries) % n]
        if eligible(a, route, flight):
            some[0] = True
            if a.room(urgent):
                return a
    return None


cdef Member another(Route route, Flight flight, Member member, list unlisted):
    cdef Member other
    if flight.tried is not None and len(flight.tried) >= MAX_TRIED:
        return None
    for other in (route.members if route.announced > 0 else unlisted):
        if other is not member and eligible(other, route, flight):
            return other
    return None


cdef bint all_refused(Route route, Flight flight) except -1:
    cdef Member member
    cdef Py_ssize_t refused = 0, there = 0
    for member in flight.tried:
        refused += not member.gone and not member.draining and route in member.routes
    if refused == 0 or route.announced == 0 or flight.busy:
        return False
    if refused >= MAX_TRIED:
        return True
    for member in route.members:
        there += not member.draining
        if there > refused:
            return False
    return True


cdef int retries_of(FrameReader reader) noexcept:
    cdef Span span
    cdef int64_t value
    if reader.fields[<int>F_METADATA].kind != Kind.OBJECT or not find_key(
            &reader.fields[<int>F_METADATA], b"retry", 5, &span):
        return 0
    if span.kind == Kind.TRUE_:
        return 10
    if span.kind == Kind.NUMBER and span_to_int64(&span, 0, MAX_RETRIES, &value) == 0:
        return <int>value
    return 0


cdef bint routing_key(FrameReader reader, Route route, uint64_t* key) noexcept:
    if route.policy != Policy.STICKY and route.policy != Policy.KEYED:
        return False
    return concurrency_key(reader, route.policy == Policy.KEYED, key)
