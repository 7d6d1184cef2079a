"""Where a gateway listens, and with which TLS: the one may change while the other stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl as ssl_module
from typing import Any, Self

from pfcore.link.handshake import Gate

__all__ = ["Listener"]

AT_ONCE = 7
"""Connections, less one, that are accepted in one iteration of the loop: it takes the backlog's length for both."""
BACKLOG = 4096
"""Connections that may wait to be accepted."""


def _lengthen(servers: list[asyncio.Server]) -> None:
    """Lets more wait than are accepted at once."""
    for server in servers:
        for sock in server.sockets:
            double = socket.socket(fileno=os.dup(sock.fileno())) if os.name == "posix" else None
            if double is not None:  # pragma: no branch - Windows
                double.listen(BACKLOG)
                double.close()


class Listener:
    """The listening sockets of a gate; made by `open`.

    A context of TLS cannot forget an authority, so there comes another, and with it
    other servers, on doubles of the same sockets.
    """

    def __init__(self, gate: Gate, server: asyncio.Server, options: dict[str, Any]) -> None:
        self._gate = gate
        self._servers = [server]
        self._options = options
        self._closed = False
        self._renewing = asyncio.Lock()

    @classmethod
    async def open(cls, gate: Gate, host: str, port: int, **options: Any) -> Self:
        """Listens; options as for `loop.create_server`. Raises OSError."""
        gate.context = options.get("ssl")
        return cls(gate, await gate.listen(host=host, port=port, **options, backlog=AT_ONCE), options)

    @property
    def sockets(self) -> tuple[Any, ...]:
        """As `asyncio.Server.sockets`."""
        return tuple(sock for server in self._servers for sock in server.sockets)

    async def renew(self, context: ssl_module.SSLContext) -> None:
        """Another context for the handshakes to come; nobody who dials meanwhile is turned away.

        Where a handshake of TLS is over, and the request is not, its certificate was
        checked by the context before: it is asked to come again. Raises OSError, and
        nothing is changed, where the sockets cannot be doubled.
        """
        async with self._renewing:
            options = self._options | {"ssl": context}
            old, fresh, doubles = self._servers, [], []
            try:
                for sock in self.sockets:
                    doubles.append(sock.dup())
                for sock in doubles:
                    fresh.append(await self._gate.listen(sock=sock, **options, backlog=AT_ONCE))
                _lengthen(fresh)
            except BaseException:
                for unfinished in (*fresh, *doubles):
                    unfinished.close()
                raise
            if self._closed:
                for server in fresh:
                    server.close()
                return
            self._options, self._servers, self._gate.context = options, fresh, context
            for server in old:
                for sock in server.sockets:
                    with contextlib.suppress(NotImplementedError):  # Windows
                        asyncio.get_running_loop().remove_reader(sock.fileno())
            # what the old ones have accepted by now is a task that has not run yet
            try:
                await asyncio.sleep(0)
            finally:
                for server in old:
                    server.close()

    def close(self) -> None:
        """Accepts nobody any more."""
        self._closed = True
        for server in self._servers:
            server.close()

    async def start_serving(self) -> None:
        """Accepts from now on, where `open` was told to wait."""
        for server in self._servers:
            await server.start_serving()
        _lengthen(self._servers)
        self._options.pop("start_serving", None)

    def abort_clients(self) -> None:
        """Cuts off every connection that was accepted, where the servers can."""
        for server in self._servers:
            if hasattr(server, "abort_clients"):  # pragma: no branch - asyncio's before 3.13, on Windows only
                server.abort_clients()

    async def wait_closed(self) -> None:
        """Returns once the connections have gone, too."""
        for server in self._servers:
            await server.wait_closed()
