"""The commands ``flask byok list|set|clear``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo
from sqlalchemy import create_engine

from flask_byok.catalog import ProviderSpec
from flask_byok.cli.common import read_fields
from flask_byok.model.credential import Secret, Verdict, utcnow
from flask_byok.testing import FakeProviders
from tests.app import HostApp, make_app
from tests.services import free_port
from tests.storage.kinds import made_by_an_older_version

from .accounts_host import actions, close, forge, make_host, stored
from .host import accounts_of, refused, run
from .terminal import Terminal

CANARY = "sk-proj-CANARY-0123456789abcdef"
#: Each command, as it would be called.
COMMANDS = [
    ["list"],
    ["set", "openai"],
    ["clear", "openai", "--yes"],
    ["import-env"],
    ["export", "keys.byok"],
    ["import", "keys.byok"],
]


def good(fake: FakeProviders, provider: str = "openai", owner: str = "system") -> str:
    """Return a key that the fake provider takes."""
    return fake.api_key(provider, "good", owner)


# set


def test_set_from_stdin(host: HostApp, fake: FakeProviders) -> None:
    """A key from stdin is checked and stored for the system, and only its hint is shown."""
    api_key = good(fake)
    result = run(host, "set", "openai", input=f"  {api_key}\n")
    assert result.exit_code == 0
    assert f"Saved sk-proj-…{api_key[-4:]} as the key for OpenAI of system." in result.output
    assert "valid:" in result.output
    assert api_key not in result.output
    assert stored(host) == {"openai": api_key}
    (record,) = accounts_of(host).find(["system"])
    assert record.validity is not None
    assert record.validity.verdict == Verdict.VALID
    assert actions(host) == [("cli", "set")]


def test_what_is_set_serves(host: HostApp, fake: FakeProviders) -> None:
    """The system's key serves a visitor without one."""
    run(host, "set", "openai", input=good(fake))
    with host.test_request_context():
        credential = host.byok.resolve("openai")
    assert (credential.source, credential.api_key) == ("system", good(fake))


def test_set_with_facts(host: HostApp, fake: FakeProviders) -> None:
    """Owner, slot, label and expiry are stored as given; a provider may be called by its alias."""
    args = ["--owner", "team:red", "--slot", "second", "--label", "Red's", "--validate", "off"]
    result = run(
        host, "set", "grok", *args, "--expires", "2100-01-31T00:00:00Z", input=good(fake, "xai")
    )
    assert result.exit_code == 0
    (record,) = accounts_of(host).find(["team:red"])
    assert (record.provider, record.slot, record.label) == ("xai", "second", "Red's")
    assert record.expires_at is not None
    assert record.expires_at.isoformat() == "2100-01-31T00:00:00+00:00"
    assert record.validity is None


def test_set_does_not_replace_unasked(host: HostApp, fake: FakeProviders) -> None:
    """A key that is there stays, unless --replace is given."""
    run(host, "set", "openai", input=good(fake))
    other = good(fake, owner="other")
    result = run(host, "set", "openai", input=other)
    assert result.exit_code == 1
    assert "--replace" in result.stderr
    assert stored(host) == {"openai": good(fake)}
    assert run(host, "set", "openai", "--replace", input=other).exit_code == 0
    assert stored(host) == {"openai": other}


@pytest.mark.parametrize(("mode", "behaviour"), [("warn", "bad"), ("require", "overloaded")])
def test_set_of_a_refused_key(
    host: HostApp, fake: FakeProviders, mode: str, behaviour: str
) -> None:
    """A key that the check forbids is not stored, and the reason is told."""
    api_key = fake.api_key("openai", behaviour, "system")
    result = run(host, "set", "openai", "--validate", mode, input=api_key)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: The key was not saved. ")
    assert api_key not in result.output
    assert stored(host) == {}
    (entry,) = accounts_of(host).audit.entries("system")
    assert (entry.event.action, entry.provider) == ("set", "openai")
    assert entry.event.outcome != "done"


def test_set_of_one_too_many(host: HostApp, fake: FakeProviders) -> None:
    """An owner has no more keys for a provider than BYOK_KEYS_PER_PROVIDER says, also with --replace."""
    run(host, "set", "openai", input=good(fake))
    for args in ([], ["--replace"]):
        result = run(host, "set", "openai", "--slot", "b", *args, input=good(fake))
        assert "no room for another key: BYOK_KEYS_PER_PROVIDER is 1." in result.stderr
    assert list(stored(host)) == ["openai"]


def test_set_of_several_fields(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """A provider with several fields takes them as a JSON object, and says so otherwise."""
    host = make_host(
        tmp_path, fake, sqlite_url, BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_VALIDATE_ON_SET="off"
    )
    fields = {"base_url": "https://llm.example.com/v1", "api_key": CANARY}
    assert run(host, "set", "custom", input=json.dumps(fields)).exit_code == 0
    assert stored(host) == {"custom": CANARY}
    for odd in (CANARY, json.dumps([CANARY]), json.dumps({"api_key": 5})):
        result = run(host, "set", "custom", "--replace", input=odd)
        assert result.exit_code == 1
        assert "JSON object with base_url, api_key" in result.stderr
        assert CANARY not in result.output
    close(host)


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        ("", "API key is missing."),
        ("short", "8 to 4,096 characters"),
        (f"{CANARY} and more", "no spaces"),
        (f"{CANARY}\n{CANARY}", "no spaces"),
        (CANARY.encode() + b"\xff", "no text"),
        (CANARY * 5000, "far too long"),
    ],
)
def test_set_of_what_is_no_key(
    tmp_path: Path, sqlite_url: str, stdin: str | bytes, sentence: str
) -> None:
    """What cannot be a key is refused in one sentence that repeats nothing of it."""
    host = make_host(tmp_path, None, sqlite_url)
    result = run(host, "set", "openai", input=stdin)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert "CANARY" not in result.output
    assert stored(host) == {}
    close(host)


def test_set_in_an_unused_tier(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """A key of a tier that is not looked up is stored, with a word of warning."""
    host = make_host(tmp_path, fake, sqlite_url, BYOK_PRECEDENCE=["session", "user", "env"])
    result = run(host, "set", "openai", input=good(fake))
    assert result.exit_code == 0
    assert "BYOK_PRECEDENCE does not name system" in result.stderr
    close(host)


def test_set_of_a_locked_provider(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """A team's key for a provider of which only the operator's counts is stored, with a word of warning."""
    host = make_host(tmp_path, fake, sqlite_url, BYOK_LOCKED_PROVIDERS=["openai"])
    warning = "BYOK_LOCKED_PROVIDERS names openai"
    team = run(host, "set", "openai", "--owner", "team:red", input=good(fake))
    assert (team.exit_code, warning in team.stderr) == (0, True)
    system = run(host, "set", "openai", input=good(fake))
    assert (system.exit_code, warning in system.stderr) == (0, False)
    close(host)


@pytest.mark.parametrize(
    "args",
    [
        ["set", "openai", CANARY],
        ["set", CANARY],
        ["set", CANARY, "openai"],
        ["set", "openai", "--api-key", CANARY],
        ["set", "openai", f"--api-key={CANARY}"],
        ["set", "openai", f"--{CANARY}"],
        ["set", "openai", f"-{CANARY}"],
        ["set", "openai", "--owner", CANARY],
        ["set", "openai", "--slot", f"{CANARY}!"],
        ["set", "openai", "--expires", CANARY],
        ["set", "openai", "--validate", CANARY],
        ["set", "--help", CANARY],
        ["clear", CANARY, "--yes"],
        ["clear", "openai", CANARY],
        ["list", CANARY],
        ["list", "--provider", CANARY],
        ["list", f"--json={CANARY}"],
        ["import-env", CANARY],
        ["import", "--on-conflict", CANARY, "x"],
        ["import", f"/nowhere/{CANARY}"],
        ["export", f"/nowhere/{CANARY}"],
        ["export", "a", "b", CANARY],
        ["generate-key", CANARY],
        ["providers", CANARY],
        ["check", CANARY],
        ["check", f"--{CANARY}"],
        ["db", CANARY],
        ["db", f"--{CANARY}"],
        ["db", "current", CANARY],
        ["db", "sql", CANARY],
        ["db", "upgrade", CANARY],
        ["rotate", CANARY],
        ["rotate", "--retire", CANARY],
        ["purge-expired", CANARY],
        ["purge-expired", "--days", CANARY],
        ["purge-expired", f"--dry-run={CANARY}"],
        ["audit", CANARY],
        ["audit", f"--{CANARY}"],
        ["audit", "list", CANARY],
        ["audit", "list", "--limit", CANARY],
        ["audit", "list", "--before", CANARY],
        ["audit", "verify", CANARY],
        ["audit", "verify", "--owner", CANARY],
        [CANARY],
        [f"--{CANARY}"],
        [f"-{CANARY}"],
        [f"--help={CANARY}"],
    ],
)
def test_no_argument_is_repeated(tmp_path: Path, sqlite_url: str, args: list[str]) -> None:
    """A key in the place of an argument does not come back in any message."""
    host = make_host(tmp_path, None, sqlite_url)
    result = run(host, *args, input="a long enough passphrase\n")
    assert result.exit_code != 0 or "--help" in args
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "CANARY" not in result.output
    assert stored(host) == {}
    close(host)


def test_a_key_as_an_argument(tmp_path: Path, sqlite_url: str) -> None:
    """Whoever gives a key as an argument is told why not, and what to do now."""
    host = make_host(tmp_path, None, sqlite_url)
    for args in ([CANARY], ["--api-key", CANARY]):
        result = run(host, "set", "openai", *args)
        assert result.exit_code == 2
        assert "A key is never an argument" in result.stderr
        assert "replace it at the provider" in result.stderr
    close(host)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("slot", CANARY),
        ("slot", "my_CANARY-short"),
        ("owner", f"team:{CANARY}"),
        ("owner", "team:CANARY-short"),
        ("owner", "team:a\x9b2J"),
    ],
)
def test_set_in_a_place_that_cannot_be(
    tmp_path: Path, sqlite_url: str, option: str, value: str
) -> None:
    """A slot or a team's id that holds a key, or what cannot be shown, is refused as a label is."""
    host = make_host(tmp_path, None, sqlite_url)
    args = ["set", "openai", "--validate", "off", f"--{option}", value]
    result = run(host, *args, input="CANARY-short")
    assert f"The field '{option}'" in refused(result)
    assert "CANARY" not in result.output
    assert list(accounts_of(host).page(None)[0]) == []
    close(host)


@pytest.mark.parametrize("label", [CANARY, "it is CANARY-short", "a\x1b[2J", "x" * 101])
def test_set_with_a_label_that_cannot_be(tmp_path: Path, sqlite_url: str, label: str) -> None:
    """A label that holds a key, or what cannot be shown, is refused as it is in the dialog."""
    host = make_host(tmp_path, None, sqlite_url)
    args = ["set", "openai", "--validate", "off", "--label", label]
    result = run(host, *args, input="CANARY-short")
    assert "The field 'label'" in refused(result)
    assert "CANARY" not in result.output
    assert stored(host) == {}
    close(host)


@pytest.mark.parametrize("args", [[], ["--replace"]])
def test_set_by_a_race(
    host: HostApp, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    """A key that takes the last place while another is typed stays, and is the only one."""

    def read_slowly(spec: ProviderSpec) -> dict[str, Secret]:
        monkeypatch.setattr("flask_byok.cli.accounts.keys.read_fields", read_fields)
        first = run(host, "set", "openai", "--slot", "b", "--validate", "off", input=other)
        assert first.exit_code == 0, first.output
        return {"api_key": Secret(good(fake))}

    other = good(fake, owner="other")
    monkeypatch.setattr("flask_byok.cli.accounts.keys.read_fields", read_slowly)
    assert "There is no room for another key" in refused(run(host, "set", "openai", *args))
    assert stored(host) == {"openai/b": other}


@pytest.mark.parametrize("slot", ["", "b"])
def test_replace_by_a_race(
    host: HostApp, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch, slot: str
) -> None:
    """What is in the place by then is replaced; where the place is gone and another taken, nothing is stored."""
    other = good(fake, owner="other")

    def read_slowly(spec: ProviderSpec) -> dict[str, Secret]:
        monkeypatch.setattr("flask_byok.cli.accounts.keys.read_fields", read_fields)
        assert run(host, "clear", "openai", "--yes").exit_code == 0
        first = run(host, "set", "openai", *(["--slot", slot] if slot else []), input=other)
        assert first.exit_code == 0, first.output
        return {"api_key": Secret(good(fake))}

    run(host, "set", "openai", input=good(fake, owner="first"))
    monkeypatch.setattr("flask_byok.cli.accounts.keys.read_fields", read_slowly)
    result = run(host, "set", "openai", "--replace")
    assert result.exit_code == (1 if slot else 0)
    assert stored(host) == ({"openai/b": other} if slot else {"openai": good(fake)})


def test_replace_of_what_comes_meanwhile(
    host: HostApp, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was saved while another was typed is replaced too, as --replace asks."""

    def read_slowly(spec: ProviderSpec) -> dict[str, Secret]:
        monkeypatch.setattr("flask_byok.cli.accounts.keys.read_fields", read_fields)
        run(host, "set", "openai", input=good(fake, owner="other"))
        return {"api_key": Secret(good(fake))}

    monkeypatch.setattr("flask_byok.cli.accounts.keys.read_fields", read_slowly)
    assert run(host, "set", "openai", "--replace").exit_code == 0
    assert stored(host) == {"openai": good(fake)}


# list


def test_list(host: HostApp, fake: FakeProviders) -> None:
    """Every owner's keys have a line each, with facts and hints and no key."""
    assert run(host, "list").output.split() == [
        *("id", "owner", "provider", "slot", "hint", "state", "expires", "uses")
    ]
    everybody = {"system": good(fake), "user:ann": good(fake, owner="ann")}
    for owner, api_key in everybody.items():
        run(host, "set", "openai", "--owner", owner, input=api_key)
    result = run(host, "list")
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()[1:]]
    records = accounts_of(host).page(None)[0]
    assert rows == [
        [record.id, record.owner, "openai", "-", record.hint, "active", "-", "0"]
        for record in records
    ]
    assert not any(api_key in result.output for api_key in everybody.values())


def test_list_of_some(host: HostApp, fake: FakeProviders) -> None:
    """The list can be confined to an owner and a provider, and be had as JSON lines."""
    for owner in ("system", "user:ann"):
        for provider in ("openai", "xai"):
            run(host, "set", provider, "--owner", owner, input=good(fake, provider, owner))
    assert len(run(host, "list", "--owner", "user:ann").output.splitlines()) == 3
    assert len(run(host, "list", "--provider", "grok").output.splitlines()) == 3
    result = run(host, "list", "--owner", "user:ann", "--provider", "xai", "--json")
    (row,) = map(json.loads, result.output.splitlines())
    (record,) = accounts_of(host).find(["user:ann"], ["xai"])
    assert (row["id"], row["owner"], row["provider"]) == (record.id, "user:ann", "xai")
    assert (row["state"], row["usage_count"], row["hint"]) == ("active", 0, record.hint)
    assert "ciphertext" not in row
    assert good(fake, "xai", "user:ann") not in result.output


def test_list_in_pages(host: HostApp, fake: FakeProviders, monkeypatch: Any) -> None:
    """More keys than are read at a time are all listed."""
    monkeypatch.setattr("flask_byok.cli.accounts.keys._PAGE", 2)
    for number in range(5):
        args = ["--owner", f"user:{number}", "--validate", "off"]
        run(host, "set", "openai", *args, input=good(fake))
    assert len(run(host, "list").output.splitlines()) == 6


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ({"active": False}, "inactive"),
        ({"expires_at": 1}, "expired"),
        ({"ciphertext": "byok1.x.f.x"}, "unreadable"),
        ({"created_at": 2**62}, "unreadable"),
        ({"active": False, "expires_at": 9223372036854775}, "unreadable"),
        ({"verdict": "invalid", "verdict_at": 1, "verdict_version": 1}, "rejected"),
    ],
)
def test_list_of_states(
    host: HostApp, fake: FakeProviders, columns: Mapping[str, Any], state: str
) -> None:
    """A key that cannot serve is listed with the reason."""
    run(host, "set", "openai", input=good(fake))
    forge(host, **columns)
    result = run(host, "list")
    assert f"  {state}  " in result.output
    assert "Cleared" in run(host, "clear", "openai", "--yes").output


def test_list_of_odd_owners(host: HostApp, fake: FakeProviders) -> None:
    """A user's id that would steer the terminal is shown harmlessly."""
    run(host, "set", "openai", "--owner", "user:\x1b[2Jann", input=good(fake))
    result = run(host, "list")
    assert "\x1b" not in result.output
    assert "user:\\x1b[2Jann" in result.output


def test_list_as_json_is_ascii(host: HostApp, fake: FakeProviders) -> None:
    """As JSON everything but ASCII is escaped, and read back as it was."""
    run(host, "set", "openai", "--owner", "user:\x9b2J\u202eänn", input=good(fake))
    result = run(host, "list", "--json")
    assert result.output.isascii()
    assert json.loads(result.output)["owner"] == "user:\x9b2J\u202eänn"


# clear


def test_clear(tmp_path: Path, fake: FakeProviders, database_url: str) -> None:
    """All slots of an owner's key go, or one, and nobody else's; each is logged."""
    host = make_host(tmp_path, fake, database_url, BYOK_KEYS_PER_PROVIDER=3)
    for args in (["--owner", "user:ann"], ["--slot", "a"], ["--slot", "b"], []):
        run(host, "set", "openai", "--validate", "off", *args, input=good(fake))
    result = run(host, "clear", "openai", "--slot", "a", "--yes")
    assert result.output == f"Cleared sk-proj-…{good(fake)[-4:]}.\n"
    assert set(stored(host)) == {"openai", "openai/b"}
    assert run(host, "clear", "openai", "--yes").exit_code == 0
    assert (stored(host), len(stored(host, "user:ann"))) == ({}, 1)
    assert actions(host)[-3:] == [("cli", "clear")] * 3
    assert run(host, "clear", "openai", "--yes").output == "There is no such key.\n"
    close(host)


def test_clear_leaves_what_was_not_shown(
    host: HostApp, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is saved while the question is asked stays, and so the command fails."""

    def ask_slowly(*_: object) -> None:
        run(host, "set", "openai", "--replace", "--validate", "off", input=other)

    other = good(fake, owner="other")
    run(host, "set", "openai", "--validate", "off", input=good(fake))
    monkeypatch.setattr("flask_byok.cli.accounts.keys.confirm", ask_slowly)
    assert "changed or deleted by someone else" in refused(run(host, "clear", "openai"))
    assert stored(host) == {"openai": other}


def test_clear_wants_to_be_sure(host: HostApp, fake: FakeProviders) -> None:
    """Where nobody can be asked, --yes has to be given."""
    run(host, "set", "openai", input=good(fake))
    result = run(host, "clear", "openai", input="y\n")
    assert result.exit_code == 1
    assert "--yes" in result.stderr
    assert len(stored(host)) == 1


def test_clear_of_a_provider_that_is_off(
    tmp_path: Path, fake: FakeProviders, sqlite_url: str
) -> None:
    """What a provider left that was switched off can be cleared."""
    run(make_host(tmp_path, fake, sqlite_url), "set", "xai", input=good(fake, "xai"))
    urls = {"openai": fake.base_urls["openai"]}
    host = make_host(tmp_path, None, sqlite_url, BYOK_PROVIDERS=["openai"], BYOK_BASE_URLS=urls)
    assert run(host, "clear", "xai", "--yes").output.startswith("Cleared xai-…")
    result = run(host, "clear", "xai", "--yes")
    assert result.stderr == "Error: There is no such provider: 'flask byok providers' lists them.\n"
    close(host)


def test_clear_all_of_an_owner(host: HostApp, fake: FakeProviders) -> None:
    """All keys of an owner go, and what was counted of them; others' stay, and each is in the log."""
    for owner in ("user:7", "user:8"):
        for provider in ("openai", "groq"):
            run(host, "set", provider, "--owner", owner, input=good(fake, provider, owner))
    result = run(host, "clear", "--all", "--owner", "user:7", "--yes")
    assert result.exit_code == 0
    assert result.output.count("Cleared ") == 2
    assert "Nothing is left of user:7 but the audit log." in result.output
    assert (stored(host, "user:7"), len(stored(host, "user:8"))) == ({}, 2)
    assert actions(host, "user:7")[2:] == [("cli", "clear")] * 2
    assert run(host, "clear", "--all", "--owner", "user:7", "--yes").exit_code == 0


def test_clear_all_asks(host: HostApp, fake: FakeProviders) -> None:
    """Where nobody can be asked nothing is deleted without --yes; --all stands alone."""
    run(host, "set", "openai", "--owner", "user:7", input=good(fake))
    assert "pass --yes" in refused(run(host, "clear", "--all", "--owner", "user:7"))
    for args in ([], ["openai", "--all"], ["--all", "--slot", "2"]):
        result = run(host, "clear", *args, "--owner", "user:7", "--yes")
        assert result.exit_code == 2
        assert "Name a provider, or give --all without one." in result.stderr
    assert len(stored(host, "user:7")) == 1


# whatever is in the way


def said(app: Flask, args: list[str]) -> str:
    """Run a command that fails, and return its one sentence."""
    return only_sentence(run(app, *args, input=f"{CANARY}\n"))


def only_sentence(result: Result) -> str:
    """Return what a command said that failed."""
    assert "CANARY" not in result.output
    assert result.stderr.count("\n") == 1
    return refused(result)


@pytest.mark.parametrize("args", COMMANDS)
def test_accounts_off(tmp_path: Path, sqlite_url: str, args: list[str]) -> None:
    """Where no tier is in the database, each command says so."""
    host = make_host(tmp_path, None, sqlite_url, BYOK_PRECEDENCE=["session", "env"])
    assert "BYOK_PRECEDENCE names none of user, team and system" in said(host, args)


@pytest.mark.parametrize("args", COMMANDS)
def test_database_away(tmp_path: Path, redis_url: str, args: list[str]) -> None:
    """Where the database does not answer, each command says so."""
    url = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"
    host = make_host(tmp_path, None, url, BYOK_REDIS=redis_url)
    assert "Nothing listens at" in said(host, args)


@pytest.mark.parametrize("args", COMMANDS)
def test_old_tables(tmp_path: Path, args: list[str]) -> None:
    """Where the tables are too old, each command says which one mends that."""
    engine = create_engine(f"sqlite:///{tmp_path / 'old.sqlite'}")
    made_by_an_older_version(engine)
    host = make_host(tmp_path, None, str(engine.url))
    assert "flask byok db upgrade" in said(host, args)
    engine.dispose()


@pytest.mark.parametrize("args", COMMANDS)
def test_wrong_encryption_key(tmp_path: Path, sqlite_url: str, args: list[str]) -> None:
    """With a wrong encryption key each command says so, whether the app starts with it or not."""
    close(make_host(tmp_path, None, sqlite_url))
    wrong = {"BYOK_ENCRYPTION_KEY": "bb" * 32}
    testing = make_host(tmp_path, None, sqlite_url, TESTING=True, **wrong)
    assert "BYOK_ENCRYPTION_KEY is not the one" in said(testing, args)
    script = ScriptInfo(create_app=lambda: make_host(tmp_path, None, sqlite_url, **wrong))
    result = testing.test_cli_runner().invoke(args=["byok", *args], obj=script)
    assert "BYOK_ENCRYPTION_KEY is not the one" in only_sentence(result)


def test_expiry_that_cannot_be(tmp_path: Path, sqlite_url: str) -> None:
    """A time that is past, or of no zone, is refused."""
    host = make_host(tmp_path, None, sqlite_url)
    past = (utcnow() - timedelta(days=1)).isoformat()
    assert "in the past" in said(host, ["set", "openai", "--expires", past])
    assert "time zone" in said(host, ["set", "openai", "--expires", "2100-01-01"])
    close(host)


# a real terminal


def test_prompt(tmp_path: Path) -> None:
    """At a terminal the key is asked for, and does not show while it is typed."""
    terminal = Terminal(tmp_path, "set", "openai")
    terminal.expect("API key: ")
    terminal.type(CANARY)
    assert terminal.finish() == 0
    assert "Saved sk-proj-…cdef as the key for OpenAI of system." in terminal.shown
    assert "CANARY" not in terminal.shown


def test_what_is_no_text_at_a_prompt(tmp_path: Path) -> None:
    """Bytes that are no text are refused in a sentence, without a traceback that has them."""
    terminal = Terminal(tmp_path, "set", "openai")
    terminal.expect("API key: ")
    terminal.type("\udcff\udcfe" + CANARY)
    assert terminal.finish() == 1
    assert "Error: The input is no text." in terminal.shown
    assert "Traceback" not in terminal.shown
    assert "CANARY" not in terminal.shown


def test_prompt_for_each_field(tmp_path: Path) -> None:
    """Each field is asked for by its label, and only what is no secret shows."""
    terminal = Terminal(tmp_path, "set", "custom")
    terminal.expect("Base URL: ")
    terminal.type("https://llm.example.com/v1")
    terminal.expect("API key: ")
    terminal.type(CANARY)
    assert terminal.finish() == 0
    assert "llm.example.com" in terminal.shown
    assert "CANARY" not in terminal.shown


def test_clear_asks(tmp_path: Path) -> None:
    """At a terminal the hint is shown before a key is deleted, and No leaves it."""
    host = make_app(tmp_path)
    assert run(host, "set", "openai", "--validate", "off", input=CANARY).exit_code == 0
    close(host)
    for answer, code in (("n", 1), ("y", 0)):
        terminal = Terminal(tmp_path, "clear", "openai")
        terminal.expect("Delete sk-proj-…cdef? [y/N]: ")
        terminal.type(answer)
        assert terminal.finish() == code
    assert "Cleared sk-proj-…cdef." in terminal.shown
