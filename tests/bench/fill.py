"""Fill a database with as many credentials as one wants, fast."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from sqlalchemy import URL, Connection, create_engine, text

from flask_byok.accounts.store.rows import new_values
from flask_byok.http import Endpoint
from flask_byok.keys.save import new_record
from flask_byok.keys.typed import NewKey, Typed
from flask_byok.model.credential import Secret
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.storage.tables import credentials
from tests.worlds import registered

PROVIDERS = ("openai", "anthropic", "google", "groq", "xai")
#: Of so many owners one is a team; all others are users.
ONE_TEAM_IN = 10
COLUMNS = list(credentials.c.keys())


def owner_of(number: int) -> str:
    """Name the owner of the row of this number; each has a key for every provider."""
    owner = number // len(PROVIDERS)
    return f"team:{owner}" if owner % ONE_TEAM_IN == ONE_TEAM_IN - 1 else f"user:{owner}"


def rows(count: int, keyring: Keyring, opening: int = 0) -> Iterator[dict[str, Any]]:
    """Yield rows as the store would write them.

    :param opening: the keys of so many owners, evenly spread, do open; the others' are as long, and cheap to make.
    """
    spec = registered().get("openai")
    every = max(count // len(PROVIDERS) // opening, 1) if opening else 0

    def sealed(owner: str, provider: str) -> dict[str, Any]:
        context = Context("account", owner, provider)
        fields = {"api_key": Secret(f"sk-proj-of-{owner}")}
        typed = Typed(fields, fields, None, Endpoint(spec.base_url, "catalog"))
        return new_values(new_record(keyring, context, spec, typed, NewKey(fields=fields)))

    template = sealed("user:0", "openai")
    for number in range(count):
        owner, provider = owner_of(number), PROVIDERS[number % len(PROVIDERS)]
        opens = every and number // len(PROVIDERS) % every == 0
        values = sealed(owner, provider) if opens else template
        own = {"owner": owner, "tier": owner.partition(":")[0], "provider": provider}
        yield {**values, **own, "id": f"{number:032x}"}


def fill(url: URL, count: int, keyring: Keyring, opening: int = 0) -> None:
    """Write so many rows where the tables are there, and let the database count them."""
    engine = create_engine(url)  # without the time limits of the store's own
    made = rows(count, keyring, opening)
    with engine.begin() as connection:
        while batch := list(itertools.islice(made, 10_000)):
            _write(connection, batch)
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


def _write(connection: Connection, batch: list[dict[str, Any]]) -> None:
    driver: Any = connection.connection
    names = ", ".join(COLUMNS)
    values = ([row[name] for name in COLUMNS] for row in batch)
    if connection.dialect.name == "postgresql":
        copying = f"COPY byok_credentials ({names}) FROM STDIN"
        with driver.cursor() as cursor, cursor.copy(copying) as copy:
            for row in values:
                copy.write_row(row)
        return
    marks = ", ".join("?" * len(COLUMNS))
    driver.executemany(f"INSERT INTO byok_credentials ({names}) VALUES ({marks})", values)
