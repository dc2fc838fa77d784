"""Delete old rows of the audit log, so that ``verify`` finds the rest whole.

A chain loses rows from its beginning only, and keeps the last row that pruning did not write. The
number and the hash of the last deleted row stay in its head as the checkpoint, which the head's seal
covers. A new row at the end repeats what a deleted row says of a key that is still there, so keys can
be compared as before. A chain is verified as a whole before a part of it is deleted, and a row with
the outcome ``pruned`` says so: pruning hides no change past the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile
from typing import Any

from sqlalchemy import and_, func, select

from ...model.credential import to_milliseconds, utcnow
from ...storage.tables import audit, audit_heads
from . import AuditEvent
from .audit import Chain
from .audit_verify import PRUNED, ROWS, AuditLog, Finding, Follower, Said, whole_number

#: Rows that one transaction deletes at most, and chains that are looked for at a time.
_BATCH, _CHAINS = 500, 200

#: The action of the rows that pruning writes itself. They go once a chain has newer rows of another kind.
ACTION = "prune"

_a, _h = audit.c, audit_heads.c


def _is_due(before: int) -> Any:
    """Return the condition of rows that are older than a time, and not the last of their chain to be kept."""
    return and_(_a.at < before, _a.number < _last(_a.owner))


def _last(owner: Any) -> Any:
    """Return the query of the number of a chain's last row that pruning did not write."""
    rows = audit.alias()
    found = select(rows.c.number).where(rows.c.owner == owner, rows.c.action != ACTION)
    return found.order_by(rows.c.number.desc()).limit(1).scalar_subquery()


def _rest(owner: str, after: int) -> Any:
    """Return the query of a chain's rows after a number."""
    return ROWS.where(_a.owner == owner, _a.number > after)


@dataclass(slots=True)
class Pruning:
    """How far pruning is: how many rows are deleted, and the owners whose chains are not whole and stay."""

    done: int = 0
    broken: list[str] = field(default_factory=list)


def count_prunable(log: AuditLog, before: datetime) -> int:
    """Return how many rows are older than a time and not the last ones of their chains."""
    due = select(func.count(_a.number)).where(_is_due(to_milliseconds(before)))
    return int(log.database.read(due)[0][0])


def prune(log: AuditLog, before: datetime, event: AuditEvent) -> Iterator[Pruning]:
    """Delete the rows that are older than a time, in batches, and yield after each.

    It may be ended at any point and begun again; changes of keys may go on meanwhile. The event goes into
    the chain of ``system`` at the beginning, and beside each key of which a row says again what it is.
    """
    # Rows that are written meanwhile stay.
    until = to_milliseconds(min(before, utcnow()))
    state = Pruning()
    log.note("system", event)
    after, first = "", and_(_a.owner == _h.owner, _a.number == _h.checkpoint + 1)
    due = select(_h.owner).join(audit, first).where(_is_due(until)).order_by(_h.owner)
    while owners := log.database.read(due.where(_h.owner > after).limit(_CHAINS)):
        for (owner,) in owners:
            follower = Follower(owner, log.log_secret.secret())
            while deleted := _prune_chain(log, owner, until, event, follower):
                state.done += deleted
                yield state
            if deleted is None:
                state.broken.append(owner)
                yield state
            after = owner


def _finds_whole(chain: Chain, follower: Follower) -> bool:
    """Return True if every row follows the one before it, and explains what it did to a key.

    :param follower: has followed the rows up to those that came since the last call.
    """
    findings = list[Finding]()
    for row in chain.connection.execute(_rest(chain.owner, follower.number)).yield_per(_BATCH):
        findings += follower.row(row)
    return follower.number == chain.number and not findings + follower.unexplained


def _prune_chain(
    log: AuditLog, owner: str, before: int, event: AuditEvent, follower: Follower
) -> int | None:
    """Delete the first rows of a chain and return how many, None if it is not whole."""

    def work(chain: Chain) -> int | None:
        if not chain.is_whole or not _finds_whole(chain, follower):
            return None
        old = _old_rows(chain, before)
        if not old:
            return 0
        follows = Follower(owner, chain.secret)
        if any(follows.row(row) for row in old):
            return None
        restated = _restated(chain, follows)
        if restated is None:
            return None
        for said in restated:
            chain.restate(event, said.row, said.fingerprint)
        chain.append(replace(event, outcome=PRUNED))
        chain.prune(old[-1])
        return len(old)

    return log.change(owner, work)


def _old_rows(chain: Chain, before: int) -> Sequence[Any]:
    first = _rest(chain.owner, 0).where(_a.number < _last(chain.owner))
    rows = chain.connection.execute(first.limit(_BATCH)).all()
    return list(takewhile(lambda row: whole_number(row.at, before) < before, rows))


def _restated(chain: Chain, follower: Follower) -> list[Said] | None:
    """Return what old rows say of keys and no later row does, None if a later one does not fit.

    :param follower: has followed the old rows.
    """
    ids = [id for id, said in follower.said.items() if not said.is_gone]
    about = _a.version.is_not(None), _a.credential_id.in_(ids)
    later = _rest(chain.owner, follower.number).where(*about)
    fingerprints: dict[str, set[str | None]] = {id: set() for id in ids}
    for row in chain.connection.execute(later).all():
        if not follower.fits(row):
            return None
        fingerprints[row.credential_id].add(row.fingerprint)
    ends = [follower.said[id] for id in ids]
    return [
        said
        for said in ends
        if not said.is_gone and said.fingerprint not in fingerprints[said.row.credential_id]
    ]
