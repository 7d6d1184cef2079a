"""Do the tables of a gateway agree with one another? For tests, fuzzing and debugging: slow, and changes nothing.

Each check is a function of its own, which appends sentences to a list of what
is wrong; an empty list is what everyone wants. `audit` runs them all over a
switch, its dispatcher and its links, between two batches: inside one, a
structure may rightly be half-way.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pfcore.link.engine cimport Engine
from pfcore.link.outgoing cimport EngineState
from pfcore.link.pending cimport LEVELS, TICK_BITS, WHEEL_SLOTS, Entry, PendingTable
from pfcore.link.reply cimport Reply, ReplyState
from pfcore.memory.budget cimport LITTLE, Account, Budget
from pfcore.memory.heap cimport HeapEntry, PriorityHeap
from pfcore.memory.queue cimport Queue, Share
from pfcore.route.choose cimport eligible
from pfcore.route.directory cimport ANNOUNCED_BYTES, ROUTE_BYTES
from pfcore.route.flights cimport Asked, Flight, FlightState, Member, Route
from pfcore.route.ledger cimport Ledger
from pfcore.route.switch cimport Switch
from pfcore.wire.terms cimport GROUP_ED
from pfcore.work.dispatch cimport Dispatcher
from pfcore.work.fair cimport FairQueue, Turn
from pfcore.work.keys cimport Keyed, KeyTable
from pfcore.work.worker cimport Job, Lane, Worker

__all__ = ["audit", "audit_heap", "audit_ledger", "audit_queue", "audit_table", "in_flight"]

cdef tuple _STATES = ("free", "waiting", "queued", "sent", "local")


# ---------------------------------------------------------------- containers


def _waiters(PendingTable table):
    """``[(slot, seq, waiter)]`` of the occupied slots."""
    cdef int32_t slot
    cdef list found = []
    for slot in range(table.used):
        if table.entries[slot].seq != 0:
            found.append((slot, table.entries[slot].seq, <object>table.entries[slot].waiter))
    return found


def _items(PriorityHeap heap):
    """``[(entry, item)]`` of the live entries."""
    cdef Py_ssize_t at
    cdef HeapEntry entry
    cdef list found = []
    for at in range(heap.size):
        entry = <HeapEntry>heap.nodes[at].entry
        if entry.home != NULL:
            found.append((entry, entry.item))
    return found


def _queued(Queue queue):
    """``[(entry, item)]`` of all shares."""
    return [pair for share in queue.order or () for pair in _items((<Share>share).heap)]


def _by_age(Queue queue):
    """Its shares from the oldest to the newest, as far as each knows the one before."""
    cdef void* at = queue.oldest
    cdef void* before = NULL
    cdef list found = []
    while at != NULL and len(found) <= len(queue.order) and (<Share>at).older == before:
        found.append(<Share>at)
        before = at
        at = (<Share>at).newer
    return found if before == queue.newest else []


def audit_queue(Queue queue not None, str name="queue"):
    """What is wrong in a queue: its shares, their places, their heaps, its count."""
    cdef list wrong = []
    cdef Share share
    if queue.order is None or queue.shares is None:
        return [] if queue.count == 0 and queue.order is queue.shares else [f"{name}: it has lost its shares"]
    for place, share in enumerate(queue.order):
        if share.place != place or share.queue is not queue or queue.shares.get(share.account) is not share:
            wrong.append(f"{name}: a share does not know its place")
        if share.heap.live() == 0:
            wrong.append(f"{name}: a share is empty")
        wrong += audit_heap(share.heap, name)
    aged = _by_age(queue)
    if len(aged) != len(queue.order) or {*aged} != {*queue.order}:
        wrong.append(f"{name}: {len(aged)} of {len(queue.order)} shares stand in the order of age")
    if len(queue.shares) != len(queue.order) or queue.count != len(_queued(queue)):
        wrong.append(f"{name}: {len(_queued(queue))} items of {len(queue.order)} accounts, the counts say"
                     f" {queue.count} of {len(queue.shares)}")
    return wrong


def audit_table(PendingTable table not None, str name="table"):
    """What is wrong in a table of pending entries: its free list, its chains, its wheel, its count."""
    cdef list wrong = []
    cdef set free = set()
    cdef dict by_seq = {}, by_id = {}, by_time = {}
    cdef int32_t slot, bucket, place, previous
    cdef Entry* entry
    cdef Py_ssize_t occupied = 0
    if not 0 <= table.count <= table.bound:
        wrong.append(f"{name}: {table.count} entries, bound {table.bound}")
    if not 0 <= table.used <= table.capacity:
        wrong.append(f"{name}: {table.used} slots used of {table.capacity}")
        return wrong
    slot = table.free
    while slot >= 0:
        if slot in free or slot >= table.used:
            wrong.append(f"{name}: the free list goes round or astray at slot {slot}")
            return wrong
        free.add(slot)
        if table.entries[slot].seq != 0:
            wrong.append(f"{name}: slot {slot} is free and has seq {table.entries[slot].seq}")
            return wrong
        slot = table.entries[slot].next_seq
    for bucket in range(table.capacity):
        for chain, head, by_hash in ((by_seq, table.by_seq[bucket], False), (by_id, table.by_id[bucket], True)):
            slot = head
            while slot >= 0:
                if slot in chain or slot >= table.used:
                    wrong.append(f"{name}: a chain {'by id' if by_hash else 'by seq'} goes round or astray at {slot}")
                    return wrong
                chain[slot] = bucket
                slot = table.entries[slot].next_id if by_hash else table.entries[slot].next_seq
    if table.wheel != NULL:
        for place in range(LEVELS * WHEEL_SLOTS):
            slot = table.wheel[place]
            if (slot >= 0) != bool(table.occupied[place // WHEEL_SLOTS] >> (place % WHEEL_SLOTS) & 1):
                wrong.append(f"{name}: the bitmap of wheel slot {place} is wrong")
            previous = -1
            while slot >= 0:
                if slot in by_time or slot >= table.used:
                    wrong.append(f"{name}: a list of the wheel goes round or astray at {slot}")
                    return wrong
                by_time[slot] = place
                if table.entries[slot].wheel_previous != previous or table.entries[slot].wheel_slot != place:
                    wrong.append(f"{name}: slot {slot} does not know its place in the wheel")
                previous = slot
                slot = table.entries[slot].wheel_next
    for slot in range(table.used):
        entry = &table.entries[slot]
        if entry.seq == 0:
            if slot not in free:
                wrong.append(f"{name}: slot {slot} is neither occupied nor free")
            if slot in by_seq or slot in by_id or slot in by_time:
                wrong.append(f"{name}: slot {slot} is empty and linked")
            continue
        occupied += 1
        if entry.waiter == NULL:
            wrong.append(f"{name}: slot {slot} has no waiter")
        if by_seq.get(slot) != (entry.seq & (table.capacity - 1)):
            wrong.append(f"{name}: seq {entry.seq} is not found by seq")
        if by_id.get(slot) != <int64_t>(entry.hash & <uint64_t>(table.capacity - 1)):
            wrong.append(f"{name}: seq {entry.seq} is not found by id")
        if table.find_seq(entry.seq) != slot:
            wrong.append(f"{name}: seq {entry.seq} stands there twice")
        if (entry.deadline >= 0) != (slot in by_time) or (entry.wheel_slot >= 0) != (slot in by_time):
            wrong.append(f"{name}: seq {entry.seq} has deadline {entry.deadline}, in the wheel: {slot in by_time}")
    if occupied != table.count:
        wrong.append(f"{name}: {occupied} slots are occupied, the count says {table.count}")
    return wrong


def audit_heap(PriorityHeap heap not None, str name="heap"):
    """What is wrong in a heap: its order, its count of the dead, its entries' home."""
    cdef list wrong = []
    cdef set arrivals = set()
    cdef Py_ssize_t at, parent, dead = 0
    cdef HeapEntry entry
    if not 0 <= heap.dead <= heap.size <= heap.capacity:
        wrong.append(f"{name}: {heap.dead} dead of {heap.size} in {heap.capacity}")
        return wrong
    for at in range(heap.size):
        entry = <HeapEntry>heap.nodes[at].entry
        arrivals.add(heap.nodes[at].arrival)
        if entry.home == NULL:
            dead += 1
            if at == 0:
                wrong.append(f"{name}: the first node is dead")
        elif entry.home != <void*>heap:
            wrong.append(f"{name}: an entry says that it is in another heap")
        if ~heap.nodes[at].priority != entry.priority:
            wrong.append(f"{name}: a node has another priority than its entry")
        if heap.nodes[at].arrival >= heap.arrivals:
            wrong.append(f"{name}: an entry from the future")
        if at > 0:
            parent = (at - 1) >> 2
            if (heap.nodes[at].priority, heap.nodes[at].arrival) < (
                    heap.nodes[parent].priority, heap.nodes[parent].arrival):
                wrong.append(f"{name}: node {at} should leave before its parent")
    if len(arrivals) != heap.size:
        wrong.append(f"{name}: two entries arrived at once")
    if dead != heap.dead:
        wrong.append(f"{name}: {dead} nodes are dead, the count says {heap.dead}")
    return wrong


def audit_ledger(Ledger ledger not None, str name="ledger"):
    """What is wrong in a ledger: its index has all that is remembered, once, where it is looked for."""
    cdef list wrong = []
    cdef uint32_t at
    cdef int32_t place, count = 0, indexed = 0
    cdef set seen = set()
    if ledger.index == NULL:
        if ledger.count != 0:
            wrong.append(f"{name}: {ledger.count} outcomes and no index")
        return wrong
    for at in range(ledger.mask + 1):
        if ledger.index[at] != 0:
            indexed += 1
            seen.add(<int64_t>(ledger.index[at] & 0xFFFFFFFF) - 1)
    for place in range(ledger.capacity):
        if ledger.outcomes[place].ended == 0:
            continue
        count += 1
        at = ledger.outcomes[place].tag & ledger.mask
        while ledger.index[at] != 0 and <int32_t>(ledger.index[at] & 0xFFFFFFFF) != place + 1:
            at = (at + 1) & ledger.mask
        if ledger.index[at] == 0:
            wrong.append(f"{name}: outcome {place} is not found by its id")
        elif <uint32_t>(ledger.index[at] >> 32) != ledger.outcomes[place].tag:
            wrong.append(f"{name}: outcome {place} stands in the index under another tag")
    if not count == ledger.count == indexed == len(seen):
        wrong.append(f"{name}: {count} outcomes, the count says {ledger.count}, the index has {indexed}")
    return wrong


# ---------------------------------------------------------------- routing


cdef object _flights(Switch switch):
    return [waiter for _, _, waiter in _waiters(switch.table) if isinstance(waiter, Flight)]


cdef object _label(Switch switch, Flight flight):
    cdef int32_t slot = flight.slot
    name = b"?"
    if 0 <= slot < switch.table.used and switch.table.entries[slot].seq != 0:
        name = PyBytes_FromStringAndSize(<const char*>switch.table.id_of(slot), switch.table.entries[slot].id_length)
    state = _STATES[flight.state] if flight.state < 5 else flight.state
    return f"flight {(flight.own_id or name)!r} ({state}, {flight.route.key if flight.route is not None else None})"


cdef bint _lives(Switch switch, Member member):
    return member is not None and (not member.gone and switch.membership.members.get(member.engine) is member
                                   or member.gone and member in switch.membership.leaving)


def _check_flights(Switch switch, list wrong):
    """Each occupied slot has a flight that knows its slot, and is in one state wholly."""
    cdef Flight flight
    cdef set seen = set()
    for slot, seq, waiter in _waiters(switch.table):
        if not isinstance(waiter, Flight):
            wrong.append(f"slot {slot} of the flights holds {waiter!r}")
            continue
        flight = <Flight>waiter
        label = _label(switch, flight)
        if id(flight) in seen:
            wrong.append(f"{label} stands in the table twice")
        seen.add(id(flight))
        if flight.slot != slot or flight.seq != seq:
            wrong.append(f"{label} believes to be in slot {flight.slot} as {flight.seq}, it is in {slot} as {seq}")
        if not FlightState.WAITING <= flight.state <= FlightState.LOCAL:
            wrong.append(f"{label} is in the table")
        if flight.principal is None or flight.route is None:
            wrong.append(f"{label} has no principal or route")
            continue
        if flight.account is None or flight.cost < 0:
            wrong.append(f"{label}: nobody pays for it")
        if flight.route is not switch.newcomers.question \
                and switch.directory.routes.by_key.get(flight.route.key) is not flight.route:
            wrong.append(f"{label}: its route has been forgotten")
        if flight.origin is not None and not _lives(switch, flight.origin):
            wrong.append(f"{label}: its submitter's link has gone, and it does not know")
        if flight.deadline != switch.table.entries[<int32_t>slot].deadline:
            wrong.append(f"{label} has another deadline than the table")
        if (flight.own_id is not None) != (
                switch.flights.renamed.get((flight.principal.number, flight.own_id)) is flight):
            wrong.append(f"{label}: the table of renamed ids does not agree")
        _check_state(switch, flight, label, wrong)


cdef int _check_state(Switch switch, Flight flight, object label, list wrong) except -1:
    if (flight.target is not None) != (flight.state == FlightState.SENT):
        wrong.append(f"{label}: target {flight.target!r}")
    if (flight.entry is not None) != (flight.state == FlightState.QUEUED) or (flight.home is not None) != (
            flight.state == FlightState.QUEUED):
        wrong.append(f"{label}: its place in a queue and its state do not agree")
    if (flight.job is not None) != (flight.state == FlightState.LOCAL):
        wrong.append(f"{label}: its job and its state do not agree")
    if bool(flight.needs) != (flight.state == FlightState.WAITING) and not (
            # the last of them has ended, and its turn has not come yet
            flight.state == FlightState.WAITING
            and (flight, flight.seq) in [entry[:2] for turn in switch.dependencies.ready.values() for entry in turn]):
        wrong.append(f"{label}: needs {flight.needs}")
    if flight.state == FlightState.SENT and flight.target is not None:
        if not _lives(switch, flight.target):
            wrong.append(f"{label}: the link of the reactor that has it is gone")
    elif flight.state == FlightState.QUEUED and flight.home is not None and flight.entry is not None:
        _check_queued(switch, flight, label, wrong)
    elif flight.state == FlightState.LOCAL and flight.job is not None:
        _check_local(flight, label, wrong)
    if flight.state in (FlightState.WAITING, FlightState.QUEUED) and flight.held == NULL:
        wrong.append(f"{label} is to be sent later, and its payload is not kept")
    return 0


cdef int _check_queued(Switch switch, Flight flight, object label, list wrong) except -1:
    cdef Queue queue = flight.home.queue
    if flight.entry.home != <void*>flight.home.heap or flight.entry.item is not flight:
        wrong.append(f"{label} is not in the queue that it believes to be in")
    if queue is not flight.route.queue and queue is not switch.newcomers.curious and not any(
            (<Member>member).queue is queue
            for member in [*switch.membership.members.values(), *switch.membership.leaving]):
        wrong.append(f"{label} is in nobody's queue")
    return 0


cdef int _check_local(Flight flight, object label, list wrong) except -1:
    cdef Engine engine = flight.engine
    cdef int32_t slot
    if engine is None:
        wrong.append(f"{label} has no engine")
        return 0
    if flight.job.flight is not flight or flight.job.engine is not engine:
        wrong.append(f"{label}: its job belongs to another")
    slot = engine.inbound.find_seq(flight.job.number)
    if slot < 0 or <object>engine.inbound.entries[slot].waiter is not flight.job:
        wrong.append(f"{label}: its engine does not keep its job")
    return 0


def _check_awaited(Switch switch, list wrong):
    """A waiting flight stands under each of its needs, and nothing else does."""
    cdef Flight flight
    cdef dict expected = {}
    for flight in _flights(switch):
        if flight.state == FlightState.WAITING:
            for needed in flight.needs or ():
                expected.setdefault((flight.principal.number, needed), []).append(flight)
    for number, needs, flight in switch.dependencies.unwanted:
        for needed in needs:
            if flight in switch.dependencies.awaited.get((number, needed), ()) and \
                    flight not in expected.setdefault((number, needed), []):
                expected[(number, needed)].append(flight)
    released = {(number, needed) for number, needed, _, _ in switch.dependencies.released}
    for key in expected.keys() | switch.dependencies.awaited.keys():
        if key in released and set(switch.dependencies.awaited.get(key, ())) <= set(expected.get(key, ())):
            continue  # that has ended, and some of those who waited have not been looked at yet
        there = sorted(map(id, switch.dependencies.awaited.get(key, ())))
        if there != sorted(map(id, expected.get(key, ()))) or not there:
            wrong.append(f"{len(there)} flights stand under the need {key}, {len(expected.get(key, ()))} have it")
    if switch.dependencies.starting or (switch.dependencies.ready and switch.armed < 0):
        wrong.append("flights whose needs have ended were not started:"
                     f" {sum(len(turn) for turn in switch.dependencies.ready.values())}")
    if switch.membership.leaving and switch.armed < 0:
        wrong.append(f"{len(switch.membership.leaving)} that have gone have flights, and nobody will end them")
    if not all(switch.dependencies.ready.values()):
        wrong.append("an account of which nothing is ready has a turn all the same")
    if switch.newcomers.looking > 0 and switch.newcomers.curious.live() > 0 and switch.armed < 0:
        wrong.append(f"{switch.newcomers.looking} that were to look again will not")
    if switch.dependencies.unwanted and switch.armed < 0:
        wrong.append(f"{len(switch.dependencies.unwanted)} entries that nobody needs are not taken off")


def _check_counts(Switch switch, list wrong):
    """Counts that are kept are what counting gives."""
    cdef Flight flight
    cdef Member member
    cdef Route route
    cdef Py_ssize_t held = 0, queued = 0, in_heaps = 0
    cdef dict submitted = {}, outstanding = {}, events = {}, under_way = {}
    for flight in _flights(switch):
        held += flight.length if flight.held != NULL else 0
        queued += flight.state == FlightState.QUEUED
        if flight.origin is not None:
            submitted[flight.origin] = submitted.get(flight.origin, 0) + 1
        if flight.target is not None:
            outstanding[flight.target] = outstanding.get(flight.target, 0) + 1
            events[flight.target] = events.get(flight.target, 0) + (flight.route.group == GROUP_ED)
        if flight.route is not None:
            under_way[flight.route] = under_way.get(flight.route, 0) + 1
    for member in [*switch.membership.members.values(), *switch.membership.leaving]:
        if member.submitted != submitted.get(member, 0):
            wrong.append(f"{_name(member)}: {submitted.get(member, 0)} flights of its own, the count says"
                         f" {member.submitted}")
        if member.outstanding != outstanding.get(member, 0):
            wrong.append(f"{_name(member)}: it has {outstanding.get(member, 0)} flights, the count says"
                         f" {member.outstanding}")
        in_heaps += len(member.queue) if member.queue is not None else 0
        if member.events != events.get(member, 0):
            wrong.append(f"{_name(member)}: it has {events.get(member, 0)} events, the count says {member.events}")
        if _listed(member.mine, True) != member.submitted or _listed(member.theirs, False) != member.outstanding:
            wrong.append(f"{_name(member)}: its lists of flights do not agree with their counts")
        if member.engine.routed != member.outstanding:
            wrong.append(f"{_name(member)}: its engine counts {member.engine.routed} flights,"
                         f" it has {member.outstanding}")
    for route in switch.directory.routes.by_key.values():
        if route.flights != under_way.get(route, 0):
            wrong.append(f"route {route.key}: {under_way.get(route, 0)} flights, the count says {route.flights}")
        in_heaps += len(route.queue)
    in_heaps += len(switch.newcomers.curious)
    if switch.newcomers.question.flights != under_way.get(switch.newcomers.question, 0):
        wrong.append(f"{switch.newcomers.question.flights} questions,"
                     f" {under_way.get(switch.newcomers.question, 0)} are under way")
    if switch.kept.bytes != held:
        wrong.append(f"{held} bytes of payloads are held, the count says {switch.kept.bytes}")
    if not queued == in_heaps == switch.queues.count:
        wrong.append(f"{queued} flights are queued, {in_heaps} stand in queues, the count says {switch.queues.count}")
    for _, flight in switch.flights.renamed.items():
        if flight.state == FlightState.FREE or flight.own_id is None:
            wrong.append("a flight that is over stands among the renamed")


def _check_room(Switch switch, list wrong):
    """Nothing waits for a reactor that has room, unless that is about to be looked at."""
    cdef Member member
    cdef Route route
    cdef Share share
    cdef Flight flight
    for route in switch.directory.routes.by_key.values():
        if route.queued_at < 0:
            continue
        for member in route.members:
            if (member in switch.queues.behind or not member.room(route.group == GROUP_ED)
                    or (route.announced > 0 and not member.listed)):
                continue
            for share in route.queue.order:
                flight = share.heap.peek()
                if eligible(member, route, flight):
                    wrong.append(f"{_name(member)} has room, and what waits for {route.key} is not offered to it")
                    break
    if switch.queues.behind and switch.armed < 0:
        wrong.append(f"{len(switch.queues.behind)} reactors are to be looked at, and nothing says when")


cdef Py_ssize_t _listed(void* first, bint mine):
    cdef Py_ssize_t count = 0
    cdef Flight flight
    while first != NULL and count < 1 << 24:
        flight = <Flight>first
        count += 1
        first = flight.next_mine if mine else flight.next_theirs
    return count


cdef object _name(Member member):
    return f"link {member.number} of {member.principal.name}"


def _check_routes(Switch switch, list wrong):
    """Routes and members know each other."""
    cdef Route route
    cdef Member member
    cdef KeyTable routes = switch.directory.routes
    for route in routes.by_key.values():
        if len(set(map(id, route.members))) != len(route.members):
            wrong.append(f"route {route.key} has a member twice")
        for member in route.members:
            if not _lives(switch, member):
                wrong.append(f"route {route.key} has {_name(member)}, which has gone")
            if route not in member.routes or route.members[member.routes[route]] is not member:
                wrong.append(f"route {route.key} has {_name(member)}, which does not know")
        announced = sum((<Member>one).listed for one in route.members)
        if route.announced != announced:
            wrong.append(f"route {route.key}: {announced} announced it, the count says {route.announced}")
        wrong += audit_queue(route.queue, f"queue of {route.key}")
        if (len(route.queue) > 0) != (route.queued_at >= 0):
            wrong.append(f"route {route.key}: {len(route.queue)} are queued, its place among those with a queue is"
                         f" {route.queued_at}")
        for _, item in _queued(route.queue):
            if not isinstance(item, Flight) or (<Flight>item).home.queue is not route.queue:
                wrong.append(f"the queue of {route.key} has {item!r}")
    for place, route in enumerate(switch.queues.routes):
        if route.queued_at != place:
            wrong.append(f"route {route.key} does not know its place among those with a queue")
        if routes.by_key.get(route.key) is not route:
            wrong.append(f"route {route.key} has a queue and has been forgotten")
    if [one for one in routes.table if one is not None and routes.by_key.get((<Keyed>one).key) is not one] or sum(
            one is not None for one in routes.table) != len(routes.by_key):
        wrong.append("the table of routes and its dictionary do not agree")


def _check_members(Switch switch, list wrong):
    """A member is its engine's, lives, and is where it belongs."""
    cdef Member member
    cdef Engine engine
    cdef Route route
    for engine, member in switch.membership.members.items():
        name = _name(member)
        if member.engine is not engine or engine.member is not member or member.gone:
            wrong.append(f"{name}: it and its engine do not know each other")
        if engine.state != EngineState.OPEN:
            wrong.append(f"{name}: its connection is {engine.state_name}")
        for route in member.routes:
            if member not in route.members or switch.directory.routes.by_key.get(route.key) is not route:
                wrong.append(f"{name} is not among the members of its route {route.key}")
        if (not member.listed and member.asked == Asked.ANSWERED) != (member in switch.newcomers.unlisted):
            wrong.append(f"{name}: announces {'some' if member.listed else 'no'}thing, and is in the other list")
        if (not member.listed and member.asked == Asked.NOT_YET) != (member in switch.newcomers.unasked):
            wrong.append(f"{name}: asked {member.asked}, among those yet to be asked:"
                         f" {member in switch.newcomers.unasked}")
        if (not member.listed and member.asked == Asked.IN_FLIGHT) != (member in switch.newcomers.asked):
            wrong.append(f"{name}: asked {member.asked}, among those asked: {member in switch.newcomers.asked}")
        if member.dirty != any(one is member for one in switch.dirty):
            wrong.append(f"{name} has output, and nobody will flush it")
        if member.queue is not None:
            wrong += audit_queue(member.queue, f"queue of {name}")
            for _, item in _queued(member.queue):
                if not isinstance(item, Flight) or (<Flight>item).home.queue is not member.queue:
                    wrong.append(f"the queue of {name} has {item!r}")
    if len(switch.newcomers.unlisted) + len(switch.newcomers.unasked) + len(switch.newcomers.asked) > sum(
            not (<Member>one).listed for one in switch.membership.members.values()):
        wrong.append("one that has gone, or announces something, is among those that announce nothing")


def _check_pool(Switch switch, list wrong):
    """Flights to be used again have nothing of their last use."""
    cdef Flight flight
    if len(set(map(id, switch.flights.pool))) != len(switch.flights.pool):
        wrong.append("a flight is in the pool twice")
    for flight in switch.flights.pool:
        if (flight.state != FlightState.FREE or flight.held != NULL or flight.entry is not None
                or [one for one in (flight.origin, flight.target, flight.engine, flight.job, flight.principal,
                                    flight.route, flight.home, flight.attached, flight.tried, flight.needs,
                                    flight.own_id, flight.account) if one is not None]):
            wrong.append("a flight in the pool is not free of its last use")


def _check_switch(Switch switch, list wrong):
    """Nothing is left open between two batches."""
    cdef Flight flight
    if switch.in_batch or switch.dirty:
        wrong.append(f"the switch is in a batch, with {len(switch.dirty)} links to flush")
    if switch.idle is not None and switch.table.count == switch.newcomers.question.flights and not switch.idle.done():
        wrong.append("nothing is under way, and who waits for that was not told")
    for flight in _flights(switch):
        if switch.armed < 0 or switch.armed > flight.deadline + (<int64_t>1 << TICK_BITS):
            wrong.append(f"{_label(switch, flight)} is due at {flight.deadline}, the timer is set for {switch.armed}")
            break


# ---------------------------------------------------------------- links


def _check_engine(Engine engine, str name, list wrong):
    """An engine's submits and its peer's packets stand where they say."""
    cdef Reply reply
    cdef Job job
    cdef Py_ssize_t waiting = 0
    cdef HeapEntry entry
    wrong += audit_table(engine.pending, f"{name}, pending")
    wrong += audit_table(engine.inbound, f"{name}, inbound")
    wrong += audit_heap(engine.waiting, f"{name}, waiting")
    wrong += audit_heap(engine.delayed, f"{name}, delayed")
    for _, seq, waiter in _waiters(engine.pending):
        if not isinstance(waiter, Reply):
            wrong.append(f"{name}: seq {seq} waits for {waiter!r}")
            continue
        reply = <Reply>waiter
        if reply.state != ReplyState.PENDING or reply.seq != seq or reply.owner is not engine:
            wrong.append(f"{name}: the submit with seq {seq} has ended, and is waited for")
        if reply.entry is not None:
            waiting += 1
            entry = <HeapEntry>reply.entry
            if entry.home != <void*>engine.waiting and entry.home != <void*>engine.delayed:
                wrong.append(f"{name}: seq {seq} believes to wait, and does not")
    for heap in (engine.waiting, engine.delayed):
        for entry, item in _items(heap):
            if type(item) is not tuple or (<Reply>item[0]).entry is not entry:
                wrong.append(f"{name}: a submit that waits to be sent does not know")
    if waiting != len(engine.waiting) + len(engine.delayed):
        wrong.append(f"{name}: {waiting} submits wait, {len(engine.waiting)} and {len(engine.delayed)} are queued")
    for _, seq, waiter in _waiters(engine.inbound):
        if not isinstance(waiter, Job):
            wrong.append(f"{name}: keeps {waiter!r}")
            continue
        job = <Job>waiter
        if job.engine is not engine or job.number != seq:
            wrong.append(f"{name}: keeps a job for {job.handler.key} that believes to be another's")
        if (job.entry is None) == (not job.suspended):
            wrong.append(f"{name}: a job for {job.handler.key} neither waits nor runs, or does both")
    if engine.state == EngineState.CLOSED and (engine.pending.count or engine.inbound.count):
        wrong.append(f"{name}: closed, with {engine.pending.count} submits and {engine.inbound.count} packets")
    if engine.out.opened >= 0:
        wrong.append(f"{name}: a message is open")
    if not 0 <= engine.out.size <= engine.out.limit:
        wrong.append(f"{name}: {engine.out.size} bytes of output, limit {engine.out.limit}")


def in_flight(Switch switch not None):
    """``{link's engine: (packets routed to it, its gateway's own direct submits, its window, does it bound those)}``.

    Whoever audits after every step sees from two of these whether a packet was
    sent past the window; one that has shrunk meanwhile is no fault. Links that
    announced no window take as many direct submits as come.
    """
    cdef Member member
    cdef dict found = {}
    for member in switch.membership.members.values():
        found[member.engine] = (member.outstanding, member.engine.in_flight, member.window,
                                member.engine.peer_window > 0)
    return found


# ---------------------------------------------------------------- the dispatcher


def _check_dispatcher(Dispatcher dispatcher, list engines, list workers, list wrong):
    """Its counts and lanes are those of the jobs that wait and the handlers that are suspended."""
    cdef Job job
    cdef Lane lane
    cdef Worker worker
    cdef Py_ssize_t cost = 0, queued = 0, running = 0, waiting = 0
    cdef dict busy = {}
    for heap, home, name in (
            *[((<Turn>turn).heap, dispatcher.queue, "dispatcher's queue") for turn in dispatcher.queue.turns.values()],
            *[((<Turn>turn).heap, dispatcher.unbounded_queue, "dispatcher's unbounded queue")
              for turn in dispatcher.unbounded_queue.turns.values()],
            *[((<Share>share).heap, None, "queue of a lane")
              for one in dispatcher.lanes.values() for share in (<Lane>one).queue.order or ()]):
        wrong += audit_heap(heap, name)
        for entry, item in _items(heap):
            job = <Job?>item
            queued += 1
            cost += job.cost
            if job.entry is not entry or job.home is not home:
                wrong.append(f"{name}: a job for {job.handler.key} does not know that it waits there")
            if job.engine.inbound.find_seq(job.number) < 0:
                wrong.append(f"{name}: a job for {job.handler.key} that nobody keeps")
            if job.lane is not None and home is not None:
                busy[job.lane] = busy.get(job.lane, 0) + 1
    for worker in workers:
        job = worker.job
        if job is None:
            continue
        if job.worker is not worker or job.entry is not None or not job.suspended \
                or job not in dispatcher.suspended_jobs:
            wrong.append(f"a handler for {job.handler.key} is suspended, and its job does not know")
        if job.handler.unbounded:
            waiting += 1
        else:
            running += 1
        if job.lane is not None:
            busy[job.lane] = busy.get(job.lane, 0) + 1
    if (queued, cost) != (dispatcher.queued_jobs, dispatcher.queue_bytes):
        wrong.append(f"dispatcher: {queued} jobs of {cost} bytes wait, the counts say {dispatcher.queued_jobs}"
                     f" and {dispatcher.queue_bytes}")
    if (running, waiting) != (dispatcher.running, dispatcher.waiting):
        wrong.append(f"dispatcher: {running} handlers run and {waiting} wait, the counts say {dispatcher.running}"
                     f" and {dispatcher.waiting}")
    for key, lane in dispatcher.lanes.items():
        wrong += audit_queue(lane.queue, "queue of a lane")
        if lane.key != key or lane.busy != busy.get(lane, 0):
            wrong.append(f"dispatcher: a lane has {busy.get(lane, 0)} in it, its count says {lane.busy}")
        if lane.busy <= 0 or (len(lane.queue) > 0 and lane.busy < lane.limit):
            wrong.append(f"dispatcher: {len(lane.queue)} wait for a lane that has {lane.busy} of {lane.limit}")
    for lane in busy:
        if dispatcher.lanes.get(lane.key) is not lane:
            wrong.append("dispatcher: a job is in a lane that was given up")
    _check_fair(dispatcher.queue, "dispatcher's queue", wrong)
    _check_fair(dispatcher.unbounded_queue, "dispatcher's unbounded queue", wrong)
    if len(dispatcher.suspended_jobs) != running + waiting:
        wrong.append(f"dispatcher: {len(dispatcher.suspended_jobs)} jobs are suspended,"
                     f" {running + waiting} handlers are")
    if dispatcher.active:
        wrong.append("dispatcher: a handler's task is the present one, and none is called")
    if dispatcher.loop is not None and not dispatcher.scheduled and (
            len(dispatcher.unbounded_queue) > 0
            or dispatcher.running - dispatcher.events < dispatcher.concurrency and len(dispatcher.queue) > 0
            and not dispatcher.blocked):
        wrong.append("dispatcher: jobs could start, and nobody will look")
    for worker in dispatcher.parked:
        if worker.job is not None or worker.inner is not None or worker.retired:
            wrong.append("dispatcher: a parked worker is not free")
    if len(set(map(id, dispatcher.parked))) != len(dispatcher.parked):
        wrong.append("dispatcher: a worker is parked twice")


def _check_fair(FairQueue queue, str name, list wrong):
    """Each account that has something queued stands there once, and the count is theirs."""
    cdef Turn turn
    cdef Py_ssize_t count = 0
    for turn in queue.turns.values():
        count += turn.heap.live()
        if (turn.ring.order[turn.place] is not turn or queue.turns.get(turn.account) is not turn
                or turn.heap.live() == 0):
            wrong.append(f"{name}: the turn of {turn.account!r} is out of place, or has nothing")
    if count != queue.count or len(queue.quick.order) + len(queue.slow.order) != len(queue.turns):
        wrong.append(f"{name}: {count} items of {len(queue.turns)} accounts, the count says {queue.count}")


# ---------------------------------------------------------------- accounts


def _check_accounts(list accounts, list wrong):
    """Nobody owes bytes, and a budget has what its accounts have."""
    cdef Account account
    cdef Budget budget
    cdef dict sums = {}, littles = {}
    for account in accounts:
        if account.held < 0:
            wrong.append(f"{account!r} holds {account.held} bytes")
        if min(account.flights, account.queued, account.jobs, account.waits, account.runs) < 0:
            wrong.append(f"{account!r}: {account.flights} flights, {account.queued} of them queued,"
                         f" {account.jobs} jobs, {account.waits} wait, {account.runs} run")
        if account.budget is not None:
            sums[account.budget] = sums.get(account.budget, 0) + account.held
            littles[account.budget] = littles.get(account.budget, 0) + (account.held if account.held <= LITTLE else 0)
    for budget, total in sums.items():
        if budget.held < total:
            wrong.append(f"{budget!r}: its accounts hold {total} bytes")
        if not littles[budget] <= budget.little <= budget.held:
            wrong.append(f"{budget!r}: {littles[budget]} are held by those who hold little, it says {budget.little}")


# ---------------------------------------------------------------- all of it


cdef Py_ssize_t _questions(Switch switch, Account account):
    """What a link is asked belongs to nobody's packets, and ends by itself."""
    cdef Flight flight
    cdef Py_ssize_t count = 0
    for flight in _flights(switch):
        if flight.route is switch.newcomers.question and flight.account is account:
            count += 1
    return count


cdef int64_t _announced(Switch switch, Account account):
    """Bytes that it is charged with for what its links have announced: as long as they live."""
    cdef Route route
    cdef Member member
    cdef int64_t found = 0
    for route in switch.directory.routes.by_key.values():
        if route.owner is account:
            found += ROUTE_BYTES
        for member in route.members:
            if member.listed and member.account is account:
                found += ANNOUNCED_BYTES
    return found


def _check_rest(Switch switch, list engines, list accounts, list wrong):
    """Everything has ended: nothing is left anywhere."""
    cdef Dispatcher dispatcher = switch.dispatcher
    cdef Engine engine
    cdef Account account
    cdef Flight flight
    for flight in _flights(switch):
        if flight.route is not switch.newcomers.question:
            wrong.append(f"{_label(switch, flight)} is left")
    for name, left in (("renamed ids", switch.flights.renamed), ("needs", switch.dependencies.awaited),
                       ("routes with a queue", switch.queues.routes), ("lanes", dispatcher.lanes)):
        if left:
            wrong.append(f"{len(left)} {name} are left")
    for name, number in (("bytes of payloads", switch.kept.bytes), ("queued flights", switch.queues.count),
                         ("running handlers", dispatcher.running), ("waiting handlers", dispatcher.waiting),
                         ("queued jobs", dispatcher.queued_jobs), ("bytes of queued jobs", dispatcher.queue_bytes)):
        if number:
            wrong.append(f"{number} {name} are left")
    for engine in engines:
        if engine.pending.count or engine.inbound.count:
            wrong.append(f"a link has {engine.pending.count} submits and {engine.inbound.count} packets left")
    for account in accounts:
        if (account.flights > _questions(switch, account) or account.queued or account.jobs or account.waits
                or account.runs):
            wrong.append(f"{account.name} has {account.flights} flights, {account.queued} queued, {account.jobs} jobs,"
                         f" {account.waits} waiting and {account.runs} running still")
        if account.held != _announced(switch, account):
            wrong.append(f"{account.held} bytes are held for {account.name} still,"
                         f" {_announced(switch, account)} of them for what it announces")


def audit(Switch switch not None, *, engines=(), tasks=(), accounts=(), bint at_rest=False):
    """What is wrong in a switch, its dispatcher and its links: sentences, none where all is well.

    `engines`: further engines, beside those of the switch's links (the near
    sides of loopbacks). `tasks`: the event loop's tasks, so that suspended
    handlers are found. `accounts`: further accounts, beside those of the links.
    `at_rest`: everything has ended, so nothing may be left either.
    """
    cdef list wrong = []
    cdef Member member
    cdef list everyone = list(dict.fromkeys([*switch.membership.members, *engines]))
    cdef list workers = [coro for coro in [task.get_coro() for task in tasks] if isinstance(coro, Worker)]
    cdef list all_accounts
    cdef dict known = {}
    for member in switch.membership.members.values():
        known[id(member.account)] = member.account
    for account in accounts:
        known[id(account)] = account
    all_accounts = list(known.values())
    wrong += audit_table(switch.table, "flights")
    if wrong:
        return wrong  # the rest reads the table
    _check_flights(switch, wrong)
    _check_awaited(switch, wrong)
    _check_counts(switch, wrong)
    _check_room(switch, wrong)
    _check_routes(switch, wrong)
    _check_members(switch, wrong)
    _check_pool(switch, wrong)
    _check_switch(switch, wrong)
    for ledger in switch.outcomes.ledgers:
        wrong += audit_ledger(ledger)
    for place, engine in enumerate(everyone):
        member = <Member>(<Engine?>engine).member
        _check_engine(engine, f"engine {place}" if member is None else _name(member), wrong)
    if tasks or switch.dispatcher.loop is None:
        _check_dispatcher(switch.dispatcher, everyone, workers, wrong)
    _check_accounts(all_accounts, wrong)
    if at_rest:
        _check_rest(switch, everyone, all_accounts, wrong)
    return wrong
