"""Facts about sessions on every store; each store's test file only builds the store."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from flask_byok.errors import SessionRequiredError
from flask_byok.keys.documents import Documents, SessionView
from flask_byok.keys.faults import Faults
from flask_byok.keys.sessions import Sessions
from flask_byok.model.credential import (
    Credential,
    CredentialRecord,
    RecordedVerdict,
    Secret,
    SessionUse,
    Verdict,
    new_version,
    utcnow,
)
from flask_byok.model.owner import SessionRef, Tier

VISITOR, ANN, BEN = "", "user:ann", "user:ben"
DAY = timedelta(days=1)
#: When keys were used, in milliseconds since 1970.
AT = 1_700_000_000_123
#: The providers that most tests write and ask for.
SOME = ["openai", "groq"]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset

    def forward(self, by: timedelta) -> None:
        """Let this much time pass."""
        self.offset += by.total_seconds()


T = TypeVar("T")
MakeStore = Callable[..., Sessions]
#: Opens a store as one process does.
MakeDocuments = Callable[[], Documents]


def make_record(
    provider: str = "openai", ciphertext: str = "sealed", **facts: Any
) -> CredentialRecord:
    """Make a record as the service would store it."""
    now = utcnow()
    return CredentialRecord(
        provider=provider,
        owner="session:1",
        ciphertext=ciphertext,
        hint="sk-…1234",
        version=new_version(),
        created_at=now,
        updated_at=now,
        **facts,
    )


def begin(store: Sessions, sid: str = "sid-1") -> SessionRef:
    """Establish a session."""
    return SessionRef(sid, store.establish(sid))


def inside(store: Sessions) -> Any:
    """Return the documents of a store, with what its kind has: a client or an engine, and a breaker."""
    return store.documents


def verdict_for(record: CredentialRecord, verdict: Verdict = Verdict.VALID) -> RecordedVerdict:
    """Make a verdict about this version of a record."""
    return RecordedVerdict(verdict, utcnow(), record.version)


def use_of(session: SessionRef, record: CredentialRecord, **facts: int) -> SessionUse:
    """Make a use of this version of a record."""
    facts = {"uses": 1, "last_used_at": AT} | facts
    return SessionUse(session.ref, record.provider, record.version, **facts)


def at_once(count: int, call: Callable[[int], T]) -> list[T]:
    """Make calls at the same moment, numbered from 0, and return what they return."""
    barrier = threading.Barrier(count)

    def wait_and_call(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_call, range(count)))


def assert_ended(store: Sessions, session: SessionRef) -> None:
    """Fail unless the session holds nothing and takes nothing, for any identity."""
    assert store.find(session.sid) != session.ref
    for identity in (VISITOR, ANN, BEN):
        assert store.read(session, identity, SOME) == SessionView(alive=False)
        with pytest.raises(SessionRequiredError):
            store.write(session, identity, make_record())
    assert store.clear(session, ANN, ["openai"]) == []
    assert not store.read(session, ANN, SOME).alive


class SessionContract:
    """What sessions do on every store. A subclass offers ``make_documents``."""

    @pytest.fixture
    def make_store(self, make_documents: MakeDocuments) -> MakeStore:
        """Make stores as in different processes."""
        return lambda **lifetime: Sessions(make_documents(), **lifetime)

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Sessions:
        """Make a store with an ordinary lifetime."""
        return make_store(ttl=DAY, max_age=30 * DAY)

    def test_ref_is_found_again(self, store: Sessions) -> None:
        """A session id leads to one ref each time, until that is named as dead: it is replaced once."""
        assert store.find("sid-1") is None
        ref = store.establish("sid-1")
        assert store.find("sid-1") == store.establish("sid-1") == ref
        assert store.establish("sid-2") != ref
        assert store.establish("sid-1", dead="another") == ref
        fresh = store.establish("sid-1", dead=ref)
        assert fresh != ref
        assert store.establish("sid-1", dead=ref) == store.find("sid-1") == fresh

    def test_records(self, store: Sessions) -> None:
        """What is read was written last, alone or among others; clearing says which records there were."""
        session, first, other = begin(store), make_record(), make_record("groq")
        for record in (first, other, second := make_record(ciphertext="second")):
            store.write(session, VISITOR, record)
        for providers in (SOME, ["openai"], ["groq"], []):
            found = store.read(session, VISITOR, providers).records
            both = {"openai": second, "groq": other}
            assert found == {name: both[name] for name in providers}
        assert store.clear(session, VISITOR, ["xai", "openai"]) == ["openai"]
        assert store.clear(session, VISITOR, ["openai"]) == []
        assert list(store.read(session, VISITOR, SOME).records) == ["groq"]
        assert store.clear(begin(store, "sid-2"), VISITOR, ["groq"]) == []

    def test_renewed_session_moves(self, store: Sessions) -> None:
        """After a renewal the new id, wherever it led, has everything and the old one nothing, then and later."""
        store.establish("sid-new")
        old = begin(store)
        store.write(old, ANN, record := make_record())
        store.renew(old, old.sid)
        assert store.find(old.sid) == old.ref
        for sid in ("sid-new", "sid-new", "sid-late"):
            store.renew(old, sid)
        new = SessionRef("sid-new", old.ref)
        assert store.find("sid-new") == old.ref
        assert store.find("sid-1") is None
        assert store.find("sid-late") != old.ref
        assert store.read(new, ANN, SOME).records == {"openai": record}
        for ended in (old, SessionRef("sid-late", old.ref)):
            assert not store.read(ended, ANN, SOME).alive
            with pytest.raises(SessionRequiredError):
                store.write(ended, ANN, make_record(ciphertext="late"))
            assert store.clear(ended, ANN, ["openai"]) == []
        assert store.read(new, ANN, SOME).records == {"openai": record}
        store.end(old)  # by a sign-out that was under way
        assert_ended(store, new)

    def test_first_callers_agree(self, store: Sessions) -> None:
        """Threads that establish one session at once, or hold a first text, get the same one."""
        store.find("warm up")
        for trial in range(10):
            name = f"trial {trial}"
            assert len(set(at_once(16, lambda _, name=name: store.establish(name)))) == 1
            texts = at_once(8, lambda number, name=name: store.documents.hold(name, f"by {number}"))
            assert len(set(texts)) == 1

    def test_ended_stays_ended(self, store: Sessions) -> None:
        """After the end nothing is there, late writes are refused, and the session id may begin again."""
        session = begin(store)
        store.write(session, VISITOR, record := make_record())
        store.end(session)
        store.end(session)
        store.record_verdict(session, "openai", verdict_for(record))
        store.renew(session, "sid-new")
        assert_ended(store, session)
        assert store.find("sid-new") != session.ref
        fresh = SessionRef("sid-1", store.establish("sid-1", dead=session.ref))
        assert fresh.ref != session.ref
        assert store.read(fresh, VISITOR, SOME) == SessionView({})
        store.write(fresh, VISITOR, record)
        assert_ended(store, session)

    def test_uses_do_not_prolong_a_session(self, make_store: MakeStore) -> None:
        """However often a key is counted, the session ends as if it was not, and does not come back."""
        store = make_store(ttl=timedelta(seconds=1), max_age=DAY)
        session, record = begin(store), make_record()
        store.write(session, VISITOR, record)
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            store.count(use_of(session, record))
            time.sleep(0.05)
        assert store.read(session, VISITOR, SOME).records == {}
        assert store.find(session.sid) is None

    def test_lifetime_slides(self, make_store: MakeStore) -> None:
        """Reading keeps a session and its id for longer than one lifetime."""
        store = make_store(ttl=timedelta(seconds=3), max_age=DAY)
        session = begin(store)
        store.write(session, VISITOR, make_record())
        for _ in range(5):
            time.sleep(0.7)
            assert store.read(session, VISITOR, ["openai"]).records
        assert store.find(session.sid) == session.ref

    def test_forked_worker(self, store: Sessions) -> None:
        """A worker that was forked from a process in use shares no connection with it."""
        sessions = [begin(store, f"sid-{number}") for number in range(2)]
        for number, session in enumerate(sessions):
            store.write(session, VISITOR, make_record(ciphertext=str(number)))

        def consistent(number: int) -> bool:
            views = (store.read(sessions[number], VISITOR, ["openai"]) for _ in range(150))
            return all(view.records["openai"].ciphertext == str(number) for view in views)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
            child = os.fork()
        if child == 0:
            signal.alarm(30)  # a shared connection may hang
            try:
                os._exit(0 if consistent(1) else 1)
            finally:
                os._exit(2)
        assert consistent(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def test_many_writers(self, make_store: MakeStore) -> None:
        """Of 64 writers to one session at once, in two processes' stores, each is answered and none is lost."""
        stores = [make_store(ttl=DAY, max_age=30 * DAY) for _ in range(2)]
        session, providers = begin(stores[0]), [f"p{number}" for number in range(64)]

        def write(number: int) -> None:
            stores[number % 2].write(session, VISITOR, make_record(providers[number]))

        at_once(64, write)
        assert sorted(stores[1].read(session, VISITOR, providers).records) == sorted(providers)

    def test_a_lost_answer(self, store: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
        """A change whose answer was lost, and that is tried again, is answered as the first time."""
        session, swap = begin(store), store.documents.swap

        def forgetful(*args: Any) -> bool:
            swap(*args)
            return swap(*args)

        monkeypatch.setattr(store.documents, "swap", forgetful)
        store.write(session, VISITOR, make_record())
        assert store.clear(session, VISITOR, ["openai"]) == ["openai"]
        assert store.read(session, VISITOR, SOME) == SessionView()

    def test_write_under_way_during_the_end(self, store: Sessions) -> None:
        """A write that overlaps the end is refused or wiped, never found afterwards."""
        for trial in range(25):
            session = begin(store, f"sid-{trial}")
            barrier = threading.Barrier(5)

            def write(
                name: str, session: SessionRef = session, barrier: threading.Barrier = barrier
            ) -> None:
                barrier.wait()
                try:
                    for _ in range(4):
                        store.write(session, VISITOR, make_record(name))
                except SessionRequiredError:
                    return

            with ThreadPoolExecutor(4) as pool:
                writers = [pool.submit(write, f"p{number}") for number in range(4)]
                barrier.wait()
                store.end(session)
            for writer in writers:
                writer.result()
            assert_ended(store, session)

    def test_first_canary_stays(self, store: Sessions) -> None:
        """The first text under a name stays until it is replaced."""
        assert store.documents.hold("key", "first") == "first"
        assert store.documents.hold("key", "second") == "first"
        assert store.documents.hold("other", "second") == "second"
        assert store.documents.hold("key", "third", replace=True) == "third"
        assert store.documents.hold("new", "third", replace=True) == "third"
        assert store.documents.hold("key", "fourth") == "third"

    def test_faults_of_the_operators_keys(self, store: Sessions) -> None:
        """A fault of a key is found by every process, replaced by the next one, and gone after a good check."""
        noting, fields = Faults(store.documents), {"api_key": Secret("an-operators-key")}
        key = Credential("openai", Tier.ENV, "system", fields, "https://api.openai.com/v1")
        for verdict, fault in (
            (Verdict.VALID_NO_CREDIT, "no_credit"),
            (Verdict.INVALID, "rejected"),
            (Verdict.VALID, None),
            (Verdict.VALID, None),
            (Verdict.UNREACHABLE, "unreachable"),
        ):
            noting.note(key, verdict)
            assert noting.find(key) == fault
            assert Faults(store.documents).find(key) == fault
        other = replace(key, fields={"api_key": Secret("another-operators-key")})
        assert noting.find(other) is None
