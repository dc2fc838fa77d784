"""What ``verify`` compares: a chain's rows with each other, and the keys with the rows about them.

A row says what the key's record was and became, but for the seal, which rotation renews: the key in
that is known by its fingerprint. Rows that older versions wrote say less, and less is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Boolean, and_, false, null, or_, select, union_all
from sqlalchemy import cast as as_type

from ...storage.tables import audit, credentials
from .audit_chain import GONE, LONGEST
from .audit_hashes import (
    RECORD_KINDS,
    RECORDED,
    ROW_KINDS,
    head_seal,
    is_mac,
    record_hash,
    row_hash,
)

#: Returns the fingerprint under a secret of the key in a row, None where it does not open.
Fingerprint = Callable[[bytes, Any], str | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a chain; ``number`` is the row's, None where the whole chain is meant."""

    owner: str
    number: int | None
    problem: str


@dataclass(frozen=True, slots=True)
class _Said:
    """What the last rows about a key say of it: None what they do not."""

    version: Any
    became: Any
    fingerprint: Any


class Follower:
    """Follows one owner's chain row by row."""

    def __init__(self, owner: str, secret: bytes) -> None:
        self.owner = owner
        #: The number of the last row, and by a key's id what rows say of it.
        self.number = 0
        self.said: dict[str, _Said] = {}
        self._secret = secret
        self._hash = ""
        self._last: Any = None

    def row(self, row: Any) -> Iterator[Finding]:
        """Take the next row."""
        expected = self.number + 1
        problems = list(self._problems(row, expected))
        yield from (Finding(self.owner, row.number, problem) for problem in problems)
        if row.version is not None:
            if not problems:
                yield from self._found(row)
            self.take(row.credential_id, row)
        # SQLite keeps whatever somebody put there.
        self.number = row.number if isinstance(row.number, int) else expected
        self._hash, self._last = row.hash, row

    def _problems(self, row: Any, expected: int) -> Iterator[str]:
        if row.number != expected:
            yield "rows before it are missing"
        elif row.previous != self._hash:
            yield "it does not follow the row before it"
        if not ROW_KINDS.fit(row) or not is_mac(row.hash, row_hash(self._secret, row._mapping)):
            yield "it was changed"

    def take(self, id: str, row: Any) -> None:
        """Note what a row about a change says of its key."""
        before, fingerprint = self.said.get(id), row.fingerprint
        if fingerprint is None and before is not None and row.version != GONE:
            fingerprint = before.fingerprint
        self.said[id] = _Said(row.version, row.became, fingerprint)

    def _found(self, row: Any) -> Iterator[Finding]:
        """Compare what a change found with what the one before it had left."""
        before = self.said.get(row.credential_id)
        left = None if before is None else before.became
        if left is not None and row.was is not None and left != row.was:
            problem = f"the key {row.credential_id} had been changed before it, and no row says so"
            yield Finding(self.owner, row.number, problem)

    def finish(self) -> list[Finding]:
        """Compare the chain with its head."""
        last = self._last
        if last is None:
            return []
        if last.head_number is None:
            return [Finding(self.owner, None, "its head is missing")]
        if (last.head_number, last.head_hash) != (self.number, self._hash):
            return [Finding(self.owner, None, "rows at its end are missing")]
        if not is_mac(last.head_seal, head_seal(self._secret, self.owner, self.number, self._hash)):
            return [Finding(self.owner, None, "its head was changed")]
        return []


#: What is read of a key, and beside that of a row that came since.
_OF_KEY = [credentials.c[name] for name in (*RECORDED, "ciphertext")]
_OF_ROW = [audit.c[name] for name in ("number", "fingerprint", "became")]


def _none(column: Any) -> Any:
    # MariaDB knows no cast to Boolean.
    empty = false() if isinstance(column.type, Boolean) else as_type(null(), column.type)
    return empty.label(column.name)


def keys_and_news(chains: Sequence[Follower]) -> Any:
    """Return the query of these owners' keys, and of the rows that came since their chains were read.

    It is one statement, so both are of one moment. A key has no ``number``.
    """
    keys = select(*_OF_KEY, *map(_none, _OF_ROW)).where(
        credentials.c.owner.in_([chain.owner for chain in chains])
    )
    later = (
        and_(audit.c.owner == chain.owner, audit.c.number.between(chain.number + 1, LONGEST))
        for chain in chains
    )
    same = {"owner": audit.c.owner, "version": audit.c.version, "id": audit.c.credential_id}
    news = select(*(same.get(c.name, _none(c)) for c in _OF_KEY), *_OF_ROW)
    return union_all(keys, news.where(audit.c.version.is_not(None), or_(*later)))


def compare_keys(
    chains: Sequence[Follower],
    found: Iterable[Any],
    secret: bytes,
    fingerprint: Fingerprint,
) -> Iterator[Finding]:
    """Find keys that their owners' chains do not explain, in what ``keys_and_news`` finds."""
    keys: dict[str, dict[str, Any]] = {chain.owner: {} for chain in chains}
    by_owner = {chain.owner: chain for chain in chains}
    rows = list(found)
    for row in rows:
        if row.number is None:
            keys[row.owner][row.id] = row
    for row in sorted((row for row in rows if row.number is not None), key=lambda row: row.number):
        by_owner[row.owner].take(row.id, row)
    for chain in chains:
        for problem in _compare(keys[chain.owner], chain.said, secret, fingerprint):
            yield Finding(chain.owner, None, problem)


def _compare(
    keys: Mapping[str, Any],
    said: Mapping[str, _Said],
    secret: bytes,
    fingerprint: Fingerprint,
) -> Iterator[str]:
    for id, key in keys.items():
        expected = said.get(id)
        if expected is None:
            yield f"there is no row about the key {id}"
        elif expected.version == GONE:
            yield f"the key {id} is there, and its last row says that it was deleted"
        elif expected.version != key.version:
            yield f"the key {id} has the version {key.version}, and its last row says {expected.version}"
        else:
            yield from _differences(key, expected, secret, fingerprint)
    for id, expected in said.items():
        if expected.version != GONE and id not in keys:
            yield f"the key {id} is gone, and no row says so"


def _differences(key: Any, said: _Said, secret: bytes, fingerprint: Fingerprint) -> Iterator[str]:
    """Compare a key of the version that its last row says with the rest of what rows say."""
    if not RECORD_KINDS.fit(key):
        yield f"the key {key.id} has what no key has"
        return
    if said.became is not None and not is_mac(said.became, record_hash(secret, key)):
        yield f"the key {key.id} is not what its last row says, though it has that version"
    elif key.tier != key.owner.partition(":")[0]:
        yield f"the key {key.id} is in another tier than its owner"
    if said.fingerprint is not None:
        yield from _other_key(key, said.fingerprint, fingerprint(secret, key))


def _other_key(key: Any, expected: str, found: str | None) -> Iterator[str]:
    if found is None:
        yield f"the key {key.id} does not open"
    elif found != expected:
        yield f"the key {key.id} holds another secret than its rows say"
