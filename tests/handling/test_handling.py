"""What a handler's signature promises is checked when it is registered, and kept when it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import operator
import os
import threading
from collections.abc import Awaitable
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

import packetflow
from packetflow import Gateway, InvalidPacket, Packet, Reactor
from packetflow.handling.offload import _Threads


class User(msgspec.Struct):
    name: str
    age: Annotated[int, msgspec.Meta(ge=0)] = 0


@dataclasses.dataclass
class Order:
    user: User
    items: list[int]


class Point(TypedDict):
    x: float
    y: float


@pytest.fixture
def gateway() -> Gateway:
    return Gateway("ws://127.0.0.1:0/packetflow/v1")


async def test_data_is_decoded_into_the_annotated_type(gateway: Gateway, reactor: Reactor) -> None:
    @gateway.register("df", "order")
    async def order(data: Order) -> Any:
        assert isinstance(data, Order) and isinstance(data.user, User)
        return {"name": data.user.name, "sum": sum(data.items)}

    answer = await reactor.call("df", "order", {"user": {"name": "Ada", "age": 36}, "items": [1, 2]})
    assert answer == {"name": "Ada", "sum": 3}
    assert await reactor.call("df", "order", Order(User("Bob"), [5])) == {"name": "Bob", "sum": 5}


@pytest.mark.parametrize(
    ("data", "path"),
    [({"user": {"name": 5}, "items": []}, "$.user.name"), ({"user": {"name": "x"}, "items": [1, "2"]}, "$.items[1]"),
     ({"user": {"name": "x", "age": -1}, "items": []}, "$.user.age"), ({"items": []}, "user"), ("x", "object"),
     (None, "null")],
)  # fmt: skip
async def test_bad_data_is_pf400_with_the_path_of_the_field(
    gateway: Gateway, reactor: Reactor, data: Any, path: str
) -> None:
    gateway.register("df", "order", lambda_with(Order))
    with pytest.raises(InvalidPacket) as caught:
        await reactor.call("df", "order", data)
    assert caught.value.code == "PF400"
    assert path in caught.value.message


def lambda_with(annotation: Any) -> Any:
    def handler(data: Any) -> Any:
        return None

    handler.__annotations__["data"] = annotation
    return handler


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [(str, "x", 1), (int, 1, "x"), (float, 1.5, "x"), (bool, True, 1), (list[int], [1], ["x"]), (Point, {"x": 1, "y": 2}, {}),
     (dict[str, int], {"a": 1}, {"a": "b"}), (str | None, None, 1), (int | list[int], [1], "x")],
    ids=repr,
)  # fmt: skip
async def test_annotations_of_all_kinds(
    gateway: Gateway, reactor: Reactor, annotation: Any, good: Any, bad: Any
) -> None:
    gateway.register("df", "typed", lambda_with(annotation))
    assert await reactor.call("df", "typed", good) is None
    with pytest.raises(InvalidPacket):
        await reactor.call("df", "typed", bad)


async def test_the_return_type_is_checked_too(gateway: Gateway, reactor: Reactor) -> None:
    @gateway.register("df", "user")
    async def user(data: Any) -> User:
        return User("Ada", 36) if data == "struct" else data

    @gateway.register("df", "point")
    def point(data: Any) -> Point:
        return data

    @gateway.register("df", "none")
    def none(data: Any) -> None:
        return data

    @gateway.register("df", "later")
    def later(data: Any) -> Awaitable[str]:
        async def answer() -> Any:
            return data

        return answer()

    assert await reactor.call("df", "user", "struct") == {"name": "Ada", "age": 36}
    assert await reactor.call("df", "point", {"x": 1, "y": 2}) == {"x": 1, "y": 2}
    assert await reactor.call("df", "none") is None
    assert await reactor.call("df", "later", "x") == "x"
    for element, data in (("user", 5), ("point", {"x": 1}), ("none", 1), ("later", 5)):
        with pytest.raises(packetflow.HandlerError, match="returned what its annotation does not allow"):
            await reactor.call("df", element, data)


async def test_all_kinds_of_functions_may_handle(gateway: Gateway, reactor: Reactor) -> None:
    class Service:
        def method(self, data: str) -> str:
            return f"method {data}"

        async def __call__(self, data: str, packet: Packet) -> str:
            return f"{packet.element} {data}"

    def with_default(data: str, suffix: str = "!") -> str:
        return data + suffix

    def optional_packet(data: str, packet: Packet | None = None) -> bool:
        return packet is not None

    service = Service()
    gateway.register("df", "method", service.method)
    gateway.register("df", "object", service)
    gateway.register("df", "default", with_default)
    gateway.register("df", "optional", optional_packet)
    gateway.register("df", "partial", functools.partial(with_default, suffix="?"))
    gateway.register("df", "upper", str.upper)
    gateway.register("df", "len", len)
    gateway.register("df", "variadic", lambda *args: len(args))
    answers = {element: await reactor.call("df", element, "x") for element in
               ("method", "object", "default", "optional", "partial", "upper", "len", "variadic")}  # fmt: skip
    assert answers == {"method": "method x", "object": "object x", "default": "x!", "optional": True, "partial": "x?",
                       "upper": "X", "len": 1, "variadic": 1}  # fmt: skip


async def test_the_packet_has_everything(gateway: Gateway, reactor: Reactor) -> None:
    seen: list[Packet] = []
    gateway.register("rm", "see", lambda data, packet: seen.append(packet))
    await reactor.submit(Packet("rm", "see", [1], priority=9, timeout_ms=700, metadata={"key": "é"}, id="the-id"))
    assert seen == [Packet("rm", "see", [1], priority=9, timeout_ms=700, metadata={"key": "é"}, id="the-id")]


def test_a_later_registration_takes_the_place_of_an_earlier(gateway: Gateway) -> None:
    gateway.register("df", "x", lambda data: 1)
    gateway.register("df", "x", lambda data: 2)
    gateway.register("cf", "x", lambda data: 3)
    assert gateway.handles == ["cf:x", "df:x"]


def test_register_gives_the_function_back(gateway: Gateway) -> None:
    def handler(data: Any) -> None: ...

    assert gateway.register("df", "x", handler) is handler
    assert gateway.register("df", "y")(handler) is handler


@pytest.mark.parametrize(
    ("group", "element"), [("xx", "y"), (5, "y"), ("df", ""), ("df", "a b"), ("df", None), ("DF", "x")]
)
def test_a_bad_address_fails_at_once(gateway: Gateway, group: Any, element: Any) -> None:
    with pytest.raises(InvalidPacket, match="expected"):
        gateway.register(group, element)
    with pytest.raises(InvalidPacket, match="expected"):
        gateway.register(group, element, lambda data: None)


def three(a: Any, b: Any, c: Any) -> None: ...
def keyword(data: Any, *, needed: Any) -> None: ...
def nothing() -> None: ...


def generator(data: Any) -> Any:
    yield data


async def async_generator(data: Any) -> Any:
    yield data


def unknown(data: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037
def undecodable(data: dict[str, int] | User) -> None: ...


@pytest.mark.parametrize("handler", [three, keyword, nothing, generator, async_generator, unknown, undecodable, 5, "x"])
def test_a_signature_that_cannot_work_fails_at_once(gateway: Gateway, handler: Any) -> None:
    with pytest.raises(TypeError, match="handler for df:x"):
        gateway.register("df", "x", handler)
    assert gateway.handles == []


async def test_exception_texts_may_be_kept_back() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", expose_errors=False)

    @gateway.register("df", "secret")
    def secret(data: Any) -> None:
        raise ValueError("the password is swordfish")

    @gateway.register("df", "open")
    def opened(data: Any) -> None:
        raise packetflow.Conflict("meant for you")

    async with gateway, Reactor(gateway.endpoint) as reactor:
        with pytest.raises(packetflow.HandlerError, match="the handler failed$"):
            await reactor.call("df", "secret")
        with pytest.raises(packetflow.Conflict, match="meant for you"):
            await reactor.call("df", "open")


async def test_an_exception_without_a_text_gives_its_name(gateway: Gateway, reactor: Reactor) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def odd(data: Any) -> None:
        raise Odd

    def bare(data: Any) -> None:
        raise KeyError

    gateway.register("df", "odd", odd)
    gateway.register("df", "bare", bare)
    for element, name in (("odd", "Odd"), ("bare", "KeyError")):
        with pytest.raises(packetflow.HandlerError, match=name):
            await reactor.call("df", element)


async def test_what_has_no_signature_takes_the_data(gateway: Gateway, reactor: Reactor) -> None:
    gateway.register("df", "number", int)
    assert await reactor.call("df", "number", "42") == 42


async def test_what_blocks_fails_and_is_cancelled_in_a_thread_as_elsewhere(gateway: Gateway, reactor: Reactor) -> None:
    def fail(data: Any) -> None:
        raise LookupError(f"no {data}")

    gateway.register("df", "fail", fail, offload="thread")
    for number in (7, 8):
        with pytest.raises(packetflow.HandlerError, match=f"no {number}"):
            await reactor.call("df", "fail", number)


def test_threads_are_made_up_to_the_bound_and_what_has_not_begun_is_cancelled() -> None:
    threads = _Threads(1)
    go_on, begun = threading.Event(), threading.Event()

    def block() -> str:
        begun.set()
        go_on.wait()
        return "done"

    first = threads.submit(block)
    begun.wait()
    given_up, second = threads.submit(block), threads.submit(block)
    assert given_up.cancel()
    threads.shutdown()
    go_on.set()
    assert first.result() == "done"
    assert second.cancelled()
    threads.shutdown()  # again is nothing


def test_one_that_was_given_up_is_not_begun() -> None:
    threads = _Threads(1)
    go_on, begun = threading.Event(), []
    first = threads.submit(go_on.wait)
    given_up, last = threads.submit(begun.append, 1), threads.submit(begun.append, 2)
    assert given_up.cancel()
    go_on.set()
    last.result()
    assert first.done()
    assert begun == [2]
    threads.shutdown()


def die(data: Any) -> None:
    os._exit(1)


async def test_a_process_that_dies_fails_its_packet_and_the_next_gets_another(
    gateway: Gateway, reactor: Reactor
) -> None:
    gateway.register("df", "die", die, offload="process")
    gateway.register("df", "number", operator.neg, offload="process")
    together = await asyncio.gather(*(reactor.submit({"group": "df", "element": "die"}) for _ in range(2)))
    for result in together:
        assert (result.error["code"], result.error["message"]) == ("PF500", "the process that ran the handler has died")
    assert await reactor.call("df", "number", 5) == -5
