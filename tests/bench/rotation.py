"""A new encryption key: sealing anew, against the cryptography and the statements that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.fernet import Fernet
from sqlalchemy import Engine, MetaData, create_engine, insert, text

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.rows import new_values
from flask_byok.keys.ports import AuditEvent
from flask_byok.keys.save import new_record
from flask_byok.model.credential import Secret
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.storage.tables import credentials
from tests.services import PostgresServer
from tests.worlds import registered

from .measure import interleaved, show

BATCH, ROUNDS = 500, 60
ROWS = BATCH * (ROUNDS + 2)
OLD, NEW = "00" * 32, "11" * 32

_READ = text("SELECT id, ciphertext FROM bare WHERE id > :after ORDER BY id LIMIT :batch")
_WRITE = text(
    "UPDATE bare SET ciphertext = new.ciphertext, key_id = 'new' FROM unnest("
    "string_to_array(:ids, ' '), string_to_array(:sealed, ' ')) AS new(id, ciphertext) WHERE bare.id = new.id"
)


def bench_rotation() -> None:
    """Measure on PostgreSQL, batch by batch."""
    with PostgresServer() as server:
        url = server.create_database()
        _fill(url)
        store, keyring = open_accounts(url, Keyring(NEW, [OLD])), Keyring(NEW, [OLD])
        engine = create_engine(url)
        batches = store.seals.rotate(keyring.renewed, AuditEvent("cli", "rotate"))
        bare = "read, decrypt, encrypt, one UPDATE"
        work: dict[str, Callable[[], object]] = {
            bare: _bare(engine),
            "flask byok rotate": lambda: next(batches),
        }
        times = interleaved(work, rounds=ROUNDS, repeat=1)
        show(f"Sealing {BATCH} keys anew on PostgreSQL", times, against=bare)
        for name, microseconds in times.items():
            print(f"  {name:<46} {BATCH / microseconds * 1e6:12,.0f} keys a second")
        print("  (goal: ≥ 10,000)")
        engine.dispose()
        store.engine.dispose()


def _fill(url: str) -> None:
    """Store as many keys twice: ours, and as bare Fernet tokens."""
    keyring, spec = Keyring(OLD), registered().get("openai")
    store = open_accounts(url, keyring)
    store.canary.secret()
    fields = {"api_key": Secret("sk-proj-" + "a" * 40)}
    rows = []
    for number in range(ROWS):
        context = Context("account", f"user:{number}", "openai")
        record = new_record(keyring, context, spec, fields, None)
        rows.append({"id": f"{number:032x}", **new_values(record)})
    store.engine.dispose()
    fernet, bare = _fernet(), credentials.to_metadata(MetaData(), name="bare")
    tokens = [{**row, "ciphertext": fernet.encrypt(b"a" * 512).decode()} for row in rows]
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE bare (LIKE byok_credentials INCLUDING ALL)"))
        connection.execute(insert(credentials), rows)
        connection.execute(insert(bare), tokens)
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def _bare(engine: Engine) -> Callable[[], object]:
    """Return what seals one batch of bare tokens anew after the other."""
    old, new = _fernet(), Fernet(Fernet.generate_key())
    after = ""

    def batch() -> None:
        nonlocal after
        with engine.begin() as connection:
            rows = connection.execute(_READ, {"after": after, "batch": BATCH}).all()
            sealed = [new.encrypt(old.decrypt(row[1])).decode() for row in rows]
            ids = " ".join(row[0] for row in rows)
            connection.execute(_WRITE, {"ids": ids, "sealed": " ".join(sealed)})
        after = rows[-1][0]

    return batch


def _fernet() -> Fernet:
    return Fernet(b"A" * 43 + b"=")
