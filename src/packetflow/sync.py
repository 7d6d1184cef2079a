"""A reactor for scripts and threads: the same, blocking.

>>> from packetflow.sync import Reactor
>>> with Reactor("ws://127.0.0.1:8443/packetflow/v1") as reactor:   # doctest: +SKIP
...     reactor.call("df", "transform", "hello world")
"""

from __future__ import annotations

from packetflow.client.sync import Reactor

__all__ = ["Reactor"]
