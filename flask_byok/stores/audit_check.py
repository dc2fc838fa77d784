"""What ``verify`` compares: a chain's rows with each other, and the keys with the rows about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, and_, null, or_, select, union_all
from sqlalchemy import cast as as_type

from .audit_chain import GONE, LONGEST, head_seal, is_mac, row_hash
from .tables import audit, credentials


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a chain; ``number`` is the row's, None where the whole chain is meant."""

    owner: str
    number: int | None
    problem: str


class Follower:
    """Follows one owner's chain row by row."""

    def __init__(self, owner: str, secret: bytes) -> None:
        self.owner = owner
        #: The number of the last row, and by a key's id the version that the last row about it says.
        self.number = 0
        self.versions: dict[str, int] = {}
        self._secret = secret
        self._hash = ""
        self._last: Any = None

    def row(self, row: Any) -> Iterator[Finding]:
        """Take the next row."""
        expected = self.number + 1
        if row.number != expected:
            yield Finding(self.owner, row.number, "rows before it are missing")
        elif row.previous != self._hash:
            yield Finding(self.owner, row.number, "it does not follow the row before it")
        if not is_mac(row.hash, row_hash(self._secret, row._mapping)):
            yield Finding(self.owner, row.number, "it was changed")
        if row.version is not None:
            self.versions[row.credential_id] = row.version
        # SQLite keeps whatever somebody put there.
        self.number = row.number if isinstance(row.number, int) else expected
        self._hash, self._last = row.hash, row

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


def keys_and_news(chains: Sequence[Follower]) -> Any:
    """Return the query of these owners' keys, and of the rows that came since their chains were read.

    It is one statement, so both are of one moment. A key has no ``number``.
    """
    keys = select(
        credentials.c.owner,
        credentials.c.id,
        credentials.c.version,
        as_type(null(), BigInteger).label("number"),
    ).where(credentials.c.owner.in_([chain.owner for chain in chains]))
    later = (
        and_(audit.c.owner == chain.owner, audit.c.number.between(chain.number + 1, LONGEST))
        for chain in chains
    )
    news = select(audit.c.owner, audit.c.credential_id, audit.c.version, audit.c.number)
    return union_all(keys, news.where(audit.c.version.is_not(None), or_(*later)))


def compare_keys(chains: Sequence[Follower], found: Iterable[Any]) -> Iterator[Finding]:
    """Find keys that their owners' chains do not explain, in what ``keys_and_news`` finds."""
    keys: dict[str, dict[str, int]] = {chain.owner: {} for chain in chains}
    said = {chain.owner: chain.versions for chain in chains}
    rows = list(found)
    for row in rows:
        if row.number is None:
            keys[row.owner][row.id] = row.version
    for row in sorted((row for row in rows if row.number is not None), key=lambda row: row.number):
        said[row.owner][row.id] = row.version
    for chain in chains:
        for problem in _compare(keys[chain.owner], said[chain.owner]):
            yield Finding(chain.owner, None, problem)


def _compare(keys: Mapping[str, int], said: Mapping[str, int]) -> Iterator[str]:
    for id, version in keys.items():
        expected = said.get(id)
        if expected is None:
            yield f"there is no row about the key {id}"
        elif expected == GONE:
            yield f"the key {id} is there, and its last row says that it was deleted"
        elif expected != version:
            yield f"the key {id} has the version {version}, and its last row says {expected}"
    for id, expected in said.items():
        if expected != GONE and id not in keys:
            yield f"the key {id} is gone, and no row says so"
