"""The commands ``flask byok list|set|clear``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flask_byok.catalog import ProviderSpec
from flask_byok.cli.accounts.common import read_fields
from flask_byok.model.credential import Secret, Verdict
from flask_byok.testing import FakeProviders
from tests.app import HostApp

from .host import accounts_of, actions, close, forge, make_host, refused, run, stored
from .terminal import Terminal

CANARY = "sk-proj-CANARY-0123456789abcdef"


def good(fake: FakeProviders, provider: str = "openai", owner: str = "system") -> str:
    """Return a key that the fake provider takes."""
    return fake.api_key(provider, "good", owner)


# set


def test_set_takes_a_key_out_of_what_is_around_it(host: HostApp, fake: FakeProviders) -> None:
    """A line of a file of variables yields its key; that it looks like another provider's is said beside."""
    api_key = fake.api_key("groq", owner="system")
    line = f"GROQ_API_KEY='{api_key}' # work"
    result = run(host, "set", "openai", "--validate", "off", input=f"# mine\n{line}\n")
    assert result.exit_code == 0
    assert "It looks like a key for groq." in result.stderr
    assert api_key not in result.output
    assert stored(host) == {"openai": api_key}


def test_set_from_stdin(host: HostApp, fake: FakeProviders) -> None:
    """A key from stdin is checked and stored for the system, shown by its hint only, and serves the operator."""
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
    with host.app_context(), host.byok.as_operator():
        credential = host.byok.resolve("openai")
    assert (credential.source, credential.api_key) == ("system", api_key)


def test_set_with_facts(host: HostApp, fake: FakeProviders) -> None:
    """Owner, slot, label and expiry are stored as given; a provider may be called by its alias."""
    args = ["--owner", "team:red", "--slot", "second", "--label", "Red's", "--validate", "off"]
    args += ["--expires", "2100-01-31T00:00:00Z"]
    assert run(host, "set", "grok", *args, input=good(fake, "xai")).exit_code == 0
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
    assert (entry.action, entry.provider) == ("set", "openai")
    assert entry.outcome != "done"


def test_set_of_several_fields(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """A provider with several fields takes them as a JSON object, and says so otherwise."""
    config = {"BYOK_ALLOW_CUSTOM_PROVIDERS": True, "BYOK_VALIDATE_ON_SET": "off"}
    host = make_host(tmp_path, fake, sqlite_url, **config)
    fields = {"base_url": "https://llm.example.com/v1", "api_key": CANARY}
    assert run(host, "set", "custom", input=json.dumps(fields)).exit_code == 0
    assert stored(host) == {"custom": CANARY}
    for odd in (CANARY, json.dumps([CANARY]), json.dumps({"api_key": 5})):
        result = run(host, "set", "custom", "--replace", input=odd)
        assert result.exit_code == 1
        assert "JSON object with name, base_url, api_key, model" in result.stderr
        assert CANARY not in result.output
    close(host)


def test_named_endpoints(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """The commands store, list and delete named endpoints by their ids, beside the one without a name."""
    fake.add_key("custom", "")
    open_host = {"BYOK_ALLOW_CUSTOM_PROVIDERS": True, "BYOK_ALLOW_PRIVATE_ENDPOINTS": True}
    host = make_host(tmp_path, fake, sqlite_url, **open_host)
    typed = {"base_url": fake.base_url("custom")}
    named = json.dumps({**typed, "name": "My vLLM", "model": "local-small"})
    assert run(host, "set", "custom", input=json.dumps(typed)).exit_code == 0
    saved = run(host, "set", "custom", input=named)
    assert saved.output.splitlines()[0] == "Saved custom/my-vllm of system."
    again = run(host, "set", "custom/my-vllm", input=json.dumps(typed))
    assert "--replace puts another in its place" in refused(again)
    (row,) = run(host, "list", "--provider", "custom/my-vllm", "--json").stdout.splitlines()
    assert json.loads(row)["provider"] == "custom/my-vllm"
    cleared = run(host, "clear", "custom/my-vllm", "--yes")
    assert cleared.output == "Cleared custom/my-vllm.\n"
    assert [record.provider for record in accounts_of(host).find(["system"])] == ["custom"]
    close(host)


SHORT = "CANARY-short"


def test_set_of_what_cannot_be(host: HostApp) -> None:
    """A key that cannot be one, or a fact that holds it, is refused in one sentence that repeats nothing of it."""
    for args, stdin, sentence in (
        ([], "", "API key is missing."),
        ([], "short", "8 to 4,096 characters"),
        ([], f"{CANARY}\n{CANARY}0", "several keys"),
        ([], CANARY.encode() + b"\xff", "no text"),
        ([], CANARY * 5000, "far too long"),
        (["--slot", CANARY], SHORT, "The field 'slot'"),
        (["--slot", "my_CANARY-short"], SHORT, "The field 'slot'"),
        (["--owner", f"team:{CANARY}"], SHORT, "The field 'owner'"),
        (["--owner", "team:CANARY-short"], SHORT, "The field 'owner'"),
        (["--owner", "team:a\x9b2J"], SHORT, "The field 'owner'"),
        (["--label", CANARY], SHORT, "The field 'label'"),
        (["--label", "it is CANARY-short"], SHORT, "The field 'label'"),
        (["--expires", "2000-01-01T00:00:00Z"], SHORT, "in the past"),
        (["--expires", "2100-01-01"], SHORT, "time zone"),
    ):
        result = run(host, "set", "openai", "--validate", "off", *args, input=stdin)
        assert "CANARY" not in result.output
        assert result.stderr.count("\n") == 1
        assert sentence in refused(result)
        assert stored(host) == {}
    assert accounts_of(host).page(None)[0] == []


def test_set_of_an_unused_key(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """A key of a tier that is not looked up, or that the operator's key locks out, is stored with a warning."""
    config = {"BYOK_PRECEDENCE": ["session", "team", "env"], "BYOK_LOCKED_PROVIDERS": ["openai"]}
    host = make_host(tmp_path, fake, sqlite_url, **config)
    for owner, warning in (
        ("system", "BYOK_PRECEDENCE does not name system"),
        ("team:red", "BYOK_LOCKED_PROVIDERS names openai"),
    ):
        result = run(host, "set", "openai", "--owner", owner, input=good(fake))
        assert (result.exit_code, warning in result.stderr) == (0, True)
    close(host)


MISPLACED = [
    *(["set", "openai", CANARY], ["set", CANARY], ["set", CANARY, "openai"]),
    *(["set", "openai", "--api-key", CANARY], ["set", "openai", f"--api-key={CANARY}"]),
    *(["set", "openai", f"--{CANARY}"], ["set", "openai", f"-{CANARY}"]),
    *(["set", "openai", "--owner", CANARY], ["set", "openai", "--slot", f"{CANARY}!"]),
    *(["set", "openai", "--expires", CANARY], ["set", "openai", "--validate", CANARY]),
    *(["set", "--help", CANARY], ["clear", CANARY, "--yes"], ["clear", "openai", CANARY]),
    *(["list", CANARY], ["list", "--provider", CANARY], ["list", f"--json={CANARY}"]),
    *(["import-env", CANARY], ["import", "--on-conflict", CANARY, "x"]),
    *(["import", f"/nowhere/{CANARY}"], ["export", f"/nowhere/{CANARY}"]),
    *(["export", "a", "b", CANARY], ["generate-key", CANARY], ["providers", CANARY]),
    *(["check", CANARY], ["check", f"--{CANARY}"], ["db", CANARY], ["db", f"--{CANARY}"]),
    *(["db", "current", CANARY], ["db", "sql", CANARY], ["db", "upgrade", CANARY]),
    *(["rotate", CANARY], ["rotate", "--retire", CANARY], ["purge-expired", CANARY]),
    *(["purge-expired", "--days", CANARY], ["purge-expired", f"--{CANARY}"]),
    *(["audit", CANARY], ["audit", f"--{CANARY}"], ["audit", "list", CANARY]),
    *(["audit", "list", "--limit", CANARY], ["audit", "list", "--before", CANARY]),
    *(["audit", "verify", CANARY], ["audit", "verify", "--owner", CANARY]),
    *(["audit", "verify", "--against", CANARY], ["audit", "prune", "--before", CANARY]),
    *([CANARY], [f"--{CANARY}"], [f"-{CANARY}"], [f"--help={CANARY}"]),
]


def test_no_argument_is_repeated(host: HostApp) -> None:
    """A key in the place of an argument does not come back in any message, nor does anything break."""
    for args in MISPLACED:
        result = run(host, *args, input="a long enough passphrase\n")
        assert result.exit_code != 0 or "--help" in args, args
        assert result.exception is None or isinstance(result.exception, SystemExit), args
        assert "CANARY" not in result.output, args
    assert stored(host) == {}


def test_a_key_as_an_argument(host: HostApp) -> None:
    """After a key as an argument the message says why not and what to do; an option's help explains a bad value."""
    for args in ([CANARY], ["--api-key", CANARY]):
        result = run(host, "set", "openai", *args)
        assert result.exit_code == 2
        assert "A key is never an argument" in result.stderr
        assert "replace it at the provider" in result.stderr
    result = run(host, "set", "openai", "--validate", "maybe")
    assert result.exit_code == 2
    assert "'--validate': How strictly to check it: off, warn or require." in result.stderr


NO_ROOM = "BYOK_KEYS_PER_PROVIDER is 1."
SET, SET_B, CLEAR, OTHERS = (
    ["set"],
    ["set", "--slot", "b"],
    ["clear", "--yes"],
    {"openai/b": "other"},
)


@pytest.mark.parametrize(
    ("args", "first", "meanwhile", "refusal", "expected"),
    [
        ([], "", [SET_B], NO_ROOM, OTHERS),
        (["--replace"], "", [SET_B], NO_ROOM, OTHERS),
        (["--replace"], "", [SET], "", {"openai": "mine"}),
        (["--replace"], "first", [CLEAR, SET], "", {"openai": "mine"}),
        (["--replace"], "first", [CLEAR, SET_B], NO_ROOM, OTHERS),
    ],
)
def test_set_by_a_race(
    host: HostApp,
    fake: FakeProviders,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    first: str,
    meanwhile: list[list[str]],
    refusal: str,
    expected: dict[str, str],
) -> None:
    """While a key is typed, another takes a place: --replace replaces what is in its place; else the other stays."""
    if first:
        run(host, "set", "openai", input=good(fake, owner=first))

    def read_slowly(spec: ProviderSpec) -> dict[str, Secret]:
        monkeypatch.setattr("flask_byok.cli.accounts.common.read_fields", read_fields)
        for command, *options in meanwhile:
            result = run(host, command, "openai", *options, input=good(fake, owner="other"))
            assert result.exit_code == 0, result.output
        return {"api_key": Secret(good(fake, owner="mine"))}

    monkeypatch.setattr("flask_byok.cli.accounts.common.read_fields", read_slowly)
    result = run(host, "set", "openai", *args)
    assert (result.exit_code, refusal in result.output) == (1 if refusal else 0, True)
    assert stored(host) == {slot: good(fake, owner=owner) for slot, owner in expected.items()}


# list


def test_list(host: HostApp, fake: FakeProviders) -> None:
    """Every owner's keys have a line each, with facts and hints and no key."""
    heads = ["id", "owner", "provider", "slot", "hint", "state", "expires", "uses"]
    assert run(host, "list").output.split() == heads
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
    monkeypatch.setattr("flask_byok.accounts.store.rows.BATCH", 2)
    for number in range(5):
        args = ["--owner", f"user:{number}", "--validate", "off"]
        run(host, "set", "openai", *args, input=good(fake))
    assert len(run(host, "list").output.splitlines()) == 6


def test_list_of_states(host: HostApp, fake: FakeProviders) -> None:
    """A key that cannot serve is listed with the reason, and can be cleared."""
    states: dict[str, dict[str, Any]] = {
        "inactive": {"active": False},
        "expired": {"expires_at": 1},
        "unreadable": {"ciphertext": "byok1.x.f.x"},
        "rejected": {"verdict": "invalid", "verdict_at": 1, "verdict_version": 1},
    }
    for state, columns in states.items():
        run(host, "set", "openai", input=good(fake))
        forge(host, **columns)
        assert f"  {state}  " in run(host, "list").output
        assert "Cleared" in run(host, "clear", "openai", "--yes").output


def test_no_name_steers_the_terminal(host: HostApp, fake: FakeProviders, tmp_path: Path) -> None:
    """Ids that a terminal would obey are shown escaped, as JSON in ASCII, and read back as they were."""
    name = "user:\x1b[2J\x9b2J\u202e\U000e0001änn"
    run(host, "set", "openai", "--owner", name, input=good(fake))
    for args in (["list"], ["audit", "list"]):
        output = run(host, *args).output
        assert "user:\\x1b[2J\\x9b2J\\u202e\\U000e0001änn" in output
        assert all(char.isprintable() or char == "\n" for char in output)
    for args in (["list", "--json"], ["audit", "heads"]):
        output = run(host, *args).output
        assert output.isascii()
        assert name in [json.loads(line)["owner"] for line in output.splitlines()]
    (kept := tmp_path / "heads").write_text(output)
    assert run(host, "audit", "verify", "--against", str(kept)).exit_code == 0


# clear


def test_clear(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """All slots of an owner's key go, or one, and nobody else's; each is logged."""
    host = make_host(tmp_path, fake, sqlite_url, BYOK_KEYS_PER_PROVIDER=3)
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

    def ask_slowly(question: str, yes: bool) -> None:
        asked.append(question)
        run(host, "set", "openai", "--replace", "--validate", "off", input=other)

    other, asked = good(fake, owner="other"), []
    run(host, "set", "openai", "--validate", "off", input=good(fake))
    monkeypatch.setattr("flask_byok.cli.accounts.common.confirm", ask_slowly)
    assert "was changed or deleted meanwhile" in refused(run(host, "clear", "openai"))
    assert stored(host) == {"openai": other}
    assert asked == [f"Delete sk-proj-…{good(fake)[-4:]}?"]


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
    """Without a terminal nothing is deleted without --yes; --all stands alone."""
    run(host, "set", "openai", "--owner", "user:7", input=good(fake))
    for args in (["--all"], ["openai"]):
        result = run(host, "clear", *args, "--owner", "user:7", input="y\n")
        assert "pass --yes" in refused(result)
    for args in ([], ["openai", "--all"], ["--all", "--slot", "2"]):
        result = run(host, "clear", *args, "--owner", "user:7", "--yes")
        assert result.exit_code == 2
        assert "Name a provider, or give --all without one." in result.stderr
    assert len(stored(host, "user:7")) == 1


# a real terminal


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
    terminal.expect("Name: ")
    terminal.type("")
    terminal.expect("Base URL: ")
    terminal.type("https://llm.example.com/v1")
    terminal.expect("API key: ")
    terminal.type(CANARY)
    terminal.expect("Model: ")
    terminal.type("")
    assert terminal.finish() == 0
    assert "llm.example.com" in terminal.shown
    assert "CANARY" not in terminal.shown
