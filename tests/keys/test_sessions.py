"""What a session may do, which is the same on every store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import product

import msgspec
import pytest

from flask_byok.errors import SessionRequiredError
from flask_byok.keys.documents import SessionView
from flask_byok.keys.sessions import Sessions
from flask_byok.model.credential import CredentialRecord, Verdict
from flask_byok.model.owner import SessionRef
from flask_byok.storage.sql import SqlDocuments
from tests.documents import with_record
from tests.storage.contract import (
    ANN,
    AT,
    BEN,
    DAY,
    SOME,
    VISITOR,
    Clock,
    assert_ended,
    begin,
    make_record,
    use_of,
    verdict_for,
)


@pytest.fixture
def store(sqlite_url: str) -> Sessions:
    """Make a store with an ordinary lifetime."""
    return Sessions(SqlDocuments(sqlite_url), ttl=DAY, max_age=30 * DAY)


def test_names_of_another_session(store: Sessions) -> None:
    """A ref under another session's id shows nothing, takes nothing and harms nothing."""
    victim, thief = begin(store, "sid-1"), begin(store, "sid-2")
    store.write(victim, VISITOR, make_record())
    mixed = SessionRef(thief.sid, victim.ref)
    assert not store.read(mixed, VISITOR, SOME).alive
    assert store.clear(mixed, VISITOR, ["openai"]) == []
    with pytest.raises(SessionRequiredError):
        store.write(mixed, VISITOR, make_record(ciphertext="planted"))
    assert store.read(victim, VISITOR, SOME).records["openai"].ciphertext == "sealed"


def test_visitor_signs_in(store: Sessions) -> None:
    """A user sees the visitor's records apart from the own, may clear them, and adopts them in one step."""
    session, planted, own = begin(store), make_record(), make_record(ciphertext="own")
    adopted = dataclasses.replace(planted, ciphertext="adopted")
    store.write(session, VISITOR, planted)
    assert store.read(session, ANN, SOME) == SessionView({}, {"openai": planted})
    store.write(session, ANN, own)
    assert store.adopt(session, ANN, adopted, replace=False) == "kept"
    assert store.read(session, ANN, SOME) == SessionView({"openai": own}, {"openai": planted})
    assert store.adopt(session, ANN, adopted, replace=True) == "adopted"
    assert store.adopt(session, ANN, adopted, replace=True) == "gone"
    assert store.read(session, ANN, SOME) == SessionView({"openai": adopted})
    session = begin(store, "sid-2")
    for record in (planted, make_record("groq")):
        store.write(session, VISITOR, record)
    other = dataclasses.replace(adopted, version="another")
    assert store.adopt(session, ANN, other, replace=True) == "gone"
    assert store.adopt(session, ANN, adopted, replace=False) == "adopted"
    assert store.clear(session, ANN, ["groq"], visitor=True) == ["groq"]
    assert store.read(session, ANN, SOME) == SessionView({"openai": adopted})
    store.end(session)
    assert store.adopt(session, ANN, planted, replace=True) == "gone"


STRANGERS = [
    *product((VISITOR, BEN), ("read", "write", "clear")),
    *((BEN, by) for by in ("reseal", "remove", "mark_leaving")),
]


@pytest.mark.parametrize(("stranger", "by"), STRANGERS)
@pytest.mark.parametrize("claimed_by", ["write", "mark_leaving"])
def test_strangers(store: Sessions, claimed_by: str, stranger: str, by: str) -> None:
    """A session that a user has written or marked in ends when another identity does anything there."""
    store = dataclasses.replace(store, over=lambda _identity, _versions: set())
    session, record = begin(store), make_record()
    store.write(session, ANN if claimed_by == "write" else VISITOR, record)
    if claimed_by == "mark_leaving":
        assert store.mark_leaving(session, ANN, [record])
    if by == "read":
        assert not store.read(session, stranger, SOME).alive
    elif by == "write":
        with pytest.raises(SessionRequiredError):
            store.write(session, stranger, record)
    elif by == "clear":
        assert store.clear(session, stranger, SOME) == []
    else:
        argument = record if by == "reseal" else [record]
        assert not getattr(store, by)(session, stranger, argument)
        assert_ended(store, session)
        assert not getattr(store, by)(session, ANN, argument)
    assert_ended(store, session)


@pytest.mark.parametrize("visitor", [False, True])
def test_reseal(store: Sessions, visitor: bool) -> None:
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
def test_removal(store: Sessions, visitor: bool) -> None:
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


def test_marks_of_what_is_leaving(store: Sessions) -> None:
    """With accounts a user's records of both sides are marked in one step, of their version alone, and stay so."""
    session, left, own = begin(store), make_record(label='"leaving":true'), make_record("groq")
    store.write(session, VISITOR, left)
    assert store.mark_leaving(session, ANN, [left]) == []
    store = dataclasses.replace(store, over=lambda _identity, _versions: set())
    assert store.mark_leaving(session, VISITOR, [left]) == []
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


def test_verdict_dies_with_its_version(store: Sessions) -> None:
    """A verdict shows beside the version that it is about, and takes nothing from another's."""
    session, record = begin(store), make_record()
    store.write(session, VISITOR, record)
    store.record_verdict(session, "openai", good := verdict_for(record))
    assert store.read(session, VISITOR, SOME).records["openai"].current_validity() == good
    new = make_record()
    for second in (new, dataclasses.replace(new, validity=verdict_for(new, Verdict.INVALID))):
        store.write(session, VISITOR, second)
        store.record_verdict(session, "openai", good)
        assert store.read(session, VISITOR, SOME).records == {"openai": second}
    store.clear(session, VISITOR, ["openai"])
    store.record_verdict(session, "openai", good)
    store.write(session, VISITOR, record)
    assert store.read(session, VISITOR, SOME).records == {"openai": record}


def test_what_learnt_nothing_lifts_no_refusal(store: Sessions) -> None:
    """A refusal gives way to what was learnt of that version, and to nothing else; the count stays."""
    session = begin(store)
    for known, late in product(Verdict, (Verdict.UNREACHABLE, Verdict.UNCHECKED, Verdict.VALID)):
        store.write(session, ANN, record := make_record())
        store.count(use_of(session, record))
        store.record_verdict(session, "openai", first := verdict_for(record, known))
        store.record_verdict(session, "openai", second := verdict_for(record, late))
        stays = known.valid is False and late.valid is None
        found = store.read(session, ANN, ["openai"]).records["openai"]
        assert (found.validity, found.usage_count) == (first if stays else second, 1)


def moment(milliseconds: int) -> datetime:
    """Return the time so long after the keys were used."""
    return datetime.fromtimestamp((AT + milliseconds) / 1000, UTC)


def test_uses_add_up(store: Sessions) -> None:
    """A record knows how often it was used and when last, through verdicts and resealing."""
    session, record, other = begin(store), make_record(), make_record("groq")
    for each in (record, other):
        store.write(session, ANN, each)
    store.count(use_of(session, record, uses=2, last_used_at=AT + 5))
    store.count(use_of(session, record, uses=3))
    used = dataclasses.replace(record, usage_count=5, last_used_at=moment(5))
    assert store.read(session, ANN, SOME).records == {"openai": used, "groq": other}
    store.record_verdict(session, "openai", good := verdict_for(record))
    store.count(use_of(session, record, last_used_at=AT + 7))
    used = dataclasses.replace(used, usage_count=6, last_used_at=moment(7), validity=good)
    assert store.read(session, ANN, ["openai"]).records == {"openai": used}
    store.record_verdict(session, "openai", bad := verdict_for(record, Verdict.INVALID))
    resealed = dataclasses.replace(used, ciphertext="resealed", validity=bad)
    assert store.reseal(session, ANN, dataclasses.replace(record, ciphertext="resealed"))
    assert store.read(session, ANN, ["openai"]).records == {"openai": resealed}


def test_a_late_use_finds_its_version_or_nothing(store: Sessions) -> None:
    """A late use neither brings a cleared record back nor counts for the next one, not even for the same again."""
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


def test_a_use_after_the_end(store: Sessions) -> None:
    """An ended session stays ended, a renewed one counts uses of the old id, an unknown ref is no error."""
    session, record = begin(store), make_record()
    store.write(session, ANN, record)
    store.renew(session, "sid-new")
    store.count(use_of(session, record))
    new = SessionRef("sid-new", session.ref)
    assert store.read(new, ANN, SOME).records["openai"].usage_count == 1
    store.end(new)
    store.count(use_of(session, record))
    assert_ended(store, new)
    store.count(use_of(SessionRef("sid-2", "never there"), record))


@pytest.mark.parametrize("replace", [False, True])
def test_adoption_takes_verdict_and_uses_along(store: Sessions, replace: bool) -> None:
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


def test_uses_among_changes(store: Sessions) -> None:
    """While a record is adopted, resealed and checked, no use is lost; none counts for its successor."""
    for trial in range(12):
        session, record, next_one = begin(store, f"sid-{trial}"), make_record(), make_record()
        store.write(session, VISITOR, record)

        def count(_: int, session: SessionRef = session, record: CredentialRecord = record) -> None:
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


def test_use_does_not_keep_it_for_ever(sqlite_url: str) -> None:
    """A session ends at its greatest age, however much it is used."""
    clock = Clock()
    documents = SqlDocuments(sqlite_url, clock=clock)
    store = Sessions(documents, ttl=DAY, max_age=2 * DAY, clock=clock)
    session = begin(store)
    for _ in range(3):
        store.write(session, VISITOR, make_record())
        assert store.read(session, VISITOR, SOME).records
        clock.forward(DAY * 0.66)
    clock.forward(DAY * 0.05)
    assert_ended(store, session)


def overwrite(store: Sessions, session: SessionRef, change: Callable[[bytes], bytes]) -> None:
    """Put something else in place of a session's document."""
    revision, body = store.documents.load(session.ref) or ("", b"")
    assert store.documents.swap(session.ref, revision, "f" * 16, change(body), 3600)


def test_garbage_is_an_unreadable_record(store: Sessions) -> None:
    """What cannot be read, or is another provider's, shows as a record that does not open; the others stay."""
    session, other = begin(store), make_record("groq")
    store.write(session, VISITOR, other)
    moved, place = msgspec.json.encode(other), (session.ref, "v", "openai")
    for raw in (b"", b"{", b"[]", b'{"provider": 1}', b"byok1.x.f.y", moved):
        store.write(session, VISITOR, make_record())
        overwrite(store, session, lambda body, raw=raw: with_record(body, place, raw))
        records = store.read(session, VISITOR, SOME).records
        assert (records["openai"].provider, records["openai"].ciphertext) == ("openai", "")
        assert records["groq"] == other
        assert store.clear(session, VISITOR, ["openai"]) == ["openai"]


def test_damaged_session(store: Sessions) -> None:
    """A session that cannot be read has ended, and its session id can begin again."""
    session = begin(store)
    overwrite(store, session, lambda _: b"\xc1 damaged")
    assert_ended(store, session)
    assert store.read(begin(store), VISITOR, SOME).alive


def test_an_end_under_one_hash_stays_there(sqlite_url: str) -> None:
    """What ended under one hash of a session id does not end what began again under the other, however old it gets."""
    clock = Clock()
    documents = SqlDocuments(sqlite_url, clock=clock)
    store = Sessions(documents, ttl=DAY, max_age=30 * DAY, clock=clock)
    store.end(begin(store, "new old"))
    later = begin(store, "new")  # at a worker that no longer has the old key
    store.write(later, VISITOR, make_record())
    clock.forward(DAY * 0.5)
    assert store.read(SessionRef("new old", later.ref), VISITOR, SOME).records
    assert store.find("new") == store.find("new old") == later.ref
