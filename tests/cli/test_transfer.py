"""The commands ``flask byok import-env|export|import``."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_byok.accounts import export_file, transfer
from flask_byok.accounts.transfer import KeyTransfer
from flask_byok.testing import FakeProviders
from tests.accounts.account_kinds import fingerprint_of
from tests.app import OTHER_ENCRYPTION_KEY, HostApp

from .host import accounts_of, actions, close, forge, make_host, refused, run, stored
from .terminal import Terminal

WORDS = "correct horse battery staple"
OPENAI, OTHER = "sk-proj-CANARY-operators-0001", "sk-proj-CANARY-another-0002"
GROQ, GEMINI = "gsk_CANARY-3333", "AIza-CANARY-4444"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in no time."""
    monkeypatch.setattr(export_file, "WORK_FACTOR", 1)


@pytest.fixture
def other(tmp_path: Path, fake: FakeProviders) -> Iterator[HostApp]:
    """Make another host, with another database and encryption key, and one slot for each provider."""
    url = f"sqlite:///{tmp_path / 'other.sqlite'}"
    app = make_host(
        tmp_path,
        fake,
        url,
        BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY,
    )
    yield app
    close(app)


def save(host: HostApp, api_key: str, *args: str, provider: str = "openai") -> None:
    """Store a key unseen."""
    result = run(host, "set", provider, "--validate", "off", *args, input=api_key)
    assert result.exit_code == 0, result.output


# import-env


@pytest.fixture
def secret_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the operator a variable for OpenAI and a secret file for Groq, and return the file."""
    (tmp_path / "secrets").mkdir()
    file = tmp_path / "secrets" / "groq_api_key"
    file.write_text(f"{GROQ}\n")
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI)
    return file


def import_env(host: HostApp, *args: str) -> tuple[str, list[str], list[str]]:
    """Copy the operator's keys; return the output, place and outcome of each, and what can be removed."""
    result = run(host, "import-env", *args)
    assert result.exit_code == (1 if "skipped" in result.output else 0)
    assert "CANARY" not in result.output
    *rows, advice = result.output.splitlines()
    copied = [
        f"{Path(row.split()[1]).name} {outcome}"
        for row in rows
        for outcome in re.findall("added|kept|skipped", row)[:1]
    ]
    return result.output, copied, [Path(name).name for name in advice.split(": ")[-1].split(", ")]


def test_import_env(host: HostApp, secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's keys are copied and logged, and the variables and files that can be removed are named."""
    planned, _, _ = import_env(host, "--dry-run")
    assert (stored(host), actions(host)) == ({}, [])
    done, _, _ = import_env(host)
    monkeypatch.setenv("OPENAI_API_KEY", f" {OPENAI}\n")
    again, _, _ = import_env(host)
    first, second, advice = done.splitlines()
    assert first.split() == ["openai", "OPENAI_API_KEY", "(env)", "sk-proj-…0001", "added"]
    assert second.split() == ["groq", str(secret_file), "(secret)", "gsk_…3333", "added"]
    assert first.index("added") == second.index("added")  # however long the file's name is
    assert advice == f"Can be removed now: OPENAI_API_KEY, {secret_file}"
    assert planned.count("would be added") == 2
    assert "Can be removed afterwards: OPENAI_API_KEY" in planned
    assert again.count("kept: it is stored already") == 2
    assert again.endswith(f"{advice}\n")
    assert stored(host) == {"openai": OPENAI, "groq": GROQ}
    assert actions(host) == [("cli", "import")] * 2
    accounts = accounts_of(host)
    logged = {entry.fingerprint for entry in accounts.audit.entries("system")}
    assert logged == {fingerprint_of(accounts, api_key) for api_key in (OPENAI, GROQ)}


@pytest.mark.usefixtures("secret_file")
@pytest.mark.parametrize(
    ("api_key", "columns"),
    [(OTHER, {}), (OPENAI, {"active": False}), (OPENAI, {"expires_at": 1})],
)
def test_import_env_over_other_keys(host: HostApp, api_key: str, columns: dict[str, Any]) -> None:
    """A stored key that differs or does not serve stays, and so does its variable, unless --replace is given."""
    save(host, api_key)
    if columns:
        forge(host, **columns)
    (before,) = accounts_of(host).find(["system"])
    output, _, removable = import_env(host)
    assert "kept: a key that differs, or does not serve, is stored; --replace puts" in output
    assert removable == ["groq_api_key"]
    output, _, _ = import_env(host, "--replace", "--dry-run")
    assert "would be added: it replaces the stored key" in output
    assert accounts_of(host).find(["system"], ["openai"]) == [before]
    output, _, removable = import_env(host, "--replace")
    assert "added: it replaces the stored key" in output
    assert removable == ["OPENAI_API_KEY", "groq_api_key"]
    assert stored(host) == {"openai": OPENAI, "groq": GROQ}
    assert import_env(host)[2] == removable


def test_import_env_of_several_places(
    host: HostApp, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several places the first is copied; another one can be removed if it holds the same key."""
    secret_file.rename(secret_file.with_name("openai_api_key")).write_text(OTHER)
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, GEMINI)
    _, copied, removable = import_env(host)
    assert copied == [
        "openai_api_key added",
        "OPENAI_API_KEY kept",
        "GEMINI_API_KEY added",
        "GOOGLE_API_KEY kept",
    ]
    assert removable == ["openai_api_key", "GEMINI_API_KEY", "GOOGLE_API_KEY"]
    assert stored(host) == {"openai": OTHER, "google": GEMINI}


def test_import_env_of_unusable_values(
    host: HostApp, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that cannot be keys, and admin keys, are named, stop no other and fail the command."""
    secret_file.rename(secret_file.with_name("openai_api_key")).write_text("sk-admin-CANARY-0001")
    environ = {
        "GROQ_API_KEY": "CANARY with spaces",
        "XAI_API_KEY_FILE": str(secret_file),
        "GEMINI_API_KEY": "",
        "GOOGLE_API_KEY": GEMINI,
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    output, copied, removable = import_env(host)
    assert copied == [
        "openai_api_key skipped",
        "OPENAI_API_KEY added",
        "GOOGLE_API_KEY added",
        "GROQ_API_KEY skipped",
        "XAI_API_KEY skipped",
    ]
    assert "admin key" in output
    assert "skipped: The operator's API key for this provider cannot be used." in output
    assert removable == ["OPENAI_API_KEY", "GOOGLE_API_KEY"]
    assert stored(host) == {"openai": OPENAI, "google": GEMINI}


def test_import_env_without_keys(host: HostApp) -> None:
    """An operator without keys has nothing to remove."""
    assert import_env(host)[0] == "Nothing can be removed.\n"


@pytest.mark.parametrize("there", [True, False])
def test_import_env_without_room(
    host: HostApp, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """A key without room is not stored, not even if the one that it was to replace is gone meanwhile."""
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI)
    store = KeyTransfer.store

    def store_late(self: KeyTransfer, key: transfer.MovedKey, *, replace: bool) -> None:
        monkeypatch.setattr(KeyTransfer, "store", store)
        run(host, "clear", "openai", "--yes")
        save(host, OTHER, "--slot", "b")
        store(self, key, replace=replace)

    if there:
        save(host, OTHER)
        monkeypatch.setattr(KeyTransfer, "store", store_late)
    else:
        save(host, OTHER, "--slot", "b")
    assert import_env(host, "--replace")[1] == ["OPENAI_API_KEY skipped"]
    assert stored(host) == {"openai/b": OTHER}


@pytest.mark.usefixtures("secret_file")
@pytest.mark.parametrize(
    ("precedence", "owner", "sentence"),
    [
        ("user_first", "user:7", "Nothing can be removed: it serves everybody"),
        ("env_first", "system", "Can be removed now: OPENAI_API_KEY"),
        (["user", "env"], "system", "before BYOK_PRECEDENCE names 'system'."),
    ],
)
def test_import_env_advice(
    tmp_path: Path, sqlite_url: str, precedence: Any, owner: str, sentence: str
) -> None:
    """A variable can be removed only if its copy serves everybody in its stead."""
    host = make_host(tmp_path, None, sqlite_url, BYOK_PRECEDENCE=precedence)
    assert sentence in run(host, "import-env", "--owner", owner).output.splitlines()[-1]
    assert stored(host, owner) == {"openai": OPENAI, "groq": GROQ}
    close(host)


# export and import


def export(host: HostApp, file: Path, *args: str) -> None:
    """Export keys."""
    result = run(host, "export", str(file), *args, input=f"{WORDS}\n")
    assert result.exit_code == 0, result.output
    assert "CANARY" not in result.output


def test_out_and_in(host: HostApp, other: HostApp, tmp_path: Path) -> None:
    """Keys go from one app to another through a file that only its owner may read."""
    file = tmp_path / "keys.age"
    save(host, OPENAI)
    save(host, OTHER, "--owner", "user:ann", "--label", "Ann's")
    result = run(host, "export", str(file), input=f"{WORDS}\n")
    assert result.output == "Exported 2 keys.\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"CANARY" not in file.read_bytes()
    result = run(other, "import", str(file), input=f"{WORDS}\n")
    assert result.exit_code == 0
    assert "Added 2, replaced 0; unchanged 0, kept though different 0." in result.output
    assert (stored(other), stored(other, "user:ann")) == ({"openai": OPENAI}, {"openai": OTHER})
    assert "CANARY" not in result.output


def test_one_owner_out(host: HostApp, other: HostApp, tmp_path: Path) -> None:
    """One owner's keys can be exported alone; an owner without keys, perhaps mistyped, is refused."""
    save(host, OPENAI)
    save(host, OTHER, "--owner", "user:ann")
    export(host, tmp_path / "ann.age", "--owner", "user:ann")
    run(other, "import", str(tmp_path / "ann.age"), input=WORDS)
    assert (stored(other), stored(other, "user:ann")) == ({}, {"openai": OTHER})
    file = tmp_path / "mistyped.age"
    result = run(host, "export", str(file), "--owner", "user:an", input=WORDS)
    assert "This owner has no keys here." in refused(result)
    assert not file.exists()


@pytest.mark.parametrize("columns", [{}, {"ciphertext": "byok1.x.f.x"}])
def test_in_with_conflicts(
    host: HostApp, other: HostApp, tmp_path: Path, columns: dict[str, Any]
) -> None:
    """A different key, or one that does not open, stays or is replaced as asked; --dry-run only says."""
    file = tmp_path / "keys.age"
    save(host, OPENAI)
    save(other, OTHER)
    if columns:
        forge(other, **columns)
    (before,) = accounts_of(other).find(["system"])
    export(host, file)
    for args, sentence, stays in (
        (["--on-conflict", "replace", "--dry-run"], "Would have added 0, replaced 1;", True),
        ([], "Added 0, replaced 0; unchanged 0, kept though different 1.", True),
        (["--on-conflict", "replace"], "Added 0, replaced 1;", False),
        (["--on-conflict", "replace"], "Added 0, replaced 0; unchanged 1", False),
    ):
        assert sentence in run(other, "import", str(file), *args, input=WORDS).output
        assert (accounts_of(other).find(["system"]) == [before]) is stays
    assert stored(other) == {"openai": OPENAI}


def test_in_with_keys_left_out(host: HostApp, tmp_path: Path, fake: FakeProviders) -> None:
    """Keys of providers that are off are counted, keys without room are named, and the command fails."""
    save(host, GROQ, provider="groq")
    save(host, OPENAI, "--owner", "user:ann")
    export(host, tmp_path / "keys.age")
    url, urls = f"sqlite:///{tmp_path / 'few.sqlite'}", {"openai": fake.base_urls["openai"]}
    few = make_host(tmp_path, None, url, BYOK_PROVIDERS=["openai"], BYOK_BASE_URLS=urls)
    save(few, OTHER, "--owner", "user:ann", "--slot", "b")
    result = run(few, "import", str(tmp_path / "keys.age"), input=WORDS)
    assert result.exit_code == 1
    assert "left out: 1 key for groq: This provider is not available here" in result.stderr
    assert "left out, as there is no room: user:ann openai" in result.stderr
    assert stored(few, "user:ann") == {"openai/b": OTHER}
    close(few)


def test_out_without_the_unreadable(host: HostApp, tmp_path: Path) -> None:
    """Keys that do not open are named and left out, and the command fails."""
    file = tmp_path / "keys.age"
    save(host, OPENAI)
    save(host, OTHER, "--owner", "user:ann")
    forge(host, "user:ann", ciphertext="byok1.x.f.x")
    result = run(host, "export", str(file), input=WORDS)
    assert result.exit_code == 1
    assert result.output.startswith("Exported 1 key.\n")
    assert "left out, as it does not open: user:ann openai" in result.stderr
    assert file.exists()


def test_files_that_do_not_open(host: HostApp, other: HostApp, tmp_path: Path) -> None:
    """With a wrong passphrase, or a file cut off or of another kind, nothing is stored."""
    file, odd = tmp_path / "keys.age", tmp_path / "odd.age"
    save(host, OPENAI)
    export(host, file)
    content = file.read_bytes()
    trials = {
        "The passphrase is wrong": (content, "another passphrase"),
        "The file was altered or cut off": (content[:-1], WORDS),
        "not a file that 'flask byok export'": (b"sk-proj-CANARY", WORDS),
    }
    for sentence, (written, words) in trials.items():
        odd.write_bytes(written)
        result = run(other, "import", str(odd), input=words)
        assert result.exit_code == 1
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1
        assert "CANARY" not in result.output
    assert accounts_of(other).page(None) == ([], None)
    assert actions(other) == []


def test_passphrases(host: HostApp, tmp_path: Path) -> None:
    """A passphrase that is too short is refused before anything is written."""
    for stdin in ("", "\n", "short\n", "elevenchars\n", f"{' ' * 12}\n", "a b c d e f g\n"):
        result = run(host, "export", str(tmp_path / "keys.age"), input=stdin)
        assert result.exit_code == 1
        assert "12 characters or more" in result.stderr
    assert not (tmp_path / "keys.age").exists()
    assert actions(host) == []


def test_a_file_that_is_there(
    host: HostApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is written over only with --force, even if it is made while the export runs."""
    file = tmp_path / "keys.age"
    file.write_text("precious")
    save(host, OPENAI)
    assert "--force" in refused(run(host, "export", str(file), input=WORDS))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: False)
        assert "File exists" in refused(run(host, "export", str(file), input=WORDS))
    assert file.read_text() == "precious"
    export(host, file, "--force")
    assert file.read_bytes().startswith(b"age-encryption.org/v1\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def outcomes(host: HostApp) -> list[str]:
    """Return the outcomes in the system's log, the oldest first."""
    entries = reversed(accounts_of(host).audit.entries("system"))
    return [entry.outcome for entry in entries]


@pytest.mark.parametrize("broken", ["flask_byok.accounts.transfer.encrypt", "os.fsync"])
def test_an_export_that_fails(
    host: HostApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """An export that fails half way leaves no part of a file, and is in the log as begun; a whole one as done."""
    save(host, OPENAI)
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(broken, lambda *_: 1 / 0)
    result = run(host, "export", str(folder / "keys.age"), input=WORDS)
    assert isinstance(result.exception, ZeroDivisionError)
    assert list(folder.iterdir()) == []
    assert outcomes(host) == ["done", "begun"]
    monkeypatch.undo()
    export(host, folder / "keys.age")
    assert outcomes(host) == ["done", "begun", "begun", "done"]


def test_places_without_a_file(host: HostApp, tmp_path: Path) -> None:
    """A sentence says that a file cannot be written or read."""
    for command in ("export", "import"):
        result = run(host, command, str(tmp_path / "nowhere" / "keys.age"), input=WORDS)
        assert refused(result).endswith(": No such file or directory.")


def test_an_interrupted_import(
    host: HostApp, other: HostApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted import has stored stays, and running it again adds the rest."""
    for number in range(5):
        save(host, f"{OPENAI}{number}", "--owner", f"user:{number}")
    export(host, tmp_path / "keys.age")
    store, left = KeyTransfer.store, [1, 1]

    def interrupted(self: KeyTransfer, key: transfer.MovedKey, *, replace: bool) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        store(self, key, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr(KeyTransfer, "store", interrupted)
        result = run(other, "import", str(tmp_path / "keys.age"), input=WORDS)
    assert result.exit_code == 130
    assert "Interrupted: 2 of 5 are done. Run it again to go on." in result.stderr
    result = run(other, "import", str(tmp_path / "keys.age"), input=WORDS)
    assert "Added 3, replaced 0; unchanged 2" in result.output


def test_passphrase_at_a_terminal(tmp_path: Path) -> None:
    """At a terminal the passphrase is asked for twice to export and once to import, and does not show."""
    file = tmp_path / "keys.age"
    terminal = Terminal(tmp_path, "export", str(file))
    for first, second in ((WORDS, "another one"), (WORDS, WORDS)):
        terminal.expect("Passphrase: ")
        terminal.type(first)
        terminal.expect("Repeat for confirmation: ")
        terminal.type(second)
        terminal.forget()
    assert terminal.finish() == 0
    assert "Exported 0 keys." in terminal.shown
    terminal = Terminal(tmp_path, "import", str(file))
    terminal.expect("Passphrase: ")
    terminal.type(WORDS)
    assert terminal.finish() == 0
    assert "Added 0, replaced 0;" in terminal.shown
    assert "staple" not in terminal.shown
