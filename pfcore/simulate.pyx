"""Drives an engine as its link does, without a socket and by any clock: for simulations and tests."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from pfcore.link.engine cimport Engine
from pfcore.link.reply cimport Want
from pfcore.wire.packets cimport Packet, check_timeout, packet_address, packet_from
from pfcore.wire.writer cimport encode_extra

__all__ = ["advance", "deliver", "next_wake", "pause", "receive_message", "submit_packet", "take_output"]


def submit_packet(Engine engine not None, packet, int64_t now, *, int retry=0):
    """Submits a `Packet` or mapping; returns the `Reply` (of a `Result`). `retry`: how often it may be sent again."""
    cdef Packet checked = packet_from(packet)
    engine.now = now
    return engine.submit(
        packet_address(checked), checked.data, checked.priority, check_timeout(checked.timeout_ms),
        checked.id.encode(), encode_extra(checked, engine.max_depth, retry), Want.WANT_RESULT, now, retry)


def receive_message(Engine engine not None, bytes message not None, int64_t now):
    """One whole message as the peer sent it, and the end of a batch."""
    engine.in_batch = True
    try:
        if engine.sink is not None:
            engine.sink.begin_batch(now)
        engine.receive(<const unsigned char*>PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message), now)
        if engine.sink is not None:
            engine.sink.end_batch()
        _finish(engine, now)
    finally:
        engine.in_batch = False


def deliver(Engine engine not None, messages, int64_t now):
    """Messages that arrived together: one batch, ended whatever a message raises. Raises what one raised."""
    cdef bytes message
    engine.in_batch = True
    engine.now = now
    if engine.sink is not None:
        engine.sink.begin_batch(now)
    try:
        for message in messages:
            engine.receive(<const unsigned char*>PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message), now)
    finally:
        try:
            if engine.sink is not None:
                engine.sink.end_batch()
            _finish(engine, now)
        finally:
            engine.in_batch = False


def advance(Engine engine not None, int64_t now):
    """Does what is due at `now`."""
    engine.in_batch = True
    try:
        engine.tick(now)
        _finish(engine, now)
    finally:
        engine.in_batch = False


def next_wake(Engine engine not None):
    """When `advance` is due, in ns; None: never."""
    cdef int64_t when = engine.wake_at()
    return None if when < 0 else when


def take_output(Engine engine not None):
    """All framed bytes that are ready to be written; the buffer is empty afterwards."""
    engine.sent_since_wake = False
    return engine.out.take()


def pause(Engine engine not None, bint paused):
    """The transport takes no more for now, or again."""
    engine.paused = paused


cdef int _finish(Engine engine, int64_t now) except -1:
    while engine.fire_ready():
        pass
    return engine.pump(now)
