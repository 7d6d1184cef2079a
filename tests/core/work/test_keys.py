"""What is found by ``group:element``: after any number of comings and goings as in a dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pfcore.work.dispatch import Dispatcher
from pfcore.work.handler import Handler

NAMES = st.sampled_from([f"{group}:e{n}" for group in ("cf", "df", "ed") for n in range(40)])


@given(st.lists(st.tuples(st.booleans(), NAMES), max_size=300))
def test_handlers_come_and_go_as_in_a_dict(steps: list[tuple[bool, str]]) -> None:
    """Taking one out moves up those that stood behind it: the others are still found."""
    dispatcher = Dispatcher()
    model: dict[str, None] = {}
    for comes, key in steps:
        group, _, element = key.partition(":")
        if comes:
            dispatcher.register(Handler(group, element, str))
            model[key] = None
        elif key in model:
            dispatcher.unregister(key)
            del model[key]
        assert dispatcher.keys == sorted(model)
    for group in ("cf", "df", "ed"):
        for n in range(40):
            assert dispatcher.finds(group, f"e{n}") == (f"{group}:e{n}" in model)
