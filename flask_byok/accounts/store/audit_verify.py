"""Read the audit log, and find rows and keys that were changed, removed or reordered past it.

The database alone cannot show a log, or one owner's chain together with all of its keys, that is
removed as a whole or restored to an earlier state; nor a chain that has lost its last rows and got
its old head back, if these were about no change of a key. Heads that are kept elsewhere show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, func, null, or_, select, true, tuple_, union_all
from sqlalchemy import cast as as_type

from ...model.credential import to_milliseconds
from ...storage.tables import audit, audit_heads, credentials
from . import Head
from .audit import GONE, RECORDED, AuditWriter, head_seal, is_mac, record_hash, row_hash

if TYPE_CHECKING:
    from ..wing import AuditSecret

#: The outcome of the row that pruning writes after it has compared all keys.
PRUNED = "pruned"
#: Rows that are read at a time.
_PAGE = 1000
#: Chains that are compared with keys or heads at a time.
_BATCH = 200

_HEAD = tuple(column.label(f"head_{column.name}") for column in audit_heads.c)
#: The rows of all chains in their order, each with its chain's head.
ROWS = (
    select(audit, *_HEAD)
    .select_from(audit.outerjoin(audit_heads, audit.c.owner == audit_heads.c.owner))
    .order_by(audit.c.owner, audit.c.number)
)
_HEADS_WITHOUT_ROWS = select(audit_heads).where(
    ~select(audit.c.number).where(audit.c.owner == audit_heads.c.owner).exists()
)
_OWNERS_WITHOUT_HEAD = (
    select(credentials.c.owner)
    .distinct()
    .where(~select(audit_heads.c.owner).where(audit_heads.c.owner == credentials.c.owner).exists())
)
#: Columns of a key that are compared, and those of a row that are read beside them.
_OF_KEY = [credentials.c[name] for name in (*RECORDED, "ciphertext")]
_OF_ROW = [audit.c[name] for name in ("number", "fingerprint", "became")]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a chain; ``number`` is the row's, None for the whole chain."""

    owner: str
    number: int | None
    problem: str


class Said(NamedTuple):
    """The last row about a key, and the key's fingerprint, which may stand in a row before that."""

    row: Any
    fingerprint: str | None

    @property
    def is_gone(self) -> bool:
        """Return True if the key is deleted."""
        return bool(self.row.version == GONE)


class AuditLog(AuditWriter):
    """Lists the entries of the log, and verifies it."""

    def entries(
        self, owner: str | None = None, *, before: datetime | None = None, limit: int = 100
    ) -> Sequence[Any]:
        """Return the newest entries, of one owner or all, as rows of ``byok_audit``."""
        query = _of(owner, select(audit)).order_by(audit.c.at.desc(), audit.c.number.desc())
        if before is not None:
            query = query.where(audit.c.at < to_milliseconds(before))
        return self.database.read(query.limit(limit))

    def count(self, owner: str | None = None) -> int:
        """Return how many entries there are, of one owner or all."""
        return int(self.database.read(_of(owner, select(func.count()).select_from(audit)))[0][0])

    def heads(self, owner: str | None = None) -> Iterator[Head]:
        """Yield the end of each chain, to be kept where the database's users cannot write."""
        h, after = audit_heads.c, ""
        query = _of(owner, select(audit_heads), audit_heads).order_by(h.owner).limit(_PAGE)
        while page := self.database.read(query.where(h.owner > after)):
            yield from (Head(row.owner, row.number, row.hash) for row in page if row.hash)
            after = page[-1].owner

    def missing(self, heads: Iterable[Head]) -> tuple[list[Finding], int]:
        """Find chains that do not contain what was once their head.

        :return: these, and how many heads lie before the checkpoint of their chain: these rows were
            pruned, so they cannot be compared.
        """
        findings, pruned, heads = list[Finding](), 0, iter(heads)
        while batch := list(islice(heads, _BATCH)):
            place, h = tuple_(audit.c.owner, audit.c.number), audit_heads.c
            rows = select(audit.c.owner, audit.c.number, audit.c.hash)
            rows = rows.where(place.in_([(head.owner, head.number) for head in batch]))
            ends = select(h.owner, h.checkpoint, h.checkpoint_hash)
            owners = [head.owner for head in batch]
            checkpoints = self.database.read(ends.where(h.owner.in_(owners)))
            pruned_until = {owner: number for owner, number, _ in checkpoints}
            known = {tuple(row[:2]): row[2] for row in (*self.database.read(rows), *checkpoints)}
            for head in batch:
                if known.get((head.owner, head.number)) == head.hash:
                    continue
                if head.number < whole_number(pruned_until.get(head.owner)):
                    pruned += 1
                else:
                    problem = "this was its end once, and is not in it"
                    findings.append(Finding(head.owner, head.number, problem))
        return findings, pruned

    def verify(
        self, owner: str | None = None, report: Callable[[int, int], object] = lambda *_: None
    ) -> list[Finding]:
        """Return everything that is wrong, of one owner or all; an empty list if the log is whole.

        It may run beside writers and beside pruning: each page is read with the head of that moment,
        and keys with the rows that came since.

        :param report: called after each page and at the end with the number of rows and of chains.
        """
        problem = "there are keys, but no chain"
        headless = self.database.read(_of(owner, _OWNERS_WITHOUT_HEAD, credentials))
        findings = [Finding(row.owner, None, problem) for row in headless]
        empty = {chain.owner: chain for chain in self._rowless(owner, findings)}
        chains: list[Follower] = []
        rows = done = 0
        for row in self._rows(owner):
            if not chains or chains[-1].owner != row.owner:
                if len(chains) >= _BATCH:
                    findings += self._finish(chains)
                    chains = []
                # The first row of an empty chain has come since.
                fresh = Follower(row.owner, self.log_secret.secret())
                chains.append(empty.pop(row.owner, fresh))
                done += 1
            findings += chains[-1].row(row)
            rows += 1
            if rows % _PAGE == 0:
                report(rows, done)
        report(rows, done)
        return findings + self._finish([*chains, *empty.values()])

    def _finish(self, chains: Iterable[Follower]) -> list[Finding]:
        findings, chains = list[Finding](), iter(chains)
        while batch := list(islice(chains, _BATCH)):
            for chain in batch:
                findings += chain.finish()
            found = self.database.read(_keys_and_news(batch))
            findings += compare_keys(batch, found, self.log_secret)
        return findings

    def _rows(self, owner: str | None) -> Iterator[Any]:
        query = _of(owner, ROWS).limit(_PAGE)
        after: Any = true()
        while page := self.database.read(query.where(after)):
            yield from page
            last = page[-1]
            same = and_(audit.c.owner == last.owner, audit.c.number > last.number)
            after = or_(audit.c.owner > last.owner, same)

    def _rowless(self, owner: str | None, findings: list[Finding]) -> list[Follower]:
        """Find chains whose rows are all gone, and return those that never had any."""
        secret, empty = self.log_secret.secret(), []
        for head in self.database.read(_of(owner, _HEADS_WITHOUT_ROWS, audit_heads)):
            if head.number == 0 and is_mac(head.seal, head_seal(secret, head._mapping)):
                empty.append(Follower(head.owner, secret))
            else:
                findings.append(Finding(head.owner, None, "all rows are missing"))
        return empty


class Follower:
    """Follows one owner's chain row by row.

    Of a key whose older rows were pruned, the first row that is left can be compared with none. Pruning did so, and
    wrote a row after it: only rows after that one remain unexplained.
    """

    def __init__(self, owner: str, secret: bytes) -> None:
        self.owner = owner
        #: The number of the last row, and what rows say of keys, by id.
        self.number = 0
        self.said: dict[str, Said] = {}
        self._secret = secret
        self._hash = ""
        self._checkpoint = 0
        self._last: Any = None
        #: Changes of keys about which no row is left, and after which nothing was pruned.
        self.unexplained: list[Finding] = []

    def row(self, row: Any) -> list[Finding]:
        """Take the next row, as ``ROWS`` has it."""
        checkpoint = whole_number(row.head_checkpoint)
        if checkpoint > self.number:  # pruned, maybe since the page before
            self.number, self._hash, self.said = checkpoint, row.head_checkpoint_hash, {}
            self._checkpoint, self.unexplained = checkpoint, []
        self._last = row
        expected = self.number + 1
        problems = list(self._problems(row, expected))
        if row.version is not None:
            if not problems:
                problems += self._compare(row)
            self.take(row.credential_id, row)
        elif row.outcome == PRUNED and not problems:
            self.unexplained = []
        self.number = whole_number(row.number, expected)
        self._hash = row.hash
        return [Finding(self.owner, row.number, problem) for problem in problems]

    def take(self, id: str, row: Any) -> None:
        """Note what a row about a change says of its key."""
        before, fingerprint = self.said.get(id), row.fingerprint
        if fingerprint is None and before is not None and row.version != GONE:
            fingerprint = before.fingerprint
        self.said[id] = Said(row, fingerprint)

    def fits(self, row: Any) -> bool:
        """Take a row about a key from further on; return False if it does not fit what is said of that."""
        is_whole = is_mac(row.hash, row_hash(self._secret, row._mapping))
        fits = is_whole and not any(self._compare(row))
        self.take(row.credential_id, row)
        return fits

    def finish(self) -> list[Finding]:
        """Return the unexplained changes, and compare the chain with its head."""
        return self.unexplained + [
            Finding(self.owner, None, problem) for problem in self._problems_of_head()
        ]

    def _problems_of_head(self) -> Iterator[str]:
        last = self._last
        if last is None:
            return
        head = {column.name: getattr(last, f"head_{column.name}") for column in audit_heads.c}
        if last.head_number is None:
            yield "its head is missing"
        elif (last.head_number, last.head_hash) != (self.number, self._hash):
            yield "rows at its end are missing"
        elif not is_mac(last.head_seal, head_seal(self._secret, head)):
            yield "its head was changed"

    def _compare(self, row: Any) -> Iterator[str]:
        """Compare what a change found with what the one before it had left."""
        id = row.credential_id
        before = self.said.get(id)
        left = None if before is None else before.row.became
        if left == row.was:
            return
        problem = f"the key {id} had been changed before it, and no row says so"
        if before is None and self._checkpoint:
            self.unexplained.append(Finding(self.owner, row.number, problem))
        else:
            yield problem

    def _problems(self, row: Any, expected: int) -> Iterator[str]:
        if whole_number(row.number) <= self._checkpoint:
            yield "it lies before the checkpoint, and should be pruned"
        elif row.number != expected:
            yield "rows before it are missing"
        elif row.previous != self._hash:
            yield "it does not follow the row before it"
        if not is_mac(row.hash, row_hash(self._secret, row._mapping)):
            yield "it was changed"


def compare_keys(
    chains: Sequence[Follower], found: Iterable[Any], log_secret: AuditSecret
) -> Iterator[Finding]:
    """Find keys that their owners' chains do not explain, in what ``_keys_and_news`` finds."""
    keys: dict[str, dict[str, Any]] = {chain.owner: {} for chain in chains}
    by_owner = {chain.owner: chain for chain in chains}
    news = []
    for row in found:
        if row.number is None:
            keys[row.owner][row.id] = row
        else:
            news.append(row)
    for row in sorted(news, key=lambda row: whole_number(row.number)):
        by_owner[row.owner].take(row.id, row)
    for chain in chains:
        for problem in _compare(keys[chain.owner], chain.said, log_secret):
            yield Finding(chain.owner, None, problem)


def whole_number(stored: Any, otherwise: int = 0) -> int:
    """Return a number that a column has; SQLite keeps text in one, too."""
    return stored if isinstance(stored, int) else otherwise


def _compare(
    keys: Mapping[str, Any], said: Mapping[str, Said], log_secret: AuditSecret
) -> Iterator[str]:
    for id, key in keys.items():
        expected = said.get(id)
        if expected is None:
            yield f"there is no row about the key {id}"
        elif expected.is_gone:
            yield f"the key {id} is there, and its last row says that it was deleted"
        elif expected.row.version != key.version:
            version = expected.row.version
            yield f"the key {id} has the version {key.version}, and its last row says {version}"
        else:
            yield from _differences(key, expected, log_secret)
    for id, expected in said.items():
        if not expected.is_gone and id not in keys:
            yield f"the key {id} is gone, and no row says so"


def _differences(key: Any, said: Said, log_secret: AuditSecret) -> Iterator[str]:
    """Compare a key with what rows say of this version."""
    if not is_mac(said.row.became, record_hash(log_secret.secret(), key)):
        yield f"the key {key.id} is not what its last row says, though it has that version"
    if said.fingerprint is None:
        return
    found = log_secret.fingerprint_of(key)
    if found is None:
        yield f"the key {key.id} does not open"
    elif found != said.fingerprint:
        yield f"the key {key.id} holds another secret than its rows say"


def _keys_and_news(chains: Sequence[Follower]) -> Any:
    """Return the query of these owners' keys, and of the rows that came since their chains were read.

    It is one statement, so both are of one moment. A key has no ``number``.
    """
    keys = select(*_OF_KEY, *map(_none, _OF_ROW)).where(
        credentials.c.owner.in_([chain.owner for chain in chains])
    )
    later = (and_(audit.c.owner == each.owner, audit.c.number > each.number) for each in chains)
    same = {"owner": audit.c.owner, "version": audit.c.version, "id": audit.c.credential_id}
    news = select(*(same.get(c.name, _none(c)) for c in _OF_KEY), *_OF_ROW)
    return union_all(keys, news.where(audit.c.version.is_not(None), or_(*later)))


def _none(column: Any) -> Any:
    return as_type(null(), column.type).label(column.name)


def _of(owner: str | None, query: Any, table: Any = audit) -> Any:
    return query if owner is None else query.where(table.c.owner == owner)
