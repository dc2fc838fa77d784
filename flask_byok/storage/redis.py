"""Session keys in Redis 6.2 or later: single, behind Sentinel, or a Cluster."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

from redis.cluster import RedisCluster
from redis.exceptions import (
    AskError,
    ChildDeadlockedError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from ..errors import SessionRequiredError, StoreError
from ..keys.session_store import (
    LEAVING_MARK,
    REFUSAL_MARKS,
    Adoption,
    SessionView,
    decode_record,
    encode_record,
    encode_verdict,
    new_ticket,
    version_mark,
)
from ..model.credential import CredentialRecord, RecordedVerdict, SessionUse, isoformat
from ..model.owner import SessionRef
from . import redis_scripts as scripts
from .breaker import Breaker
from .redis_client import limited_client
from .redis_scripts import Script

_logger = logging.getLogger("flask_byok.stores")
_FAILURES = (RedisError, RedisClusterException, ChildDeadlockedError, OSError)
#: Milliseconds that replicas have to acknowledge a write, on a cluster and elsewhere. Redis ends such
#: a wait up to 100 ms late, which must still be within the read timeout.
_WAIT_LIMITS = (50, 100)
#: A read lets the lifetime slide only after this part of it has passed.
_SLIDE = 20
_DEAD = SessionView(alive=False)
_EMPTY = SessionView()

T = TypeVar("T")


class RedisSessionStore:
    """Keeps each session in one hash that expires.

    ``byok:m:{<sid>}`` leads from the session id to the ref, ``byok:h:{<ref>}`` holds the records.
    ``byok:canary:<name>`` stays.

    :param client_or_url: see :func:`~flask_byok.storage.redis_client.limited_client`.
    :param ttl: lifetime after the last use; it slides in steps of a twentieth.
    :param max_age: lifetime after the first write, however much it is used.
    :param wait: replicas that must acknowledge a change. Each change then waits for them (Redis
        ``WAIT``), and fails with ``StoreError`` when too few answer in time.
    """

    name = "Redis"

    def __init__(
        self,
        client_or_url: Any,
        *,
        ttl: timedelta,
        max_age: timedelta,
        wait: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        #: The client with our own time limits.
        self.client = limited_client(client_or_url)
        self.breaker = Breaker()
        # Counts that cannot be written keep no request away.
        self._aside = Breaker()
        self._execute: Callable[..., Any] = self.client.execute_command
        self._ttl = _milliseconds(ttl)
        self._max_age = _milliseconds(max_age)
        self._wait = wait
        self._wait_limit = _WAIT_LIMITS[not isinstance(self.client, RedisCluster)]
        self._clock = clock

    def guarded(self, function: Callable[..., T], *args: Any, breaker: Breaker | None = None) -> T:
        """Call what talks to Redis, through the breaker of requests or another one.

        :raises StoreError: it does not answer, or did not just before.
        """
        breaker = breaker or self.breaker
        if not breaker.allow():
            raise StoreError(tier="session")
        try:
            result = function(*args)
        except ResponseError as error:
            breaker.success()  # it answered
            raise self._failed(error) from None
        except _FAILURES as error:
            breaker.fault()
            raise self._failed(error) from None
        breaker.success()
        return result

    def establish(self, sid: str, dead: str | None = None) -> str:
        """Return the ref for a session id, making one where there is none or it is ``dead``."""
        fresh = secrets.token_hex(16)
        ref: bytes = self._run(scripts.ESTABLISH, _map_key(sid), fresh, dead or "", self._ttl)
        return ref.decode()

    def find(self, sid: str) -> str | None:
        """Return the ref for a session id, or None."""
        ref: bytes | None = self.guarded(self._execute, "GET", _map_key(sid))
        return None if ref is None else ref.decode()

    def read(self, session: SessionRef, identity: str, providers: Sequence[str]) -> SessionView:
        """Return the records for these providers and let the lifetime slide."""
        providers = tuple(providers)
        fields = _fields(bool(identity), providers)
        values = self.guarded(self._execute, "HMGET", _hash_key(session.ref), *fields)
        meta = values[0]
        if meta is None:
            return _EMPTY
        if meta == scripts.DEAD or not self._usable(session, identity, meta):
            return _DEAD
        records = _records(providers, values, 1)
        if not identity:
            return SessionView(records)
        return SessionView(records, _records(providers, values, 1 + 2 * len(providers)))

    def write(self, session: SessionRef, identity: str, record: CredentialRecord) -> None:
        """Store one record under its provider, replacing the one before it.

        :raises SessionRequiredError: the session is not alive for this id and identity; nothing is
            stored.
        """
        kept, checked = _names(_scope(identity), record.provider)
        verdict = encode_verdict(record.validity)
        result = self._change(
            scripts.WRITE, session, identity, kept, encode_record(record), checked, verdict
        )
        if result == scripts.CREATED:
            self._keep(session)
        elif result != scripts.DONE:
            raise SessionRequiredError(provider=record.provider, tier="session")

    def clear(
        self, session: SessionRef, identity: str, providers: Sequence[str], *, visitor: bool = False
    ) -> list[str]:
        """Delete the records of these providers and return those that were there."""
        scope = _scope(identity, visitor)
        names = {_names(scope, provider): provider for provider in providers}
        fields = [name for pair in names for name in pair]
        cleared = self._change(scripts.CLEAR, session, identity, *fields)
        if not isinstance(cleared, list):
            return []
        found = {name.decode() for name in cleared}
        return [provider for (kept, _), provider in names.items() if kept in found]

    def adopt(
        self, session: SessionRef, identity: str, record: CredentialRecord, *, replace: bool
    ) -> Adoption:
        """Put the identity's record in the place of the visitor's of the same version."""
        result = self._change(
            scripts.ADOPT,
            session,
            identity,
            *_names("v", record.provider),
            *_names(_scope(identity), record.provider),
            encode_record(record),
            version_mark(record.version),
            "replace" if replace else "",
        )
        if result == scripts.KEPT:
            return "kept"
        return "adopted" if result == scripts.DONE else "gone"

    def exchange(
        self,
        session: SessionRef,
        identity: str,
        record: CredentialRecord,
        *,
        visitor: bool = False,
    ) -> bool:
        """Put a record in the place of the one of the same version."""
        result = self._change(
            scripts.EXCHANGE,
            session,
            identity,
            _names(_scope(identity, visitor), record.provider)[0],
            encode_record(record),
            version_mark(record.version),
            "" if record.leaving else LEAVING_MARK,
        )
        return bool(result == scripts.DONE)

    def discard(
        self,
        session: SessionRef,
        identity: str,
        provider: str,
        version: str,
        *,
        visitor: bool = False,
    ) -> bool:
        """Delete the record, if it is of that version still, and say whether it was."""
        names = _names(_scope(identity, visitor), provider)
        mark = version_mark(version)
        return bool(self._change(scripts.DISCARD, session, identity, *names, mark) == scripts.DONE)

    def record_verdict(self, session: SessionRef, provider: str, verdict: RecordedVerdict) -> None:
        """Store a verdict beside the record of that version."""
        is_open = verdict.verdict.valid is None
        stay = "".join(REFUSAL_MARKS) if is_open else ""
        mark = version_mark(verdict.version)
        facts = (encode_verdict(verdict), mark, stay, *_both_names(provider))
        self._acknowledged(scripts.VERDICT, _hash_key(session.ref), *facts)

    def count(self, use: SessionUse) -> None:
        """Add uses to what is counted beside the record of that version; no replica has to know."""
        use.ticket = use.ticket or new_ticket()
        at = isoformat(datetime.fromtimestamp(use.last_used_at / 1000, UTC))
        facts = (use.uses, at, use.ticket, version_mark(use.version), *_both_names(use.provider))
        count = (scripts.COUNT, _hash_key(use.ref), facts)
        self.guarded(self._evaluate, *count, breaker=self._aside)

    def renew(self, session: SessionRef, new_sid: str) -> None:
        """Make what is stored valid for another session id, and for the old one no longer."""
        if new_sid == session.sid:
            return
        # The new id leads here before the old one stops, so at no moment does neither.
        self.guarded(self._execute, "SET", _map_key(new_sid), session.ref, "PX", self._ttl)
        now = self._now()
        key = _hash_key(session.ref)
        renewed = self._acknowledged(scripts.RENEW, key, session.sid, new_sid, now, self._ttl)
        self._forget(session.sid if renewed else new_sid, session.ref)

    def end(self, session: SessionRef) -> None:
        """Delete everything of the session and refuse whatever is still written to it."""
        valid: bytes | None = self._acknowledged(scripts.END, _hash_key(session.ref), self._ttl)
        for sid in {session.sid, valid.decode() if valid else session.sid}:
            self._forget(sid, session.ref)

    def canary(self, name: str, sealed: str, *, replace: bool = False) -> str:
        """Return the text stored under this name; this one if there is none, or to ``replace`` it."""
        key = f"byok:canary:{name}"
        held: bytes = self._acknowledged(scripts.CANARY, key, sealed, int(replace))
        return held.decode()

    def _usable(self, session: SessionRef, identity: str, meta: bytes) -> bool:
        sid, created, seen, owner = meta.decode().split("|", 3)
        if sid != session.sid:
            return False
        now = self._now()
        if (owner and owner != identity) or now - int(created) >= self._max_age:
            self.end(session)
            return False
        if (now - int(seen)) * _SLIDE > self._ttl:
            self._slide(session, identity)
        return True

    def _slide(self, session: SessionRef, identity: str) -> None:
        try:
            if self._guarded_run(scripts.TOUCH, session, identity) == scripts.DONE:
                self._keep(session)
        except StoreError:
            return  # the read itself was answered

    def _keep(self, session: SessionRef) -> None:
        if not self._run(scripts.KEEP, _map_key(session.sid), session.ref, self._ttl):
            return
        # The entry had expired, or the session has just ended or moved and must not be found here.
        meta = self.guarded(self._execute, "HGET", _hash_key(session.ref), "_")
        if meta is None or not meta.startswith(f"{session.sid}|".encode()):
            self._forget(session.sid, session.ref)

    def _change(self, script: Script, session: SessionRef, identity: str, *args: Any) -> Any:
        result = self._guarded_run(script, session, identity, *args)
        if result == scripts.ENDED:
            self._forget(session.sid, session.ref)
        return result

    def _guarded_run(self, script: Script, session: SessionRef, identity: str, *args: Any) -> Any:
        times = (self._now(), self._ttl, self._max_age)
        return self._acknowledged(
            script, _hash_key(session.ref), session.sid, identity, *times, *args
        )

    def _forget(self, sid: str, ref: str) -> None:
        self._run(scripts.FORGET, _map_key(sid), ref)

    def _run(self, script: Script, key: str, *args: Any) -> Any:
        return self.guarded(self._evaluate, script, key, args)

    def _acknowledged(self, script: Script, key: str, *args: Any) -> Any:
        if not self._wait:
            return self._run(script, key, *args)
        result, replicas = self.guarded(self._evaluate_and_wait, script, key, args)
        if replicas < self._wait:
            raise StoreError("Too few Redis replicas have acknowledged the change.", tier="session")
        return result

    def _evaluate(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        try:
            return self._execute("EVALSHA", script.sha, 1, key, *args)
        except NoScriptError:
            return self._execute("EVAL", script.source, 1, key, *args)

    def _evaluate_and_wait(self, script: Script, key: str, args: Sequence[Any]) -> tuple[Any, int]:
        # WAIT counts for the connection that wrote, so both go through one pipeline.
        call: tuple[Any, ...] = ("EVALSHA", script.sha, 1, key, *args)
        result, replicas = self._pipelined(key, call)
        if isinstance(result, AskError) and isinstance(self.client, RedisCluster):
            self.client.nodes_manager.initialize()  # the slot has moved
            result, replicas = self._pipelined(key, call)
        if isinstance(result, NoScriptError):
            result, replicas = self._pipelined(key, ("EVAL", script.source, *call[2:]))
        for answer in (result, replicas):
            if isinstance(answer, Exception):
                raise answer
        return result, replicas

    def _pipelined(self, key: str, call: Iterable[Any]) -> tuple[Any, Any]:
        node = self.client
        if isinstance(node, RedisCluster):
            owner = node.get_node_from_key(key)  # type: ignore[no-untyped-call]
            node = node.get_redis_connection(owner)
        pipeline = node.pipeline(transaction=False)
        pipeline.execute_command(*call)  # type: ignore[no-untyped-call]
        pipeline.execute_command("WAIT", self._wait, self._wait_limit)  # type: ignore[no-untyped-call]
        result, replicas = pipeline.execute(raise_on_error=False)
        return result, replicas

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _failed(self, error: BaseException) -> StoreError:
        # The error's own text may hold an address or what was sent.
        _logger.warning("Redis failed: %s", type(error).__name__)
        return StoreError(tier="session")


def _milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def _map_key(sid: str) -> str:
    return f"byok:m:{{{sid}}}"


def _hash_key(ref: str) -> str:
    return f"byok:h:{{{ref}}}"


def _scope(identity: str, visitor: bool = False) -> str:
    return "u" if identity and not visitor else "v"


def _names(scope: str, provider: str) -> tuple[str, str]:
    return f"k:{scope}:{provider}", f"c:{scope}:{provider}"


def _both_names(provider: str) -> tuple[str, ...]:
    return (*_names("u", provider), *_names("v", provider))


@lru_cache(maxsize=512)
def _fields(signed_in: bool, providers: tuple[str, ...]) -> tuple[str, ...]:
    """List the fields to read: the session's own, the identity's pairs, the visitor's pairs."""
    scopes = "uv" if signed_in else "v"
    pairs = (_names(scope, provider) for scope in scopes for provider in providers)
    return ("_", *(name for pair in pairs for name in pair))


def _records(
    providers: tuple[str, ...], values: Sequence[bytes | None], first: int
) -> dict[str, CredentialRecord]:
    found = {}
    for index, provider in enumerate(providers):
        raw = values[first + 2 * index]
        if raw is not None:
            found[provider] = decode_record(raw, provider, values[first + 2 * index + 1])
    return found
