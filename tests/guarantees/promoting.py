"""A promotion that can be interrupted at every step, and what must be true afterwards."""

from __future__ import annotations

import dataclasses
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event

from flask_byok.errors import StoreError
from flask_byok.keys.sessions import Sessions
from flask_byok.model.owner import Caller, SessionRef
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.redis import RedisDocuments
from flask_byok.testing import FakeProviders
from tests.worlds import World

KEYRING = Keyring("785f3ec7eb32f30b90cd0fcf3657d388b5ff4297f2f9716ff66e9b69c05ddd09")
#: What a visitor saved, and what the user saved after signing in; two keys for groq.
WAITING = {"openai": "sk-visitors-openai-0001", "groq": "gsk_visitors-groq-0002"}
OWN = {"groq": "gsk_users-own-groq-0003", "xai": "xai-users-own-xai-00004"}
#: Where all are to be: what waited replaces the user's own.
PROMOTED = OWN | WAITING
PROVIDERS = list(PROMOTED)
#: What the user sets later, for xai.
NEW = "xai-users-own-newer-00005"


def fork(function: Callable[[], object]) -> int:
    """Run a function in a process of its own and return how that ended: 0 if well, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(120)  # nothing waits for it longer
    try:
        function()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


@dataclass
class Points:
    """The steps of what a world does, counted from zero: something is done at one of them.

    They are before and after each call of a store, and with ``inside`` also before and after each statement, commit
    and Redis command.
    """

    act_at: int
    act: Callable[[], object]
    labels: Path
    inside: bool = False
    passed: int = field(default=0, init=False)

    def watch(self, world: World, sessions: Sessions) -> None:
        """Count the steps of this world from now on."""
        for store, names in (
            (sessions, ("read", "write", "mark_leaving", "remove", "clear", "end")),
            (world.accounts, ("find", "over", "put", "promote", "end", "clear")),
        ):
            for name in names:
                setattr(store, name, self._around(name, getattr(store, name)))
        if not self.inside:
            return
        if isinstance(kept := sessions.documents, RedisDocuments):
            kept._execute = self._around("Redis", kept._execute)
        for engine in {world.accounts.engine, world.documents.engine}:
            for when in ("before", "after"):
                event.listen(engine, f"{when}_cursor_execute", partial(self._statement, when))
            event.listen(engine, "commit", lambda _: self.point("before commit"))
            # A connection comes back to the pool once the commit is done.
            event.listen(engine, "checkin", lambda *_: self.point("after commit"))

    def point(self, label: str) -> None:
        """Pass one step."""
        with self.labels.open("a") as file:
            print(label, file=file)
        self.passed += 1
        if self.passed - 1 == self.act_at:
            self.act()

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def passing(*args: Any, **options: Any) -> Any:
            self.point(f"before {name}")
            result = call(*args, **options)
            self.point(f"after {name}")
            return result

        return passing

    def _statement(self, when: str, _c: Any, _u: Any, statement: str, *_: Any) -> None:
        table = [word for word in statement.split() if word.startswith("byok_")][-1:]
        self.point(" ".join([when, statement.split()[0], *table]))


@dataclass
class Place:
    """Where a host keeps sessions and accounts."""

    folder: Path
    fake: FakeProviders
    database_url: str
    redis_url: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def world(self) -> World:
        """Make the parts of one process."""
        store, day = None, timedelta(days=1)
        if self.redis_url is not None:
            store = Sessions(RedisDocuments(self.redis_url), ttl=day, max_age=30 * day)
        return World(
            self.folder,
            self.fake,
            {"BYOK_VALIDATE_ON_SET": "off", "BYOK_SET_RATE": "1000000/minute", **self.config},
            keyring=KEYRING,
            other_store=store,
            database_url=self.database_url,
        )


def close(world: World) -> None:
    """Close the connections of a world, with nothing left to write."""
    with suppress(StoreError):
        world.service.traffic.flush()
    world.accounts.engine.dispose()
    world.documents.engine.dispose()


def begin(world: World, name: str) -> Caller:
    """Let a visitor save keys, then sign in and save some more; nothing is promoted yet."""
    sid = f"sid-{name}"
    visitor = Caller(session=SessionRef(sid, world.service.sessions.establish(sid)))
    for provider, api_key in WAITING.items():
        world.set(visitor, api_key, provider)
    user = dataclasses.replace(visitor, user=name)
    for provider, api_key in OWN.items():
        world.set(user, api_key, provider)
    return user


def promote(world: World, caller: Caller) -> None:
    """Promote everything."""
    world.service.promote(caller, None, "replace")


def check_login(world: World, caller: Caller) -> None:
    """Sign in anew, and fail unless each key is there once, and the user's own ones serve."""
    world.service.sessions.renew(caller.session, f"{caller.session.sid}-anew")
    again = renewed(caller)
    rows = {row["provider"]: row for row in world.service.get(again)["providers"]}
    for provider, api_key in OWN.items():
        used = world.service.resolve(again, provider).api_key
        assert used in (api_key, PROMOTED[provider]), "a key of the user's own is lost"
    for provider in PROVIDERS:
        row = rows[provider]
        assert row["tiers"] in ([], ["session"], ["user"]), "a key counts twice"
        there = row["tiers"] == ["user"]
        # As long as it is not in the account it waits, or is the user's own in the session.
        assert row["promotable"] is not there
        if there:
            assert world.service.resolve(again, provider).api_key == PROMOTED[provider]


def check_outcome(world: World, caller: Caller) -> None:
    """Promote again, and fail unless each key is in the account once, with its owner, and none in the session."""
    again = renewed(caller)
    world.service.promote(again, None, "replace")
    sessions = world.service.sessions
    view = sessions.read(again.session, again.identity, PROVIDERS)
    assert view.alive
    assert (dict(view.records), dict(view.visitor_records)) == ({}, {})
    assert kept(world, again) == PROMOTED
    done = [e for e in world.accounts.audit.entries(again.identity) if e.action == "promote"]
    assert sorted(e.provider for e in done) == sorted(PROVIDERS), "done once, and logged once"
    assert world.accounts.audit.verify(again.identity) == []


def kept(world: World, caller: Caller) -> dict[str, str]:
    """Return the keys in the account, one for each provider."""
    keys: dict[str, str] = {}
    for record in world.accounts.find([caller.identity]):
        fields, _ = KEYRING.open_record(caller.identity, record)
        assert record.provider not in keys, "a key is there twice"
        keys[record.provider] = fields["api_key"].reveal()
    return keys


def renewed(caller: Caller) -> Caller:
    """Return the caller after signing in anew."""
    session = caller.session
    assert session is not None
    return dataclasses.replace(caller, session=SessionRef(f"{session.sid}-anew", session.ref))
