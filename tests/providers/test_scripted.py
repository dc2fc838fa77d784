"""Our own streams at scripted providers: what they tell is what was scripted, on every wire."""

from __future__ import annotations

from typing import Any

import pytest

from flask_byok.errors import ByokError
from flask_byok.testing import FakeProviders
from flask_byok.testing.wire import KINDS
from tests.providers.conftest import HELLO, SDKS, Make


def read(make: Make, fake: FakeProviders, provider: str) -> list[Any]:
    """Return the events of a conversation, but for its start."""
    stream = make(provider, fake.api_key(provider)).stream_events(HELLO, "m")
    return [event for event in stream if event is not None and event.type != "start"]


@pytest.mark.parametrize("provider", SDKS)
def test_every_piece_is_told(fake: FakeProviders, make: Make, provider: str) -> None:
    """Reasoning, texts, tool calls, usage and the end come in this order, each as it was scripted."""
    calls = [("call_1", "weather", {"city": "Oslo"}), ("call_2", "clock", "{}")]
    fake.stream_next(
        provider, "Let me", " see.", reasoning=["Hm."], tool_calls=calls, usage=(11, 7)
    )
    thought, first, second, weather, clock, usage, end = read(make, fake, provider)
    assert [thought.type, thought.text] == ["reasoning", "Hm."]
    assert [first.text, second.text] == ["Let me", " see."]
    assert [weather.name, weather.arguments] == ["weather", '{"city": "Oslo"}']
    assert [clock.id, clock.name, clock.arguments] == ["call_2", "clock", "{}"]
    assert [usage.input_tokens, usage.output_tokens] == [11, 7]
    assert [end.type, end.reason] == ["finish", "tool_calls"]


@pytest.mark.parametrize("provider", SDKS)
def test_no_stream_and_no_end(fake: FakeProviders, make: Make, provider: str) -> None:
    """An answer that is no stream, or has no end mark, is `stream_incomplete`."""
    scripts: list[dict[str, Any]] = [{"finish": None, "done": False}]
    scripts += [{"instead": form} for form in ("html", "error", "completion", "empty")]
    for script in scripts:
        fake.stream_next(provider, "Once", **script)
        with pytest.raises(ByokError) as caught:
            read(make, fake, provider)
        assert caught.value.code == "stream_incomplete", script


#: The codes of our errors, where they differ from the kind of refusal.
CODES = {"disabled": "key_rejected", "restricted": "not_permitted", "billing_limit": "no_credit"}
#: Google answers a blocked prompt with 200. Anthropic does not document what it answers to other countries.
MISSING = {("google", "content_filtered"), ("anthropic", "region_blocked")}


@pytest.mark.parametrize("provider", SDKS)
def test_every_refusal_has_its_code(fake: FakeProviders, make: Make, provider: str) -> None:
    """Each documented refusal is the error of its kind, with the seconds to wait."""
    for kind in KINDS:
        if (provider, kind) in MISSING:
            continue
        fake.refuse_next(provider, kind, retry_after=29.5)
        with pytest.raises(ByokError) as caught:
            read(make, fake, provider)
        code = CODES.get(kind, kind)
        assert (kind, caught.value.code) == (kind, code)
        assert code == "key_rejected" or caught.value.retry_after == 30  # type: ignore[attr-defined]
