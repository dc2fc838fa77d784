"""Counting uses: in memory, and by everything that the service does with keys."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import ByokError, StoreError
from flask_byok.keys import traffic as module
from flask_byok.keys.traffic import Traffic
from flask_byok.model.credential import (
    Credential,
    SessionUse,
    Tokens,
    Use,
    isoformat,
    utcnow,
)
from flask_byok.model.owner import Caller, SessionRef, Tier
from flask_byok.sealing.keyring import Keyring
from tests.services import wait_until
from tests.worlds import ENV_KEY, World

from .conftest import MakeWorld

HELLO = [{"role": "user", "content": "Hello"}]
HOURS = 3600.0


class Store:
    """Adds uses up, or does not answer."""

    def __init__(self) -> None:
        self.away = self.sessions_away = False
        self.uses: list[Use] = []
        self.session_uses: list[SessionUse] = []
        self.held: set[str] = set()
        self.asked: list[str] = []

    def add(self, use: Use) -> None:
        if self.away:
            raise StoreError
        self.uses.append(replace(use))

    def count(self, use: SessionUse) -> None:
        self.asked.append(use.ref)
        if self.sessions_away or use.ref in self.held:
            raise StoreError
        self.session_uses.append(replace(use))

    def counts(self) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for use in self.uses:
            found[use.credential_id, use.outcome] += use.uses
        return found


@pytest.fixture
def store() -> Store:
    """Make a store."""
    return Store()


def test_uses_are_handed_over_together(store: Store) -> None:
    """However often a key is used in an interval, each outcome is handed over once, with its last time."""
    recorder = Traffic(store.add, HOURS)
    for outcome in ("used", "failed", "used", "rejected", "used"):
        recorder.note("user:1", "openai", "id-1", outcome)
    before = time.time() * 1000
    assert store.uses == []
    recorder.flush()
    assert store.counts() == {
        ("id-1", "used"): 3,
        ("id-1", "failed"): 1,
        ("id-1", "rejected"): 1,
    }
    assert {use.day for use in store.uses} == {time.strftime("%Y-%m-%d", time.gmtime())}
    assert all(before - 10_000 < use.last_used_at <= before for use in store.uses)
    recorder.flush()
    assert len(store.uses) == 3


def test_tokens_are_handed_over_with_the_uses(store: Store) -> None:
    """They add up beside the uses, those of a longer call later by themselves, and survive a store that is away."""
    recorder = Traffic(store.add, HOURS)
    for what in ("used", Tokens(9, 2), "used", Tokens(1, 0), "failed"):
        recorder.note("user:1", "openai", "id-1", what)  # type: ignore[arg-type]  # literals
    store.away = True
    flush_in_vain(recorder)
    recorder.note("user:1", "openai", "id-1", Tokens(30, 40))
    store.away = False
    recorder.flush()
    found = {use.outcome: (use.uses, use.input_tokens, use.output_tokens) for use in store.uses}
    assert found == {"used": (2, 40, 42), "failed": (1, 0, 0)}
    recorder.note("user:1", "openai", "id-1", Tokens(5, 6))
    recorder.flush()
    assert [(use.uses, use.input_tokens, use.output_tokens) for use in store.uses[2:]] == [
        (0, 5, 6)
    ]


def test_threads_lose_and_double_no_tokens(store: Store) -> None:
    """Eight threads count while the counts are handed over again and again."""
    recorder = Traffic(store.add, 0.001)

    def work() -> None:
        for _ in range(500):
            recorder.note("user:1", "openai", "", "used")
            recorder.note("user:1", "openai", "", Tokens(3, 1))

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work) for _ in range(8)]:
            done.result()
    recorder.flush()
    sums = [
        sum(getattr(u, n) for u in store.uses) for n in ("uses", "input_tokens", "output_tokens")
    ]
    assert sums == [4000, 12_000, 4000]


class _Ending(str):
    """The name of a provider; looking it up is when a forgotten stream ends."""

    __slots__ = ("end",)

    def __hash__(self) -> int:
        self.end()  # type: ignore[attr-defined]  # a slot
        return str.__hash__(self)


def test_a_stream_can_end_while_its_thread_counts(store: Store) -> None:
    """Garbage collection may close a stream at any moment, also within a count: both count, and none waits."""
    recorder = Traffic(store.add, HOURS)
    name = _Ending("openai")
    name.end = lambda: recorder.note("user:1", "openai", "", Tokens(9, 2))
    thread = threading.Thread(target=recorder.note, args=("user:1", name, "", "used"), daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive(), "the count")
    name.end = lambda: None
    recorder.flush()
    (use,) = store.uses
    assert use.uses == 1
    assert use.input_tokens >= 9
    assert use.input_tokens == 9 / 2 * use.output_tokens


def test_a_day_ends_at_midnight_utc(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A use counts for the day in UTC that it was made on, not for the one when it is written."""
    recorder = Traffic(store.add, HOURS)
    for moment in (1_709_251_199.9, 1_709_251_200.0):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        recorder.note("user:1", "openai", "", "used")
    recorder.flush()
    assert [use.day for use in store.uses] == ["2024-02-29", "2024-03-01"]


def test_a_thread_hands_over_by_itself(store: Store) -> None:
    """The first use starts a thread that hands uses over, and that ends after the recorder."""
    before = _threads()
    recorder = Traffic(store.add, 0.02)
    assert _threads() == before
    recorder.note("user:1", "openai", "", "used")
    wait_until(lambda: store.uses, "the use")
    (thread,) = _threads() - before
    recorder.note("user:1", "openai", "", "used")
    gone = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert gone() is None
    wait_until(lambda: store.counts()["", "used"] == 2, "the last use")
    wait_until(lambda: not thread.is_alive(), "the thread's end")


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "byok-usage"}


def flush_in_vain(recorder: Traffic) -> None:
    """Hand over what can be, where something cannot."""
    with pytest.raises(StoreError):
        recorder.flush()


def use_in_session(recorder: Traffic, ref: str) -> None:
    """Use a visitor's key once, in the session of this ref."""
    key = Credential("openai", Tier.SESSION, f"session:{ref}", {}, "", version="v1")
    recorder.counter(Caller(session=SessionRef("sid", ref)), key)("used")


def test_a_session_that_cannot_be_written_keeps_no_other_waiting(store: Store) -> None:
    """A failed use is tried again after all others each time, together with the later uses of its key."""
    recorder = Traffic(store.add, HOURS, count=store.count)
    held = [f"held-{number}" for number in range(5)]
    store.held = set(held)
    for number in range(3):
        for ref in (*held, "a", f"b-{number}"):
            use_in_session(recorder, ref)
        for _ in range(2):
            flush_in_vain(recorder)
        assert sum(use.uses for use in store.session_uses) == 2 * (number + 1)
    store.held.clear()
    recorder.flush()
    uses = [use.uses for use in store.session_uses if use.ref in held]
    assert uses == [3] * 5


def test_a_store_that_is_away_is_asked_a_few_times(store: Store) -> None:
    """However much waits, a round ends after a few faults; later all of it is there, once."""
    recorder = Traffic(store.add, HOURS, count=store.count)
    store.sessions_away = True
    for number in range(500):
        use_in_session(recorder, f"ref-{number}")
    for rounds in range(1, 4):
        flush_in_vain(recorder)
        assert len(store.asked) == rounds * 3
    store.sessions_away = False
    recorder.flush()
    assert len({use.ref for use in store.session_uses}) == len(store.session_uses) == 500


def test_memory_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many different entries are dropped, which is logged once; known ones still count."""
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    recorder = Traffic(store.add, HOURS)
    store.away = True
    for id in "ab":
        recorder.note("user:1", "openai", id, "used")
    with pytest.raises(StoreError):
        recorder.flush()
    with caplog.at_level(logging.WARNING, "flask_byok"):
        for id in "cdec":
            recorder.note("user:1", "openai", id, "used")
    assert len(caplog.records) == 1
    store.away = False
    recorder.flush()
    assert store.counts() == {("a", "used"): 1, ("b", "used"): 1, ("c", "used"): 2}
    recorder.note("user:1", "openai", "d", "used")
    recorder.flush()
    assert store.counts()["d", "used"] == 1


def test_a_fault_that_nobody_foresaw_is_survived(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread goes on, and its log names the kind of error alone."""
    broken = threading.Event()

    def add(use: Use) -> None:
        if not broken.is_set():
            broken.set()
            raise ValueError("sk-secret")
        store.add(use)

    recorder = Traffic(add, 0.02)
    with caplog.at_level(logging.WARNING, "flask_byok"):
        recorder.note("user:1", "openai", "", "used")
        wait_until(lambda: store.uses, "the use")
    assert "ValueError" in caplog.text
    assert "sk-secret" not in caplog.text


def test_a_process_that_ends_hands_over(tmp_path: Path) -> None:
    """What waits when the interpreter ends is written."""
    store = open_accounts(
        f"sqlite:///{tmp_path / 'byok.sqlite'}",
        Keyring("f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e"),
    )
    assert store.usage.stats(["user:1"])["by_provider"] == {}
    script = f"""
from flask_byok.sealing.keyring import Keyring
from flask_byok.accounts.wing import open_accounts
from flask_byok.keys.traffic import Traffic
store = open_accounts("{store.engine.url}", Keyring("f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e"))
recorder = Traffic(store.usage.add, 3600)
for _ in range(7):
    recorder.note("user:1", "openai", "", "used")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stderr == b""
    assert store.usage.stats(["user:1"])["by_provider"]["openai"]["uses"] == 7


def test_each_store_is_waited_for_alone(store: Store) -> None:
    """While the one is away the other gets its counts, and each count goes to one thread."""
    before = _threads()
    recorder = Traffic(store.add, 0.02, count=store.count)
    store.away = True
    ann = Caller(user="ann", session=SessionRef("sid", "ref-1"))
    key = Credential("openai", Tier.SESSION, "user:ann", {}, "https://x", version="v1")
    count = recorder.counter(ann, key)
    for _ in range(50):
        count("used")
    wait_until(lambda: sum(use.uses for use in store.session_uses) == 50, "the session's")
    assert store.uses == []
    assert len(_threads() - before) == 2
    store.away = False
    wait_until(lambda: store.counts()["", "used"] == 50, "the owner's")


# with the service


def counted(world: World, *owners: str) -> dict[str, int]:
    """Return what was counted for these owners, by outcome."""
    world.service.traffic.flush()
    days = world.accounts.usage.stats(owners)["daily"]
    return {name: day[name] for day in days for name in ("used", "rejected", "failed") if day[name]}


def tokens_of(world: World, owner: str, provider: str) -> tuple[int, int]:
    """Return the tokens that were counted for an owner."""
    world.service.traffic.flush()
    found = world.accounts.usage.stats([owner])["by_provider"][provider]
    return found["input_tokens"], found["output_tokens"]


def test_each_tier_is_counted_where_it_belongs(make_world: MakeWorld) -> None:
    """Calls count for the key's owner, not for the caller; the key itself knows how often it was used."""
    world = make_world({"GROQ_API_KEY": ENV_KEY})
    fake = world.fake
    ann = world.caller("ann", teams=("red",))
    keys = {
        owner: world.keep(owner, fake.api_key(provider), provider)
        for owner, provider in (("user:ann", "openai"), ("team:red", "xai"), ("system", "google"))
    }
    world.set(ann, fake.api_key("openrouter"), "openrouter")
    fake.add_key("groq", ENV_KEY)
    for provider in ("openai", "xai", "xai", "google", "openrouter", "groq"):
        list(world.service.provider(ann, provider).stream_chat(HELLO, "m"))
    assert counted(world, "user:ann") == {"used": 2}
    assert counted(world, "team:red") == {"used": 2}
    assert counted(world, "system") == {"used": 2}
    uses = {owner: world.accounts.get(key.id, None) for owner, key in keys.items()}
    assert {owner: record.usage_count for owner, record in uses.items()} == {
        "user:ann": 1,
        "team:red": 2,
        "system": 1,
    }
    assert all(record.version == "1" for record in uses.values())


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
def test_a_conversation_counts_its_tokens(world: World, provider: str) -> None:
    """What the provider says is counted for the key's owner, of several conversations the sum."""
    ann = world.caller("ann")
    world.keep("user:ann", world.fake.api_key(provider), provider)
    for usage in ((9, 2), (1000, 300)):
        world.fake.stream_next(provider, "Once", " upon", usage=usage)
        list(world.service.provider(ann, provider).stream_chat(HELLO, "m"))
    assert tokens_of(world, "user:ann", provider) == (1009, 302)
    assert counted(world, "user:ann") == {"used": 2}


@pytest.mark.parametrize(
    ("provider", "told"), [("openai", (0, 0)), ("anthropic", (9, 0)), ("google", (0, 0))]
)
def test_a_stream_that_is_left_counts_what_was_told(
    world: World, provider: str, told: tuple[int, int]
) -> None:
    """Anthropic tells the input at the beginning, the others all at the end."""
    ann = world.caller("ann")
    world.keep("user:ann", world.fake.api_key(provider), provider)
    world.fake.stream_next(provider, "Once", " upon", usage=(9, 2))
    stream: Any = world.service.provider(ann, provider).stream_chat(HELLO, "m")
    assert next(stream) == "Once"
    stream.close()
    assert tokens_of(world, "user:ann", provider) == told
    world.fake.stream_next(provider, "Once", " upon", usage=(9, 2), cut_after=1)
    with pytest.raises(ByokError):
        list(world.service.provider(ann, provider).stream_chat(HELLO, "m"))
    assert tokens_of(world, "user:ann", provider) == (told[0] * 2, told[1] * 2)


def test_calls_without_an_answer_count_no_tokens(world: World) -> None:
    """Nor do a key that is handed out and a call with the SDK's client, whose answer is not read."""
    ann = world.caller("ann")
    world.keep("user:ann", world.fake.api_key("openai"))
    world.fake.refuse_next("openai", "provider_overloaded")
    with pytest.raises(ByokError):
        list(world.service.provider(ann, "openai").stream_chat(HELLO))
    world.service.resolve(ann, "openai")
    client = world.service.provider(ann, "openai").client
    assert client.chat.completions.create(model="m", messages=HELLO).usage.total_tokens
    assert counted(world, "user:ann") == {"used": 2, "failed": 1}
    assert tokens_of(world, "user:ann", "openai") == (0, 0)


def test_a_session_key_knows_its_uses(world: World) -> None:
    """The status of a key in a session says how often it was used; a visitor's is in no statistics."""
    visitor, ann = world.caller(), world.caller("ann", "sid-2")
    for caller in (visitor, ann):
        world.set(caller, world.fake.api_key("openai"), validate="off")
        began = utcnow()
        list(world.service.provider(caller, "openai").stream_chat(HELLO))
        world.service.resolve(caller, "openai")
        world.service.validate(caller, "openai")
        assert counted(world, "user:ann") == ({"used": 2} if caller is ann else {})
        status = world.status(caller)
        assert status["usage_count"] == 2
        assert isoformat(began) <= status["last_used_at"] <= isoformat(utcnow())
        assert status["validity"]["verdict"] == "valid", "which is not lost by counting"
    assert counted(world, "user", "team", "system", "session") == {"used": 2}
    assert world.status(visitor, "groq")["usage_count"] == 0


def test_only_the_key_that_was_used_counts(world: World) -> None:
    """A use that is written late is not the next key's, and a refused call is no use."""
    visitor = world.caller()
    world.set(visitor, world.fake.api_key("openai"))
    world.service.resolve(visitor, "openai")
    world.set(visitor, world.fake.api_key("openai", "bad"), validate="off")
    with pytest.raises(ByokError):
        list(world.service.provider(visitor, "openai").stream_chat(HELLO))
    world.service.traffic.flush()
    assert (world.status(visitor)["usage_count"], world.status(visitor)["last_used_at"]) == (
        0,
        None,
    )


def test_a_promoted_key_takes_its_uses_along(world: World) -> None:
    """What was counted in the session goes on counting in the account, for the key alone."""
    world.set(world.caller(), world.fake.api_key("openai"))
    world.service.resolve(world.caller(), "openai")
    world.service.traffic.flush()
    ann = world.caller("ann")
    assert world.service.promote(ann)["promoted"] == ["openai"]
    world.service.resolve(ann, "openai")
    assert counted(world, "user:ann") == {"used": 1}
    assert (world.status(ann)["source"], world.status(ann)["usage_count"]) == ("user", 2)


def test_a_key_that_is_handed_out_counts_as_used(world: World) -> None:
    """What the host does with it is not seen; looking for a key, or checking one, is no use."""
    ann = world.caller("ann")
    for provider in ("openai", "groq"):
        world.keep("user:ann", world.fake.api_key(provider), provider)
    world.service.get(ann)
    world.service.missing(ann, ["openai", "xai"])
    world.service.validate(ann, "openai")
    world.service.provider(ann, "openai")
    assert counted(world, "user:ann") == {}
    world.service.resolve(ann, "openai")
    world.service.resolve_many(ann, ["openai", "groq", "xai"])
    assert counted(world, "user:ann") == {"used": 3}


def test_a_refusal_is_counted_once(world: World) -> None:
    """A rejected key counts as that, and no further calls are made with it."""
    ann = world.caller("ann")
    key = world.keep("user:ann", world.fake.api_key("openai", "bad"))
    for _ in range(2):
        with pytest.raises(ByokError):
            list(world.service.provider(ann, "openai").stream_chat(HELLO))
    assert counted(world, "user:ann") == {"rejected": 1}
    assert world.accounts.get(key.id, None).usage_count == 0
