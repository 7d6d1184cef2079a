"""One connection's rules in simulated time: no sockets, no clock, no loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import packetflow
from packetflow.conformance.wire import messages, split
from pfcore.errors import PacketFlowError
from pfcore.link.engine import Engine
from pfcore.simulate import advance, next_wake, pause, receive_message, submit_packet, take_output
from pfcore.wire.frames import encode_message
from pfcore.wire.packets import Packet
from pfcore.work.dispatch import Dispatcher
from pfcore.work.handler import Handler

S = 1_000_000_000
MS = 1_000_000
START = 1_000 * S


def engine(**settings: Any) -> Engine:
    """A connected engine whose opening heartbeat was taken."""
    made = Engine(client=True, now=START, **settings)
    made.connected(START)
    take_output(made)
    return made


def packet(data: Any = None, **options: Any) -> Packet:
    return Packet("df", "x", data, **options)


def sent(side: Engine) -> list[dict[str, Any]]:
    return messages(take_output(side))


def result(message: dict[str, Any], data: Any = "done", **changes: Any) -> bytes:
    """What a peer answers to one of our submits."""
    payload = {"packet_id": message["payload"]["id"], "status": "success", "data": data, "duration_ms": 1}
    seq = changes.pop("seq", message["seq"])
    return json.dumps({"type": "result", "seq": seq, "payload": payload | changes}).encode()


def handling(*handlers: tuple[str, Callable[[Any], Any]], **settings: Any) -> Engine:
    dispatcher = Dispatcher()
    for element, function in handlers:
        dispatcher.register(Handler("df", element, function))
    dispatcher.start(None)
    return engine(sink=dispatcher, **settings)


# -- opening


def test_a_heartbeat_goes_out_at_once_and_every_thirty_seconds() -> None:
    side = Engine(client=True, name="me", window=7, now=START)
    side.wall_offset = 1_700_000_000_000 * MS - START
    assert side.state_name == "offline"
    side.connected(START)
    (first,) = sent(side)
    assert first["type"] == "heartbeat"
    assert first["payload"] == {"timestamp": 1_700_000_000_000, "reactor": "me", "window": 7, "load": 0,
                                "ext": ["cancel"]}  # fmt: skip
    assert next_wake(side) == START + 20 * S  # the silence comes first
    for beat in range(1, 4):
        side.heard(START + beat * 30 * S - 1)
        advance(side, START + beat * 30 * S - 1)
        assert sent(side) == []
        advance(side, START + beat * 30 * S)
        assert [message["type"] for message in sent(side)] == ["heartbeat"]


def test_a_change_of_handlers_is_announced_at_once() -> None:
    side = engine()
    side.announce(["df:a", "df:b"])
    assert sent(side)[0]["payload"]["capabilities"] == ["df:a", "df:b"]


def test_more_than_a_heartbeat_may_list_is_refused_before_it_is_sent() -> None:
    side = engine()
    side.announce(f"df:e{n}" for n in range(1024))
    with pytest.raises(ValueError, match="at most 1,024"):
        side.announce(f"df:e{n}" for n in range(1025))
    assert len(sent(side)) == 1


def test_the_secret_of_an_instance_goes_with_the_name_over_every_connection() -> None:
    side, other = engine(name="me", instance="secret"), engine()
    for _ in range(2):
        side.disconnected("lost", START)
        side.connected(START)
        (beat,) = sent(side)
        assert (beat["payload"]["reactor"], beat["payload"]["instance"]) == ("me", "secret")
        receive_message(other, json.dumps(beat).encode(), START)
        assert (other.peer_name, other.peer_instance) == ("me", "secret")
        other.disconnected("lost", START)
        other.connected(START)
        assert (other.peer_name, other.peer_instance) == (None, None)
    nameless = engine(instance="secret")
    nameless.announce([])
    assert all("instance" not in message["payload"] for message in sent(nameless))


def test_thousands_that_a_connection_leaves_end_so_many_at_a_time() -> None:
    side = engine()
    replies = [submit_packet(side, packet(n), START) for n in range(1200)]
    assert not side.close("PF502", "gone", all=False)
    assert 0 < sum(reply.done() for reply in replies) < 600
    assert not side.close("PF502", "gone", all=False)
    assert side.close("PF502", "gone", all=False)
    assert all(reply.done() for reply in replies)
    other = engine()
    replies = [submit_packet(other, packet(n), START) for n in range(1200)]
    assert other.close("PF502", "gone")
    assert all(reply.done() for reply in replies)


@pytest.mark.parametrize("setting", ["name", "instance"])
def test_names_that_every_heartbeat_would_be_refused_for(setting: str) -> None:
    for bad in ("", "x" * 129, "\n", "\x7f", "\x9b", "\ud800"):
        with pytest.raises(ValueError, match=f"{setting}: expected 1 to"):
            Engine(client=True, **{setting: bad})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=setting):
        Engine(client=True, **{setting: 5})  # type: ignore[arg-type]


def test_states_change_only_as_drawn() -> None:
    side = engine()
    with pytest.raises(RuntimeError, match="expected an offline engine, it is open"):
        side.connected(START)
    side.close("PF503", "over")
    assert side.state_name == "closed"
    with pytest.raises(RuntimeError, match="it is closed"):
        side.connected(START)
    with pytest.raises(ConnectionError):
        submit_packet(side, packet(), START)


# -- submits and their answers


def test_a_submit_goes_out_masked_and_its_answer_ends_it() -> None:
    side = engine()
    reply = submit_packet(side, packet("hello"), START)
    output = take_output(side)
    assert output[1] & 0x80
    (message,) = messages(output)
    assert message["type"] == "submit"
    assert message["payload"]["data"] == "hello"
    assert not reply.done()
    receive_message(side, result(message), START + 5)
    assert reply.result().data == "done"
    assert (side.submitted, side.answered, side.in_flight) == (1, 1, 0)


def test_a_server_does_not_mask() -> None:
    side = Engine(client=False, now=START)
    side.connected(START)
    assert take_output(side)[1] & 0x80 == 0


@pytest.mark.parametrize("seq", [0, 999, 2**53 - 1])
def test_an_answer_with_another_seq_is_matched_by_its_packet_id(seq: int) -> None:
    side = engine()
    reply = submit_packet(side, packet(), START)
    (message,) = sent(side)
    receive_message(side, result(message, seq=seq), START)
    assert reply.result().ok


def test_an_answer_with_the_seq_of_another_packet_goes_where_its_id_says() -> None:
    side = engine()
    first, second = (submit_packet(side, packet(), START) for _ in range(2))
    one, two = sent(side)
    receive_message(side, result(two, "two", seq=one["seq"]), START)
    assert second.result().data == "two"
    assert not first.done()


def test_repeated_late_and_unasked_answers_are_dropped_and_counted() -> None:
    side = engine()
    reply = submit_packet(side, packet(), START)
    (message,) = sent(side)
    receive_message(side, result(message, "first"), START)
    receive_message(side, result(message, "second"), START)
    receive_message(side, result(message, packet_id="nobody"), START)
    receive_message(side, b'{"type":"error","seq":77,"payload":{"code":"PF400","message":"x"}}', START)
    assert reply.result().data == "first"
    assert side.unasked == 3
    assert sent(side) == []


@pytest.mark.parametrize("changes", [{"status": "maybe"}, {"packet_id": None}, {"error": 5}, {"duration_ms": "x"}])
def test_a_malformed_answer_fails_the_submit_with_pf502(changes: dict[str, Any]) -> None:
    side = engine()
    reply = submit_packet(side, packet(), START)
    (message,) = sent(side)
    receive_message(side, result(message, **changes), START)
    with pytest.raises(ConnectionError, match="malformed") as caught:
        reply.result()
    assert caught.value.code == "PF502"  # type: ignore[attr-defined]


def test_an_error_frame_for_a_pending_seq_fails_that_submit() -> None:
    side = engine()
    reply = submit_packet(side, packet(), START)
    (message,) = sent(side)
    frame = {"type": "error", "seq": message["seq"],
             "payload": {"code": "PF413", "message": "no", "details": {"a": 1}}}  # fmt: skip
    receive_message(side, json.dumps(frame).encode(), START)
    error = reply.exception()
    assert isinstance(error, packetflow.TooLarge)
    assert (error.message, error.details) == ("no", {"a": 1})


def test_an_error_frame_that_names_another_packet_fails_nothing() -> None:
    side = engine()
    reply = submit_packet(side, packet(), START)
    (message,) = sent(side)
    frame = {"type": "error", "seq": message["seq"], "payload": {"code": "PF400", "packet_id": "other"}}
    receive_message(side, json.dumps(frame).encode(), START)
    assert not reply.done()
    assert side.unasked == 1


def test_two_packets_of_one_id_are_not_in_flight_together() -> None:
    side = engine()
    submit_packet(side, packet(id="same"), START)
    with pytest.raises(packetflow.Conflict, match="'same' is already in flight"):
        submit_packet(side, packet(id="same"), START)


def test_a_packet_too_large_is_refused_before_it_is_sent() -> None:
    side = engine(max_frame=1024)
    with pytest.raises(packetflow.TooLarge, match="the most is 1024"):
        submit_packet(side, packet("x" * 1024), START)
    assert (sent(side), side.in_flight) == ([], 0)
    submit_packet(side, packet("x" * 700), START)
    assert len(sent(side)) == 1


def test_unanswered_submits_are_bounded() -> None:
    side = engine(max_pending=3)
    for _ in range(3):
        submit_packet(side, packet(), START)
    with pytest.raises(packetflow.Overloaded) as caught:
        submit_packet(side, packet(), START)
    assert caught.value.details == {"retry_after_ms": 100}


# -- deadlines


@pytest.mark.parametrize(("timeout_ms", "gives_up"), [(None, 30_500), (1, 1001), (300_000, 301_000)])
def test_the_submitter_gives_up_one_second_after_the_deadline(timeout_ms: int | None, gives_up: int) -> None:
    side = engine(heartbeat=1e6, silence=1e6)
    reply = submit_packet(side, packet(timeout_ms=timeout_ms), START)
    advance(side, START + gives_up * MS - 1)
    assert not reply.done()
    advance(side, START + gives_up * MS + 5 * MS)
    error = reply.exception()
    assert isinstance(error, TimeoutError)
    assert "no answer" in str(error)
    assert side.in_flight == 0


def test_the_engine_asks_to_be_woken_for_the_earliest_deadline() -> None:
    side = engine(heartbeat=1e6, silence=1e6)
    submit_packet(side, packet(timeout_ms=60_000), START)
    submit_packet(side, packet(timeout_ms=500), START)
    wakes = []
    while not wakes or wakes[-1] < START + 1500 * MS:
        wake = next_wake(side)  # may come early, to look again, but not often, and never late
        assert wake is not None
        advance(side, wake)
        wakes.append(wake)
    assert wakes[-1] <= START + 1505 * MS
    assert len(wakes) < 8
    assert side.in_flight == 1


# -- room: the peer's window, the transport, the connection


def window_of(side: Engine, window: int) -> None:
    receive_message(side, encode_message("heartbeat", 1, {"timestamp": 1, "window": window}), START)


def test_the_peers_window_is_honoured_and_the_most_urgent_go_first() -> None:
    side = engine()
    window_of(side, 2)
    replies = [submit_packet(side, packet(n, priority=n), START) for n in (1, 2, 3, 9, 5)]
    first = sent(side)
    assert [message["payload"]["data"] for message in first] == [1, 2]
    assert (side.in_flight, side.queued) == (2, 3)
    receive_message(side, result(first[0]), START)
    assert [message["payload"]["data"] for message in sent(side)] == [9]
    receive_message(side, result(first[1]), START)
    assert [message["payload"]["data"] for message in sent(side)] == [5]
    assert [reply.done() for reply in replies] == [True, True, False, False, False]


def test_a_paused_transport_holds_submits_back() -> None:
    side = engine()
    pause(side, True)
    reply = submit_packet(side, packet(), START)
    assert sent(side) == []
    pause(side, False)
    advance(side, START + 1)
    (message,) = sent(side)
    receive_message(side, result(message), START)
    assert reply.result().ok


def test_offline_submits_wait_for_the_connection() -> None:
    side = Engine(client=True, now=START)
    reply = submit_packet(side, packet("early"), START)
    assert take_output(side) == b""
    side.connected(START + S)
    beat, message = sent(side)
    assert beat["type"] == "heartbeat"
    assert message["payload"]["data"] == "early"
    receive_message(side, result(message), START + S)
    assert reply.result().ok


def test_a_submit_that_was_never_sent_says_so_at_its_deadline() -> None:
    side = Engine(client=True, now=START)
    reply = submit_packet(side, packet(timeout_ms=100), START)
    advance(side, START + 1200 * MS)
    with pytest.raises(packetflow.PacketTimeout, match="never sent"):
        reply.result()
    assert side.queued == 0


def test_a_reactors_thousands_end_with_its_connection_and_are_sent_again_where_they_may() -> None:
    """It has handlers, as a gateway's link has; but it comes back, perhaps before it has had another turn."""
    handlers = Dispatcher()
    handlers.start(None)
    engine = Engine(client=True, now=0, sink=handlers)
    engine.connected(0)
    take_output(engine)
    plain = [submit_packet(engine, Packet("df", "x", n), 0) for n in range(1500)]
    again = [submit_packet(engine, Packet("df", "x", n), 0, retry=3) for n in range(100)]
    take_output(engine)
    engine.disconnected("lost", 1)
    assert [reply.done() for reply in plain] == [True] * 1500
    assert (engine.in_flight, engine.queued) == (0, 100)
    engine.connected(2)
    assert (engine.in_flight, engine.queued) == (100, 0)
    assert not any(reply.done() for reply in again)


def test_a_lost_connection_fails_what_was_sent_and_keeps_what_waits() -> None:
    side = engine()
    window_of(side, 1)
    lost = submit_packet(side, packet("sent"), START)
    waits = submit_packet(side, packet("waits"), START)
    sent(side)
    side.disconnected("the wire was cut", START)
    with pytest.raises(packetflow.ConnectionLost, match="the wire was cut"):
        lost.result()
    assert not waits.done()
    side.connected(START + S)
    assert [message["payload"].get("data") for message in sent(side)] == [None, "waits"]


def test_closing_for_good_fails_everything() -> None:
    side = engine()
    window_of(side, 1)
    replies = [submit_packet(side, packet(), START) for _ in range(3)]
    side.close("PF503", "stopping")
    assert all(isinstance(reply.exception(), packetflow.Unavailable) for reply in replies)
    assert (side.in_flight, side.queued) == (0, 0)


# -- cancelling


def test_cancelling_tells_a_peer_that_understands_and_only_such_a_peer() -> None:
    side = engine()
    plain = submit_packet(side, packet(), START)
    sent(side)

    class Loop:
        def call_soon(self, *args: Any, **options: Any) -> None: ...

    assert plain.cancel()
    assert not plain.cancel()
    assert sent(side) == []
    receive_message(side, encode_message("heartbeat", 1, {"ext": ["cancel"]}), START)
    told = submit_packet(side, packet(), START)
    (message,) = sent(side)
    told.cancel()
    (frame,) = sent(side)
    assert (frame["type"], frame["seq"]) == ("error", message["seq"])
    assert frame["payload"]["code"] == "PF499"
    assert frame["payload"]["packet_id"] == message["payload"]["id"]
    assert side.in_flight == 0
    receive_message(side, result(message), START)
    assert side.unasked == 1


def test_cancelling_what_waits_takes_it_out_of_the_queue() -> None:
    side = engine()
    window_of(side, 1)
    submit_packet(side, packet(1), START)
    waiting = submit_packet(side, packet(2), START)
    submit_packet(side, packet(3), START)
    (first,) = sent(side)
    waiting.cancel()
    assert side.queued == 1
    receive_message(side, result(first), START)
    assert [message["payload"]["data"] for message in sent(side)] == [3]


# -- handling


def submit(data: Any, element: str = "echo", seq: int = 1, **options: Any) -> bytes:
    return encode_message("submit", seq, Packet("df", element, data, **options))


def test_a_packet_is_handled_and_answered_with_its_seq() -> None:
    side = handling(("echo", lambda data: data))
    receive_message(side, submit({"a": [1]}, seq=41, id="p"), START)
    (answer,) = sent(side)
    assert (answer["type"], answer["seq"]) == ("result", 41)
    assert answer["payload"]["packet_id"] == "p"
    assert answer["payload"]["status"] == "success"
    assert answer["payload"]["data"] == {"a": [1]}
    assert answer["payload"]["duration_ms"] >= 0
    assert side.handled == 1


def fail(data: Any) -> None:
    raise ValueError("no good")


def refuse(data: Any) -> None:
    raise packetflow.Forbidden("not you", details={"who": data})


@pytest.mark.parametrize(
    ("element", "function", "error"),
    [
        ("fail", fail, {"code": "PF500", "message": "no good"}),
        ("refuse", refuse, {"code": "PF403", "message": "not you", "details": {"who": 1}}),
        ("nan", lambda data: float("nan"), {"code": "PF500", "message": "result: expected a finite number, found nan"}),
        ("surrogate", lambda data: "\ud800",
         {"code": "PF500", "message": "result: expected text without lone surrogates"}),
    ],
)  # fmt: skip
def test_a_handler_that_fails_is_answered_with_its_error(element: str, function: Any, error: Any) -> None:
    side = handling((element, function))
    receive_message(side, submit(1, element), START)
    (answer,) = sent(side)
    assert answer["payload"]["status"] == "error"
    assert answer["payload"]["error"] == error


def test_a_result_too_large_is_not_said_to_have_never_run() -> None:
    side = handling(("big", lambda data: "x" * data), max_frame=2048)
    receive_message(side, submit(3000, "big"), START)
    receive_message(side, submit(100_000_000, "big", 2), START)
    receive_message(side, submit(5, "big", 3), START)
    errors = [answer["payload"].get("error", {}) for answer in sent(side)]
    assert [error.get("code") for error in errors] == ["PF500", "PF500", None]
    assert [error.get("details") for error in errors] == [{"code": "PF413"}, {"code": "PF413"}, None]


def test_no_handler_is_pf001() -> None:
    side = handling(("echo", lambda data: data))
    receive_message(side, submit(1, "other"), START)
    assert sent(side)[0]["payload"]["error"] == {"code": "PF001", "message": "no handler for df:other"}
    bare = engine()
    receive_message(bare, submit(1), START)
    assert sent(bare)[0]["payload"]["error"]["code"] == "PF001"


def test_an_error_message_that_json_cannot_hold_is_mended() -> None:
    def bad(data: Any) -> None:
        raise ValueError("\ud800 broken " + "x" * 5000)

    side = handling(("bad", bad), max_frame=2048)
    receive_message(side, submit(1, "bad"), START)
    (answer,) = sent(side)
    assert answer["payload"]["error"]["message"].startswith("? broken xxx")


# -- bad input


@pytest.mark.parametrize(
    ("frame", "seq"),
    [(b"{", 0), (b"[]", 0), (b'{"type":"x","seq":9,"payload":{}}', 9), (b'{"type":"heartbeat","seq":3,"payload":5}', 3),
     (b'{"type":"submit","seq":4,"payload":{}}', 4), (b"\xff", 0)],
)  # fmt: skip
def test_a_bad_frame_without_a_packet_is_refused_with_an_error_frame(frame: bytes, seq: int) -> None:
    side = engine()
    receive_message(side, frame, START)
    (answer,) = sent(side)
    assert (answer["type"], answer["seq"], answer["payload"]["code"]) == ("error", seq, "PF400")
    assert answer["payload"]["message"]
    assert side.refused == 1
    assert not side.fatal


def test_a_bad_packet_is_refused_with_a_result() -> None:
    side = engine()
    frame = submit(1, seq=6, id="p").replace(b'"priority":5', b'"priority":50')
    receive_message(side, frame, START)
    (answer,) = sent(side)
    assert (answer["type"], answer["seq"], answer["payload"]["packet_id"]) == ("result", 6, "p")
    assert answer["payload"]["error"]["code"] == "PF400"
    assert "priority" in answer["payload"]["error"]["message"]


def test_a_version_we_do_not_speak_is_pf426() -> None:
    side = engine()
    receive_message(side, submit(1, id="p").replace(b'"1.0"', b'"2.0"'), START)
    assert sent(side)[0]["payload"]["error"]["code"] == "PF426"


def test_a_frame_too_large_is_pf413_and_the_connection_stays() -> None:
    side = handling(("echo", lambda data: data), max_frame=1024)
    receive_message(side, submit("x" * 2000, id="p"), START)
    receive_message(side, submit("x", id="q"), START)
    big, small = sent(side)
    assert big["payload"]["error"]["code"] == "PF413"
    assert small["payload"]["status"] == "success"


def test_an_invalid_error_frame_is_not_answered() -> None:
    side = engine()
    receive_message(side, b'{"type":"error","seq":1,"payload":{"code":5}}', START)
    assert sent(side) == []


def test_a_flood_of_garbage_ends_the_connection() -> None:
    side = engine()
    for _ in range(100):
        receive_message(side, b"garbage", START)
    assert not side.fatal
    receive_message(side, b"garbage", START)
    assert side.fatal == 1008
    assert "100 invalid frames" in side.fatal_reason
    take_output(side)
    receive_message(side, b"garbage", START)
    assert take_output(side) == b""


def test_a_bad_frame_now_and_then_does_not() -> None:
    side = engine()
    for minute in range(300):
        receive_message(side, b"garbage", START + minute * 30 * S)
        advance(side, START + minute * 30 * S)
    assert not side.fatal


# -- life and death


def test_silence_is_pinged_after_twenty_seconds_and_fatal_after_forty() -> None:
    side = engine(heartbeat=1e6)
    advance(side, START + 20 * S - 1)
    assert take_output(side) == b""
    advance(side, START + 20 * S)
    assert split(take_output(side)) == [(9, b"")]
    advance(side, START + 40 * S - 1)
    assert not side.fatal
    advance(side, START + 40 * S)
    assert side.fatal == 1001
    assert "no sign of life from the peer for 40 s" in side.fatal_reason


def test_any_byte_is_life() -> None:
    side = engine(heartbeat=1e6)
    advance(side, START + 20 * S)
    take_output(side)
    side.heard(START + 39 * S)
    advance(side, START + 58 * S)
    assert not side.fatal
    assert take_output(side) == b""
    receive_message(side, encode_message("heartbeat", 1, {}), START + 58 * S)
    advance(side, START + 77 * S)
    assert take_output(side) == b""


def test_a_peer_that_takes_no_output_is_fatal_at_the_bound() -> None:
    side = handling(("echo", lambda data: data), max_frame=1024, max_buffer=8192)
    for number in range(1, 100):
        receive_message(side, submit("x" * 500, seq=number), START)
        if side.fatal:
            break
    assert side.fatal == 1008
    assert "does not read" in side.fatal_reason
    assert len(take_output(side)) <= 8192


@pytest.mark.parametrize(
    "settings",
    [{"max_frame": 10}, {"window": 0}, {"heartbeat": 0}, {"silence": -1}, {"max_buffer": 1024}, {"max_depth": 1},
     {"max_pending": 0}],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Engine(client=True, **settings)


def test_every_error_of_the_protocol_is_a_packetflow_error() -> None:
    for name in packetflow.__all__:
        value = getattr(packetflow, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, PacketFlowError)


# -- what is odd and must not matter


@pytest.mark.parametrize("window", [0, -1, (1 << 24) + 1])
def test_a_window_that_nobody_could_keep_to_is_refused(window: int) -> None:
    side = engine()
    with pytest.raises(ValueError, match="window: expected 1 to 2"):
        side.set_window(window)
    assert (side.window, side.handling) == (4096, 0)
    assert sent(side) == []


def _refused(side: Engine) -> None:
    for n in range(1, 100):
        receive_message(side, submit(1, "nobody", seq=n), START)


def _waited(side: Engine) -> None:
    pause(side, True)
    for n in range(100):
        submit_packet(side, packet(f"{n}" * 100), START)
    pause(side, False)
    window_of(side, 4096)


def _cancelled(side: Engine) -> None:
    receive_message(side, encode_message("heartbeat", 1, {"ext": ["cancel"]}), START)
    replies = [submit_packet(side, packet(1), START) for _ in range(50)]
    for reply in replies:
        reply.cancel()


def _lived(side: Engine) -> None:
    for n in range(1, 200):
        now = START + 15 * n * S
        receive_message(side, encode_message("heartbeat", n, {}), now)
        advance(side, now)


@pytest.mark.parametrize("write", [_refused, _waited, _cancelled, _lived])
def test_output_of_any_kind_is_bounded(write: Callable[[Engine], None]) -> None:
    class Loop:
        def call_soon(self, *args: Any, **options: Any) -> None: ...

    side = handling(("echo", lambda data: data), max_frame=1024, max_buffer=8192, loop=Loop())
    write(side)
    assert side.fatal == 1008
    assert "does not read" in side.fatal_reason
    assert len(take_output(side)) <= 8192


def test_a_failure_too_long_for_a_frame_is_said_shortly() -> None:
    def lengthy(data: Any) -> None:
        raise packetflow.HandlerError("\x01" * 900)

    side = handling(("echo", lengthy), max_frame=1024)
    receive_message(side, submit(1, id="\x7f" * 128), START)
    (answer,) = sent(side)
    assert answer["payload"]["error"] == {
        "code": "PF500", "message": "the packet failed; the message is too long for a frame"}  # fmt: skip
