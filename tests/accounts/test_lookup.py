"""What each tier has for a caller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flask_byok.accounts.wing import Wing
from flask_byok.model.credential import CredentialRecord
from flask_byok.model.owner import Caller, Tier
from flask_byok.testing import FakeProviders
from tests.worlds import World


class CarelessStore:
    """A store on a database that compares without regard to case."""

    def __init__(self, *records: CredentialRecord) -> None:
        self._records = records

    def places(
        self, owners: list[str], providers: list[str]
    ) -> dict[tuple[str, str], list[CredentialRecord]]:
        """Return whatever has such an owner, in capitals or not."""
        wanted = {owner.casefold() for owner in owners}
        found = (record for record in self._records if record.owner.casefold() in wanted)
        return {(record.owner, record.provider): [record] for record in found}


def test_owners_are_told_apart_by_every_letter(tmp_path: Path, fake: FakeProviders) -> None:
    """A key of Ann's is none of ann's, even where the database takes the two for one."""
    world = World(tmp_path, fake)
    theirs = world.keep("user:Ann", fake.api_key("openai"))
    mine = replace(theirs, owner="user:ann")
    reader = Wing(CarelessStore(theirs, mine), world.keyring, world.settings)  # type: ignore[arg-type]
    openai = world.catalog.get("openai")
    found = list(reader.find(Caller(user="Ann"), [openai])[Tier.USER, "openai"])
    assert [candidate.credential.owner for candidate in found if candidate.credential] == [
        "user:Ann"
    ]


def test_teams_serve_in_the_hosts_order(tmp_path: Path, fake: FakeProviders) -> None:
    """Of several teams' keys the one comes first whose team the host names first, whatever they are called."""
    world = World(tmp_path, fake)
    names = ["red", "amber", "zebra", "blue"]
    for name in sorted(names):
        world.keep(f"team:{name}", fake.api_key("openai", owner=name))
    reader = Wing(world.accounts, world.keyring, world.settings)
    openai = world.catalog.get("openai")
    for teams in (names, names[::-1]):
        found = reader.find(Caller(user="ann", teams=tuple(teams)), [openai])
        order = [candidate.credential for candidate in found[Tier.TEAM, "openai"]]
        assert [one.owner for one in order if one] == [f"team:{name}" for name in teams]
    world.documents.engine.dispose()
