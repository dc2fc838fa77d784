"""Types of columns that mean the same on every database."""

from __future__ import annotations

from sqlalchemy import String, Text

# MariaDB takes "Ann", "ann" and "ann " for one name unless told otherwise, and has its own way to
# say so. MySQL knows no such collation and refuses the tables: it has never been tried there.
_AS_IT_IS = "utf8mb4_nopad_bin"
#: Drivers for MariaDB go by either name.
MARIADB = ("mysql", "mariadb")


def name(length: int) -> String:
    """Return the type of a text of at most so many characters."""
    return String(length).with_variant(String(length, collation=_AS_IT_IS), *MARIADB)


def prose() -> Text:
    """Return the type of a text of any length."""
    return Text().with_variant(Text(collation=_AS_IT_IS), *MARIADB)
