"""Facts about sessions on every store; each store's test file only builds the store."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, TypeVar

import msgspec
import pytest

from flask_byok.errors import SessionRequiredError
from flask_byok.keys.sessions import Documents, Sessions, SessionView
from flask_byok.model.credential import (
    CredentialRecord,
    RecordedVerdict,
    SessionUse,
    Verdict,
    new_version,
    utcnow,
)
from flask_byok.model.owner import SessionRef
from tests.documents import with_record

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
#: Opens a store as one process does, given its clock.
MakeDocuments = Callable[[Callable[[], float]], Documents]


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


def verdict_for(record: CredentialRecord, verdict: Verdict = Verdict.VALID) -> RecordedVerdict:
    """Make a verdict about this version of a record."""
    return RecordedVerdict(verdict, utcnow(), record.version)


def use_of(session: SessionRef, record: CredentialRecord, **facts: int) -> SessionUse:
    """Make a use of this version of a record."""
    facts = {"uses": 1, "last_used_at": AT} | facts
    return SessionUse(session.ref, record.provider, record.version, **facts)


def moment(milliseconds: int) -> datetime:
    """Return a time that was given in milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def overwrite(store: Sessions, session: SessionRef, raw: bytes) -> None:
    """Put something else in place of the visitor's openai record."""
    revision, body = store.documents.load(session.ref) or ("", b"")
    changed = with_record(body, (session.ref, "v", "openai"), raw)
    assert store.documents.swap(session.ref, revision, "f" * 16, changed, 3600)


def at_once(count: int, call: Callable[[int], T]) -> list[T]:
    """Make calls at the same moment, numbered from 0, and return what they return."""
    barrier = threading.Barrier(count)

    def wait_and_call(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_call, range(count)))


class SessionContract:
    """What sessions do on every store. A subclass offers ``make_documents``."""

    @pytest.fixture
    def make_store(self, make_documents: MakeDocuments) -> MakeStore:
        """Make stores as in different processes."""

        def make(*, clock: Callable[[], float] = time.time, **lifetime: timedelta) -> Sessions:
            return Sessions(make_documents(clock), clock=clock, **lifetime)

        return make

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Sessions:
        """Make a store with an ordinary lifetime."""
        return make_store(ttl=DAY, max_age=30 * DAY)

    def test_ref_is_found_again(self, store: Sessions) -> None:
        """A session id leads to the same ref each time, and none leads nowhere."""
        assert store.find("sid-1") is None
        ref = store.establish("sid-1")
        assert store.find("sid-1") == store.establish("sid-1") == ref
        assert store.establish("sid-2") != ref

    def test_first_callers_agree(self, store: Sessions) -> None:
        """Threads that establish one session at once, or hold a first text, get the same one."""
        store.find("warm up")
        for trial in range(10):
            name = f"trial {trial}"
            assert len(set(at_once(16, lambda _, name=name: store.establish(name)))) == 1
            texts = at_once(8, lambda number, name=name: store.hold(name, f"by {number}"))
            assert len(set(texts)) == 1

    def test_dead_ref_is_replaced(self, store: Sessions) -> None:
        """Only the ref that is named as dead is replaced, and only once."""
        ref = store.establish("sid-1")
        assert store.establish("sid-1", dead="another") == ref
        fresh = store.establish("sid-1", dead=ref)
        assert fresh != ref
        assert store.establish("sid-1", dead=ref) == store.find("sid-1") == fresh

    def test_record_comes_back_whole(self, store: Sessions) -> None:
        """What is read equals what was written, asked for alone or among others."""
        session, record = begin(store), make_record()
        store.write(session, VISITOR, record)
        for providers in (SOME, ["openai"]):
            assert store.read(session, VISITOR, providers).records == {"openai": record}
        assert store.read(session, VISITOR, ["groq"]).records == {}
        assert store.read(session, VISITOR, []).records == {}

    def test_last_write_wins(self, store: Sessions) -> None:
        """A second write replaces the record and leaves those of other providers alone."""
        session, other = begin(store), make_record("groq")
        for record in (make_record(), other, second := make_record(ciphertext="second")):
            store.write(session, VISITOR, record)
        assert store.read(session, VISITOR, SOME).records == {"openai": second, "groq": other}

    def test_clear_names_what_was_there(self, store: Sessions) -> None:
        """Clearing deletes the named records, says which there were, and may be repeated."""
        session = begin(store)
        store.write(session, VISITOR, make_record())
        store.write(session, VISITOR, make_record("groq"))
        assert store.clear(session, VISITOR, ["xai", "openai"]) == ["openai"]
        assert store.clear(session, VISITOR, ["openai"]) == []
        assert list(store.read(session, VISITOR, SOME).records) == ["groq"]
        assert store.clear(begin(store, "sid-2"), VISITOR, ["groq"]) == []

    def test_names_of_another_session(self, store: Sessions) -> None:
        """A ref under another session's id shows nothing, takes nothing and harms nothing."""
        victim, thief = begin(store, "sid-1"), begin(store, "sid-2")
        store.write(victim, VISITOR, make_record())
        mixed = SessionRef(thief.sid, victim.ref)
        assert not store.read(mixed, VISITOR, SOME).alive
        assert store.clear(mixed, VISITOR, ["openai"]) == []
        with pytest.raises(SessionRequiredError):
            store.write(mixed, VISITOR, make_record(ciphertext="planted"))
        assert store.read(victim, VISITOR, SOME).records["openai"].ciphertext == "sealed"

    def test_odd_provider_names(self, store: Sessions) -> None:
        """A record is stored, found and cleared under any provider's name."""
        session = begin(store)
        for provider in ("a:b", "_sid", "Ünï-✓ 😀", "a'b\"c%s{0}", "x" * 90):
            store.write(session, VISITOR, record := make_record(provider))
            assert store.read(session, VISITOR, [provider, "openai"]).records == {provider: record}
            assert store.clear(session, VISITOR, ["openai", provider]) == [provider]

    def test_visitor_signs_in(self, store: Sessions) -> None:
        """A user who signs in sees the visitor's records apart from the own, and may clear them."""
        session, planted, own = begin(store), make_record(), make_record(ciphertext="own")
        store.write(session, VISITOR, planted)
        view = store.read(session, ANN, SOME)
        assert (view.records, view.visitor_records) == ({}, {"openai": planted})
        store.write(session, ANN, own)
        view = store.read(session, ANN, SOME)
        assert (view.records, view.visitor_records) == ({"openai": own}, {"openai": planted})
        assert store.clear(session, ANN, ["openai"], visitor=True) == ["openai"]
        view = store.read(session, ANN, SOME)
        assert (view.records, view.visitor_records) == ({"openai": own}, {})

    def test_adoption(self, store: Sessions) -> None:
        """What the visitor left becomes the user's in one step, unless the user has one and keeps it."""
        session, planted = begin(store), make_record()
        store.write(session, VISITOR, planted)
        adopted = dataclasses.replace(planted, ciphertext="adopted")
        assert store.adopt(session, ANN, adopted, replace=False) == "adopted"
        view = store.read(session, ANN, SOME)
        assert (view.records, view.visitor_records) == ({"openai": adopted}, {})
        assert store.adopt(session, ANN, adopted, replace=False) in ("gone", "kept")
        assert store.read(session, ANN, SOME).records == {"openai": adopted}
        session = begin(store, "sid-2")
        store.write(session, VISITOR, planted)
        store.write(session, ANN, own := make_record(ciphertext="own"))
        assert store.adopt(session, ANN, adopted, replace=False) == "kept"
        assert store.read(session, ANN, SOME) == SessionView({"openai": own}, {"openai": planted})
        assert store.adopt(session, ANN, adopted, replace=True) == "adopted"
        assert store.read(session, ANN, SOME) == SessionView({"openai": adopted})

    def test_adoption_of_what_is_gone(self, store: Sessions) -> None:
        """A visitor's record that was cleared or changed meanwhile is not adopted; nor in an ended session."""
        session, planted = begin(store), make_record()
        store.write(session, VISITOR, make_record())
        assert store.adopt(session, ANN, planted, replace=True) == "gone"
        assert store.read(session, ANN, SOME).records == {}
        store.end(session)
        assert store.adopt(session, ANN, planted, replace=True) == "gone"

    def test_adoption_among_sets_and_clears(self, store: Sessions) -> None:
        """While a record is adopted, no other thread's set is lost and no clear is undone."""
        for trial in range(40):
            session = begin(store, f"sid-{trial}")
            planted = make_record()
            store.write(session, VISITOR, planted)
            own = make_record(ciphertext="own")
            adopted = dataclasses.replace(planted, ciphertext="adopted")
            with ThreadPoolExecutor(2) as pool:
                adoption = pool.submit(store.adopt, session, ANN, adopted, replace=False)
                if trial % 2:
                    pool.submit(store.write, session, ANN, own).result()
                    assert store.read(session, ANN, SOME).records == {"openai": own}
                else:
                    gone = pool.submit(store.clear, session, ANN, ["openai"], visitor=True)
                    there = store.read(session, ANN, SOME).records
                    assert gone.result() == [] or adoption.result() == "gone"
                    assert there in ({}, {"openai": adopted})
                adoption.result()

    @pytest.mark.parametrize("visitor", [False, True])
    def test_reseal(self, store: Sessions, visitor: bool) -> None:
        """A record takes the place of one of its version, whose verdict stays, and of no other one."""
        session, before = begin(store), make_record()
        theirs = VISITOR if visitor else ANN
        store.write(session, theirs, before)
        store.write(session, theirs, other := make_record("groq"))
        store.record_verdict(session, "openai", good := verdict_for(before))
        after = dataclasses.replace(before, ciphertext="resealed")
        assert store.reseal(session, theirs, after)
        view = store.read(session, ANN, SOME)
        found = view.visitor_records if visitor else view.records
        assert found == {"openai": dataclasses.replace(after, validity=good), "groq": other}
        assert not store.reseal(session, ANN, make_record())
        assert store.read(session, ANN, SOME) == view

    @pytest.mark.parametrize("visitor", [False, True])
    def test_removal(self, store: Sessions, visitor: bool) -> None:
        """Records of just these versions go, with what is known about them."""
        session, record, other = begin(store), make_record(), make_record("groq")
        theirs = VISITOR if visitor else ANN
        for each in (dataclasses.replace(record, validity=verdict_for(record)), other):
            store.write(session, theirs, each)
        store.remove(session, ANN, [dataclasses.replace(record, version=other.version)])
        store.remove(session, ANN, [record, make_record("xai")])
        view = store.read(session, ANN, SOME)
        assert (view.visitor_records if visitor else view.records) == {"groq": other}
        store.write(session, theirs, record)
        store.remove(session, ANN, [record, other])
        assert store.read(session, ANN, SOME) == SessionView()

    def test_marks_of_what_is_leaving(self, store: Sessions) -> None:
        """Records of both sides are marked in one step, of their version alone, and stay so when resealed."""
        session, left, own = begin(store), make_record(label='"leaving":true'), make_record("groq")
        store.over = lambda _identity, _versions: set()
        store.write(session, VISITOR, left)
        store.write(session, ANN, own)
        late = dataclasses.replace(own, version="another")
        assert store.mark_leaving(session, ANN, [late, make_record("xai")]) == []
        for _ in range(2):
            marked = store.mark_leaving(session, ANN, [left, late, own])
            assert [one.version for one in marked] == [left.version, own.version]
        view = store.read(session, ANN, SOME)
        assert view.visitor_records == {"openai": dataclasses.replace(left, leaving=True)}
        assert view.records == {"groq": dataclasses.replace(own, leaving=True)}
        assert store.reseal(session, ANN, own)
        assert store.read(session, ANN, SOME) == view

    def test_nothing_leaves_without_accounts(self, store: Sessions) -> None:
        """Without accounts, and for a visitor, no record is marked."""
        session, record = begin(store), make_record()
        store.write(session, VISITOR, record)
        assert store.mark_leaving(session, ANN, [record]) == []
        store.over = lambda _identity, versions: set(versions)
        assert store.mark_leaving(session, VISITOR, [record]) == []
        assert store.read(session, VISITOR, SOME).records == {"openai": record}

    def test_what_is_over_is_not_read(self, store: Sessions) -> None:
        """A leaving record whose version is over is neither read nor kept; the accounts are asked for no other."""
        session, left, own = begin(store), make_record(), make_record("groq")
        stays = make_record("xai")
        asked: list[tuple[str, set[str]]] = []

        def over(identity: str, versions: Collection[str]) -> set[str]:
            asked.append((identity, set(versions)))
            return {left.version, own.version}

        store.over = over
        store.write(session, VISITOR, left)
        for record in (own, stays):
            store.write(session, ANN, record)
        assert store.read(session, ANN, SOME).records == {"groq": own}
        assert asked == []
        store.mark_leaving(session, ANN, [left, own, stays])
        staying = {"xai": dataclasses.replace(stays, leaving=True)}
        for _ in range(2):
            assert store.read(session, ANN, [*SOME, "xai"]) == SessionView(staying)
        versions = {record.version for record in (left, own, stays)}
        assert asked == [(ANN, versions), (ANN, {stays.version})]

    def test_marking_makes_the_session_ones_own(self, store: Sessions) -> None:
        """A user who marks a visitor's record owns the session from then on."""
        session, record = begin(store), make_record()
        store.over = lambda _identity, _versions: set()
        store.write(session, VISITOR, record)
        assert store.mark_leaving(session, ANN, [record])
        assert store.clear(session, VISITOR, ["openai"]) == []
        self.assert_ended(store, session)

    @pytest.mark.parametrize("change", ["reseal", "remove", "mark_leaving"])
    def test_a_strangers_change_ends_the_session(self, store: Sessions, change: str) -> None:
        """Another identity changes nothing and ends the session; after the end nothing is changed."""
        session, record = begin(store), make_record()
        store.over = lambda _identity, _versions: set()
        store.write(session, ANN, record)
        argument = record if change == "reseal" else [record]
        assert not getattr(store, change)(session, BEN, argument)
        self.assert_ended(store, session)
        assert not getattr(store, change)(session, ANN, argument)

    def test_removal_among_changes(self, store: Sessions) -> None:
        """A record that is removed while others seal and mark it stays away."""
        store.over = lambda _identity, _versions: set()
        for trial in range(10):
            session, record = begin(store, f"sid-{trial}"), make_record()
            store.write(session, ANN, record)
            with ThreadPoolExecutor(8) as pool:
                for _ in range(3):
                    pool.submit(store.reseal, session, ANN, record)
                    pool.submit(store.mark_leaving, session, ANN, [record])
                    pool.submit(store.remove, session, ANN, [record])
            assert store.read(session, ANN, SOME).records == {}

    @pytest.mark.parametrize("stranger", [VISITOR, BEN])
    @pytest.mark.parametrize("by", ["read", "write", "clear"])
    def test_strangers(self, store: Sessions, stranger: str, by: str) -> None:
        """A user's session ends when another identity reads, writes or clears in it."""
        session = begin(store)
        store.write(session, ANN, make_record())
        if by == "read":
            assert not store.read(session, stranger, ["openai"]).alive
        elif by == "clear":
            assert store.clear(session, stranger, ["openai"]) == []
        else:
            with pytest.raises(SessionRequiredError):
                store.write(session, stranger, make_record())
        self.assert_ended(store, session)

    def test_a_verdict_of_who_was_here_before(self, store: Sessions) -> None:
        """A verdict of a visitor's call that comes after a sign-in is about that key, and ends nothing."""
        session, left, own = begin(store), make_record(), make_record("groq")
        store.write(session, VISITOR, left)
        store.write(session, ANN, own)
        store.renew(session, "sid-new")
        for verdict in (Verdict.VALID, Verdict.INVALID):
            store.record_verdict(session, "openai", bad := verdict_for(left, verdict))
        view = store.read(new := SessionRef("sid-new", session.ref), ANN, SOME)
        assert view.records == {"groq": own}
        assert view.visitor_records == {"openai": dataclasses.replace(left, validity=bad)}
        assert store.adopt(new, ANN, left, replace=False) == "adopted"
        store.record_verdict(session, "openai", good := verdict_for(left))
        assert store.read(new, ANN, ["openai"]).records == {
            "openai": dataclasses.replace(left, validity=good)
        }

    def test_ended_stays_ended(self, store: Sessions) -> None:
        """After the end nothing is there, late writes are refused, and the session id may begin again."""
        session = begin(store)
        store.write(session, VISITOR, record := make_record())
        store.end(session)
        store.end(session)
        store.record_verdict(session, "openai", verdict_for(record))
        store.renew(session, "sid-new")
        self.assert_ended(store, session)
        assert store.find("sid-new") != session.ref
        fresh = SessionRef("sid-1", store.establish("sid-1", dead=session.ref))
        assert fresh.ref != session.ref
        assert store.read(fresh, VISITOR, SOME) == SessionView({})
        store.write(fresh, VISITOR, record)
        self.assert_ended(store, session)

    def test_renewed_session_moves(self, store: Sessions) -> None:
        """After a renewal the new id, wherever it led, has everything and the old one nothing, then and later."""
        store.establish("sid-new")
        old = begin(store)
        store.write(old, ANN, record := make_record())
        store.renew(old, "sid-new")
        store.renew(old, "sid-new")
        new = SessionRef("sid-new", old.ref)
        assert store.find("sid-new") == old.ref
        assert store.find("sid-1") is None
        assert store.read(new, ANN, SOME).records == {"openai": record}
        assert not store.read(old, ANN, SOME).alive
        with pytest.raises(SessionRequiredError):
            store.write(old, ANN, make_record(ciphertext="late"))
        assert store.clear(old, ANN, ["openai"]) == []
        assert store.read(new, ANN, SOME).records == {"openai": record}

    def test_renewal_under_the_same_id(self, store: Sessions) -> None:
        """Renewing a session under the id that it has changes nothing."""
        session = begin(store)
        store.write(session, VISITOR, make_record())
        store.renew(session, session.sid)
        assert store.find(session.sid) == session.ref
        assert list(store.read(session, VISITOR, SOME).records) == ["openai"]

    def test_second_renewal_elsewhere(self, store: Sessions) -> None:
        """Of two renewals of one session id the first one counts."""
        old = begin(store)
        store.write(old, VISITOR, make_record())
        store.renew(old, "sid-a")
        store.renew(old, "sid-b")
        assert list(store.read(SessionRef("sid-a", old.ref), VISITOR, SOME).records) == ["openai"]
        assert not store.read(SessionRef("sid-b", old.ref), VISITOR, SOME).alive
        assert store.find("sid-b") != old.ref

    def test_end_of_a_renewed_session(self, store: Sessions) -> None:
        """A logout that was under way during a renewal ends the renewed session too."""
        old = begin(store)
        store.write(old, VISITOR, make_record())
        store.renew(old, "sid-new")
        store.end(old)
        self.assert_ended(store, SessionRef("sid-new", old.ref))

    def test_verdict_dies_with_its_version(self, store: Sessions) -> None:
        """A verdict shows beside the version that it is about, and takes nothing from another's."""
        session, record = begin(store), make_record()
        store.write(session, VISITOR, record)
        store.record_verdict(session, "openai", good := verdict_for(record))
        assert store.read(session, VISITOR, SOME).records["openai"].current_validity() == good
        store.write(session, VISITOR, make_record(ciphertext="second"))
        assert store.read(session, VISITOR, SOME).records["openai"].validity is None
        store.record_verdict(session, "openai", good)
        assert store.read(session, VISITOR, SOME).records["openai"].current_validity() is None
        new = make_record()
        store.write(
            session,
            VISITOR,
            new := dataclasses.replace(new, validity=verdict_for(new, Verdict.INVALID)),
        )
        store.record_verdict(session, "openai", good)
        assert store.read(session, VISITOR, SOME).records == {"openai": new}
        store.clear(session, VISITOR, ["openai"])
        store.record_verdict(session, "openai", good)
        store.write(session, VISITOR, record)
        assert store.read(session, VISITOR, SOME).records == {"openai": record}

    def test_what_learnt_nothing_lifts_no_refusal(self, store: Sessions) -> None:
        """A refusal gives way to what was learnt of that version, and to nothing else; the count stays."""
        session = begin(store)
        for known, late in product(
            Verdict, (Verdict.UNREACHABLE, Verdict.UNCHECKED, Verdict.VALID)
        ):
            store.write(session, ANN, record := make_record())
            store.count(use_of(session, record))
            store.record_verdict(session, "openai", first := verdict_for(record, known))
            store.record_verdict(session, "openai", second := verdict_for(record, late))
            stays = known.valid is False and late.valid is None
            found = store.read(session, ANN, ["openai"]).records["openai"]
            assert (found.validity, found.usage_count) == (first if stays else second, 1)

    def test_uses_add_up(self, store: Sessions) -> None:
        """A record knows how often it was used and when last, through verdicts and resealing."""
        session, record, other = begin(store), make_record(), make_record("groq")
        for each in (record, other):
            store.write(session, ANN, each)
        store.count(use_of(session, record, uses=2, last_used_at=AT + 5))
        store.count(use_of(session, record, uses=3))
        used = dataclasses.replace(record, usage_count=5, last_used_at=moment(AT + 5))
        assert store.read(session, ANN, SOME).records == {"openai": used, "groq": other}
        store.record_verdict(session, "openai", good := verdict_for(record))
        store.count(use_of(session, record, last_used_at=AT + 7))
        used = dataclasses.replace(used, usage_count=6, last_used_at=moment(AT + 7), validity=good)
        assert store.read(session, ANN, ["openai"]).records == {"openai": used}
        store.record_verdict(session, "openai", bad := verdict_for(record, Verdict.INVALID))
        resealed = dataclasses.replace(used, ciphertext="resealed", validity=bad)
        assert store.reseal(session, ANN, dataclasses.replace(record, ciphertext="resealed"))
        assert store.read(session, ANN, ["openai"]).records == {"openai": resealed}

    def test_a_late_use_finds_its_version_or_nothing(self, store: Sessions) -> None:
        """It neither brings a cleared record back nor counts for the next one, not even for the same again."""
        session, old, new = begin(store), make_record(), make_record()
        for each in (old, new):
            store.write(session, VISITOR, each)
            store.count(use_of(session, old))
        assert store.read(session, VISITOR, SOME).records == {"openai": new}
        store.count(use_of(session, new))
        store.clear(session, VISITOR, ["openai"])
        store.count(use_of(session, new))
        assert store.read(session, VISITOR, SOME).records == {}
        store.write(session, VISITOR, new)
        assert store.read(session, VISITOR, SOME).records == {"openai": new}

    def test_a_use_after_the_end(self, store: Sessions) -> None:
        """An ended session stays ended, a renewed one counts uses of the old id, an unknown ref is no error."""
        session, record = begin(store), make_record()
        store.write(session, ANN, record)
        store.renew(session, "sid-new")
        store.count(use_of(session, record))
        new = SessionRef("sid-new", session.ref)
        assert store.read(new, ANN, SOME).records["openai"].usage_count == 1
        store.end(new)
        store.count(use_of(session, record))
        self.assert_ended(store, new)
        store.count(use_of(SessionRef("sid-2", "never there"), record))

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

    @pytest.mark.parametrize("replace", [False, True])
    def test_adoption_takes_verdict_and_uses_along(self, store: Sessions, replace: bool) -> None:
        """What is known about a version stays with it, and what was known about the other goes."""
        session, planted, own = begin(store), make_record(), make_record()
        store.write(session, VISITOR, planted)
        store.record_verdict(session, "openai", good := verdict_for(planted))
        if replace:
            store.write(
                session, ANN, dataclasses.replace(own, validity=verdict_for(own, Verdict.INVALID))
            )
            store.count(use_of(session, own, uses=40))
        store.count(use_of(session, planted, uses=2))
        waiting = store.read(session, ANN, SOME).visitor_records["openai"]
        assert (waiting.usage_count, waiting.validity) == (2, good)
        adopted = dataclasses.replace(waiting, ciphertext="adopted")
        assert store.adopt(session, ANN, adopted, replace=replace) == "adopted"
        view = store.read(session, ANN, SOME)
        assert (view.records, view.visitor_records) == ({"openai": adopted}, {})
        store.count(use_of(session, planted))
        assert store.read(session, ANN, SOME).records["openai"].usage_count == 3

    def test_uses_among_changes(self, store: Sessions) -> None:
        """While a record is adopted, resealed and checked, no use is lost; none counts for its successor."""
        for trial in range(12):
            session, record, next_one = begin(store, f"sid-{trial}"), make_record(), make_record()
            store.write(session, VISITOR, record)

            def count(
                _: int, session: SessionRef = session, record: CredentialRecord = record
            ) -> None:
                store.count(use_of(session, record))

            with ThreadPoolExecutor(3) as pool:
                counting = [pool.submit(count, number) for number in range(16)]
                assert store.adopt(session, ANN, record, replace=False) == "adopted"
                store.reseal(session, ANN, record)
                store.record_verdict(session, "openai", verdict_for(record))
                for each in counting:
                    each.result()
                assert store.read(session, ANN, SOME).records["openai"].usage_count == 16
                counting = [pool.submit(count, number) for number in range(8)]
                store.write(session, ANN, next_one)
                for each in counting:
                    each.result()
            assert store.read(session, ANN, SOME).records == {"openai": next_one}

    def test_lifetime_slides(self, make_store: MakeStore) -> None:
        """Reading keeps a session and its id for longer than one lifetime."""
        store = make_store(ttl=timedelta(seconds=3), max_age=DAY)
        session = begin(store)
        store.write(session, VISITOR, make_record())
        for _ in range(5):
            time.sleep(0.7)
            assert store.read(session, VISITOR, ["openai"]).records
        assert store.find(session.sid) == session.ref

    @pytest.mark.parametrize("by", ["read", "write"])
    def test_use_does_not_keep_it_for_ever(self, make_store: MakeStore, by: str) -> None:
        """A session ends at its greatest age, however much it is used."""
        clock = Clock()
        store = make_store(ttl=DAY, max_age=2 * DAY, clock=clock)
        session = begin(store)
        for _ in range(3):
            store.write(session, VISITOR, make_record())
            assert store.read(session, VISITOR, SOME).records
            clock.forward(DAY * 0.66)
        clock.forward(DAY * 0.05)
        if by == "read":
            assert not store.read(session, VISITOR, SOME).alive
        else:
            with pytest.raises(SessionRequiredError):
                store.write(session, VISITOR, make_record())
        self.assert_ended(store, session)

    def test_garbage_is_an_unreadable_record(self, store: Sessions) -> None:
        """What cannot be read, or is another provider's, shows as a record that does not open; the others stay."""
        session, other = begin(store), make_record("groq")
        store.write(session, VISITOR, other)
        moved = msgspec.json.encode(other)
        for raw in (b"", b"{", b"[]", b'{"provider": 1}', b"byok1.x.f.y", moved):
            store.write(session, VISITOR, make_record())
            overwrite(store, session, raw)
            records = store.read(session, VISITOR, SOME).records
            assert (records["openai"].provider, records["openai"].ciphertext) == ("openai", "")
            assert records["groq"] == other
            assert store.clear(session, VISITOR, ["openai"]) == ["openai"]

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

    def test_damaged_session(self, store: Sessions) -> None:
        """A session that cannot be read has ended, and its session id can begin again."""
        session = begin(store)
        revision, _ = store.documents.load(session.ref) or ("", b"")
        store.documents.swap(session.ref, revision, "f" * 16, b"\xc1 damaged", 3600)
        self.assert_ended(store, session)
        assert store.read(begin(store), VISITOR, SOME).alive

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
            self.assert_ended(store, session)

    def test_first_canary_stays(self, store: Sessions) -> None:
        """The first text under a name stays until it is replaced."""
        assert store.hold("key", "first") == "first"
        assert store.hold("key", "second") == "first"
        assert store.hold("other", "second") == "second"
        assert store.hold("key", "third", replace=True) == "third"
        assert store.hold("new", "third", replace=True) == "third"
        assert store.hold("key", "fourth") == "third"

    def assert_ended(self, store: Sessions, session: SessionRef) -> None:
        """Fail unless the session holds nothing and takes nothing, for any identity."""
        assert store.find(session.sid) != session.ref
        for identity in (VISITOR, ANN, BEN):
            view = store.read(session, identity, SOME)
            assert not view.alive
            assert not view.records
            assert not view.visitor_records
            with pytest.raises(SessionRequiredError):
                store.write(session, identity, make_record())
        assert store.clear(session, ANN, ["openai"]) == []
        assert not store.read(session, ANN, SOME).alive
