"""The commands ``flask byok import-env|export|import``."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_byok.accounts import export_file as passphrase
from flask_byok.accounts.environment import store_key
from flask_byok.accounts.importer import Importer
from flask_byok.catalog import PROVIDERS
from flask_byok.keys.session_store import AuditEvent
from flask_byok.model.credential import Secret, isoformat
from flask_byok.sealing.keyring import Context
from flask_byok.sealing.records import new_record
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import HostApp

from .accounts_host import actions, close, forge, make_host, stored
from .host import accounts_of, refused, run
from .terminal import Terminal

WORDS = "correct horse battery staple"
OPENAI, OTHER, GROQ = (
    "sk-proj-CANARY-operators-0001",
    "sk-proj-CANARY-another-0002",
    "gsk_CANARY-3333",
)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in no time."""
    monkeypatch.setattr(passphrase, "COST", (2, 8, 1))


@pytest.fixture
def other(tmp_path: Path, fake: FakeProviders) -> Iterator[HostApp]:
    """Make another host, with another database and encryption key."""
    url = f"sqlite:///{tmp_path / 'other.sqlite'}"
    app = make_host(tmp_path, fake, url, BYOK_ENCRYPTION_KEY="bb" * 32)
    yield app
    close(app)


def save(host: HostApp, api_key: str, *args: str, provider: str = "openai") -> None:
    """Store a key unseen."""
    result = run(host, "set", provider, "--validate", "off", *args, input=api_key)
    assert result.exit_code == 0, result.output


def save_in_slot(host: HostApp, slot: str) -> None:
    """Store a key of Ann's for as many slots as there are, whatever BYOK_KEYS_PER_PROVIDER is."""
    keyring = get_state(host).service.keyring
    context, spec = Context("account", "user:ann", "openai", slot), PROVIDERS[0]
    record = new_record(keyring, context, spec, {"api_key": Secret(f"{OPENAI}{slot}")}, None)
    accounts_of(host).create(record, AuditEvent("cli", "set"))


def lines(text: str) -> list[list[str]]:
    """Return the words of each line."""
    return [line.split() for line in text.splitlines()]


# import-env


@pytest.fixture
def _operators_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the operator a variable and a secret file."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "groq_api_key").write_text(f"{GROQ}\n")
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI)


@pytest.mark.usefixtures("_operators_keys")
def test_import_env(host: HostApp, tmp_path: Path) -> None:
    """The operator's keys are copied; what can be removed now is named, and why nothing changes by it."""
    file = str(tmp_path / "secrets" / "groq_api_key")
    result = run(host, "import-env")
    assert result.exit_code == 0
    assert lines(result.output)[:2] == [
        ["openai", "OPENAI_API_KEY", "(env)", "sk-proj-…0001", "added"],
        ["groq", file, "(secret)", "gsk_…3333", "added"],
    ]
    first, second = result.output.splitlines()[:2]
    assert first.index("added") == second.index("added")  # however long the file's name is
    assert f"Can be removed now: OPENAI_API_KEY, {file}" in result.output
    assert "session, user, team, system, secret, env." in result.output
    assert "what is stored serves already" in result.output
    assert "CANARY" not in result.output
    assert stored(host) == {"openai": OPENAI, "groq": GROQ}
    assert actions(host) == [("cli", "import")] * 2


@pytest.mark.usefixtures("_operators_keys")
def test_import_env_again(host: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is there already is left as it is; a different one too, unless --replace is given."""
    run(host, "import-env")
    monkeypatch.setenv("OPENAI_API_KEY", OTHER)
    result = run(host, "import-env")
    assert lines(result.output)[0][-8:] == [
        "stored;",
        "--replace",
        "puts",
        "this",
        "one",
        "in",
        "its",
        "place",
    ]
    assert lines(result.output)[1][-1] == "unchanged"
    assert "OPENAI_API_KEY" not in result.output.split("Can be removed now:")[1]
    assert stored(host)["openai"] == OPENAI
    result = run(host, "import-env", "--replace")
    assert lines(result.output)[0][-1] == "replaced"
    assert "Can be removed now: OPENAI_API_KEY" in result.output
    assert stored(host)["openai"] == OTHER
    assert "CANARY" not in result.output


@pytest.mark.usefixtures("_operators_keys")
def test_import_env_only_says(host: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --dry-run nothing is stored or logged, and what would be done is said."""
    result = run(host, "import-env", "--dry-run")
    assert result.output.count("would be added") == 2
    assert "Can be removed afterwards: OPENAI_API_KEY" in result.output
    assert (stored(host), actions(host)) == ({}, [])
    save(host, OTHER)
    assert "kept: a different key" in run(host, "import-env", "--dry-run").output
    result = run(host, "import-env", "--dry-run", "--replace")
    assert lines(result.output)[0][-3:] == ["would", "be", "replaced"]
    assert stored(host) == {"openai": OTHER}


@pytest.mark.usefixtures("_operators_keys")
@pytest.mark.parametrize(
    ("columns", "state"), [({"expires_at": 1}, "expired"), ({"active": False}, "inactive")]
)
def test_import_env_of_what_does_not_serve(
    host: HostApp, columns: dict[str, Any], state: str
) -> None:
    """Nothing can be removed whose copy does not serve; --replace stores it anew."""
    run(host, "import-env")
    forge(host, **columns)
    result = run(host, "import-env")
    assert f"kept: it is stored, but {state}; --replace stores it anew" in result.output
    assert "Nothing can be removed." in result.output
    assert "Can be removed" not in result.output
    result = run(host, "import-env", "--replace")
    assert lines(result.output)[0][-1] == "replaced"
    assert "Can be removed now: OPENAI_API_KEY" in result.output
    assert lines(run(host, "import-env").output)[0][-1] == "unchanged"


@pytest.mark.usefixtures("_operators_keys")
def test_import_env_for_one(host: HostApp) -> None:
    """What one owner has takes nothing's place that serves everybody."""
    result = run(host, "import-env", "--owner", "user:7")
    assert "Nothing can be removed: it serves everybody" in result.output
    assert "Can be removed" not in result.output
    assert stored(host, "user:7") == {"openai": OPENAI, "groq": GROQ}


@pytest.mark.usefixtures("_operators_keys")
def test_import_env_says_what_will_expire(
    tmp_path: Path, fake: FakeProviders, sqlite_url: str
) -> None:
    """Under BYOK_MAX_KEY_LIFETIME a copy expires, which no variable does; so it is said when."""
    host = make_host(tmp_path, fake, sqlite_url, BYOK_MAX_KEY_LIFETIME=86_400)
    texts = [run(host, "import-env", *args).output for args in (["--dry-run"], [], [])]
    ends = accounts_of(host).find(["system"], ["openai"])[0].expires_at
    assert ", expires 2" in texts[0]
    for text in texts[1:]:
        assert f", expires {isoformat(ends)}" in text
    close(host)


def test_import_env_without_room(host: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no more keys than BYOK_KEYS_PER_PROVIDER, and nothing can be removed then."""
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI)
    save(host, OTHER, "--slot", "b")
    result = run(host, "import-env", "--replace")
    assert "not added: another one was saved meanwhile, or" in result.output
    assert "Nothing can be removed." in result.output
    assert stored(host) == {"openai/b": OTHER}


def test_import_env_by_a_race(host: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the key that was to be replaced is gone and another has its room, that is said, and stays."""

    def store_slowly(*args: Any, **options: Any) -> bool:
        run(host, "clear", "openai", "--yes")
        save(host, GROQ, "--slot", "b")
        return store_key(*args, **options)

    monkeypatch.setenv("OPENAI_API_KEY", OPENAI)
    save(host, OTHER)
    monkeypatch.setattr("flask_byok.cli.accounts.transfer.store_key", store_slowly)
    result = run(host, "import-env", "--replace")
    assert "not added: another one was saved meanwhile, or" in result.output
    assert "Nothing can be removed." in result.output
    assert stored(host) == {"openai/b": GROQ}


def test_import_env_of_nothing(host: HostApp) -> None:
    """Where the operator has no keys, that is said."""
    result = run(host, "import-env")
    assert (result.exit_code, result.output) == (0, "Nothing can be removed.\n")


def test_import_env_of_what_is_no_key(host: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be a key is named, the others are copied, and the command fails."""
    monkeypatch.setenv("OPENAI_API_KEY", "CANARY with spaces")
    monkeypatch.setenv("GROQ_API_KEY", GROQ)
    result = run(host, "import-env")
    assert result.exit_code == 1
    assert "cannot be used" in result.output
    assert "Can be removed now: GROQ_API_KEY" in result.output
    assert "CANARY" not in result.output
    assert stored(host) == {"groq": GROQ}


@pytest.mark.usefixtures("_operators_keys")
@pytest.mark.parametrize(
    ("precedence", "sentence"),
    [
        ("env_first", "secret and env before system: what is stored serves once these are gone."),
        (["env", "system"], "env before system: what is stored serves once these are gone."),
        (["user", "env"], "remove nothing before BYOK_PRECEDENCE names it."),
    ],
)
def test_import_env_says_what_serves(
    tmp_path: Path, fake: FakeProviders, sqlite_url: str, precedence: Any, sentence: str
) -> None:
    """Whether the copy or the variable serves meanwhile is said as it is configured."""
    host = make_host(tmp_path, fake, sqlite_url, BYOK_PRECEDENCE=precedence)
    assert sentence in run(host, "import-env").output
    close(host)


@pytest.mark.usefixtures("_operators_keys")
def test_import_env_takes_what_serves(
    tmp_path: Path, fake: FakeProviders, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a variable and a file for one provider the one is copied that has served."""
    monkeypatch.setenv("GROQ_API_KEY", "gsk_CANARY-of-the-variable")
    host = make_host(tmp_path, fake, sqlite_url, BYOK_PRECEDENCE=["system", "env", "secret"])
    result = run(host, "import-env")
    assert stored(host)["groq"] == "gsk_CANARY-of-the-variable"
    assert "not copied: another one for this provider comes first" in result.output
    close(host)


# export and import


def export(host: HostApp, file: Path, *args: str) -> None:
    """Export keys."""
    result = run(host, "export", str(file), *args, input=f"{WORDS}\n")
    assert result.exit_code == 0, result.output
    assert "CANARY" not in result.output


def test_out_and_in(host: HostApp, other: HostApp, tmp_path: Path) -> None:
    """Keys go from one app to another through a file that only its owner may read."""
    file = tmp_path / "keys.byok"
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
    assert actions(host, "user:ann")[-1] == actions(host)[-1] == ("cli", "export")
    assert actions(other, "user:ann") == [("cli", "import")]


def test_nobody_out(host: HostApp, tmp_path: Path) -> None:
    """An owner without keys, whose name may be mistyped, is told, and no file is made."""
    save(host, OPENAI)
    file = tmp_path / "nobody.byok"
    result = run(host, "export", str(file), "--owner", "user:nobody", input=WORDS)
    assert "This owner has no keys here." in refused(result)
    assert not file.exists()


def test_one_owner_out(host: HostApp, other: HostApp, tmp_path: Path) -> None:
    """One owner's keys can be exported alone."""
    save(host, OPENAI)
    save(host, OTHER, "--owner", "user:ann")
    export(host, tmp_path / "ann.byok", "--owner", "user:ann")
    run(other, "import", str(tmp_path / "ann.byok"), input=WORDS)
    assert (stored(other), stored(other, "user:ann")) == ({}, {"openai": OTHER})


def test_in_with_conflicts(host: HostApp, other: HostApp, tmp_path: Path) -> None:
    """A different key stays or is replaced as asked; --dry-run only says."""
    file = tmp_path / "keys.byok"
    save(host, OPENAI)
    save(other, OTHER)
    export(host, file)
    options: list[tuple[list[str], str]] = [
        ([], "Added 0, replaced 0; unchanged 0, kept though different 1."),
        (["--on-conflict", "replace", "--dry-run"], "Would have added 0, replaced 1;"),
        (["--dry-run"], "kept though different 1."),
    ]
    for args, sentence in options:
        assert sentence in run(other, "import", str(file), *args, input=WORDS).output
        assert stored(other) == {"openai": OTHER}
    result = run(other, "import", str(file), "--on-conflict", "replace", input=WORDS)
    assert "replaced 1;" in result.output
    assert stored(other) == {"openai": OPENAI}


def test_in_without_the_provider(host: HostApp, tmp_path: Path, fake: FakeProviders) -> None:
    """Keys of providers that are off are counted, the others stored, and the command fails."""
    file = tmp_path / "keys.byok"
    save(host, OPENAI)
    save(host, GROQ, provider="groq")
    export(host, file)
    url, urls = f"sqlite:///{tmp_path / 'few.sqlite'}", {"openai": fake.base_urls["openai"]}
    few = make_host(tmp_path, None, url, BYOK_PROVIDERS=["openai"], BYOK_BASE_URLS=urls)
    result = run(few, "import", str(file), input=WORDS)
    assert result.exit_code == 1
    assert "left out: 1 key for groq: This provider is not available here" in result.stderr
    assert stored(few) == {"openai": OPENAI}
    close(few)


def test_in_without_room(host: HostApp, tmp_path: Path, fake: FakeProviders) -> None:
    """Whose key, in which slot, there was no room for is said."""
    few = make_host(tmp_path, fake, f"sqlite:///{tmp_path / 'few.sqlite'}")
    for slot in ("", "2"):
        save_in_slot(host, slot)
    export(host, tmp_path / "keys.byok")
    result = run(few, "import", str(tmp_path / "keys.byok"), input=WORDS)
    assert result.exit_code == 1
    assert "left out, as there is no room: user:ann openai 2\n" in result.stderr
    assert stored(few, "user:ann") == {"openai": f"{OPENAI}"}
    close(few)


def test_out_without_the_unreadable(host: HostApp, tmp_path: Path) -> None:
    """Keys that do not open are named and left out, and the command fails."""
    file = tmp_path / "keys.byok"
    save(host, OPENAI)
    save(host, OTHER, "--owner", "user:ann")
    forge(host, "user:ann", ciphertext="byok1.x.f.x")
    result = run(host, "export", str(file), input=WORDS)
    assert result.exit_code == 1
    assert result.output.startswith("Exported 1 key.\n")
    assert "left out, as it does not open: user:ann openai" in result.stderr
    assert file.exists()


def test_files_that_do_not_open(host: HostApp, other: HostApp, tmp_path: Path) -> None:
    """With a wrong passphrase, or a file cut off, altered or of another kind, nothing is stored."""
    file, odd = tmp_path / "keys.byok", tmp_path / "odd.byok"
    for number in range(20):  # more than one chunk
        save(host, f"{OPENAI}{number}{'x' * 4000}", "--owner", f"user:{number}")
    export(host, file)
    content = file.read_bytes()
    assert len(content) > 70_000
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
        result = run(host, "export", str(tmp_path / "keys.byok"), input=stdin)
        assert result.exit_code == 1
        assert "12 characters or more" in result.stderr
    assert not (tmp_path / "keys.byok").exists()
    assert actions(host) == []


def test_a_file_that_is_there(host: HostApp, tmp_path: Path) -> None:
    """A file is written over only with --force, and keeps its content to the end."""
    file = tmp_path / "keys.byok"
    file.write_text("precious")
    save(host, OPENAI)
    result = run(host, "export", str(file), input=WORDS)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert file.read_text() == "precious"
    export(host, file, "--force")
    assert file.read_bytes().startswith(b'{"format":"flask-byok-export-1"')
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_made_meanwhile(
    host: HostApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that somebody else makes while the export runs is not written over."""
    file = tmp_path / "keys.byok"
    monkeypatch.setattr(Path, "exists", lambda self: False)
    file.write_text("precious")
    result = run(host, "export", str(file), input=WORDS)
    assert (result.exit_code, file.read_text()) == (1, "precious")
    assert "File exists" in result.stderr


def outcomes(host: HostApp) -> list[str]:
    """Return what became of what was done to the system's keys, the oldest first."""
    entries = reversed(accounts_of(host).audit.entries("system"))
    return [entry.event.outcome for entry in entries]


def test_an_export_that_fails(
    host: HostApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that fails half way leaves no part of a file, and is in the log as begun; a whole one as done."""
    save(host, OPENAI)
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(passphrase.SealedWriter, "close", lambda self: 1 / 0)
    result = run(host, "export", str(folder / "keys.byok"), input=WORDS)
    assert isinstance(result.exception, ZeroDivisionError)
    assert list(folder.iterdir()) == []
    assert outcomes(host) == ["done", "begun"]
    monkeypatch.undo()
    export(host, folder / "keys.byok")
    assert outcomes(host) == ["done", "begun", "begun", "done"]


@pytest.mark.parametrize("command", ["export", "import"])
def test_places_without_a_file(host: HostApp, tmp_path: Path, command: str) -> None:
    """A file that cannot be written or read is told in a sentence."""
    result = run(host, command, str(tmp_path / "nowhere" / "keys.byok"), input=WORDS)
    assert result.exit_code == 1
    assert result.stderr.endswith(": No such file or directory.\n")


def test_an_interrupted_import(
    host: HostApp, other: HostApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted import has stored stays, and running it again adds the rest."""
    for number in range(5):
        save(host, f"{OPENAI}{number}", "--owner", f"user:{number}")
    export(host, tmp_path / "keys.byok")
    add, left = Importer._add, [1, 1]

    def interrupted(self: Importer, key: Any) -> bool:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return add(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(Importer, "_add", interrupted)
        result = run(other, "import", str(tmp_path / "keys.byok"), input=WORDS)
    assert result.exit_code == 130
    assert "Interrupted: 2 keys of 5 are done. Run it again to go on." in result.stderr
    result = run(other, "import", str(tmp_path / "keys.byok"), input=WORDS)
    assert "Added 3, replaced 0; unchanged 2" in result.output


def test_an_export_that_is_told_to_end(tmp_path: Path) -> None:
    """An export that is ended from outside leaves no part of a file."""
    (tmp_path / "out").mkdir()
    terminal = Terminal(tmp_path, "export", str(tmp_path / "out" / "keys.byok"), slow=True)
    for asked in ("Passphrase: ", "Repeat for confirmation: "):
        terminal.expect(asked)
        terminal.type(WORDS)
    terminal.expect("sealing")
    assert len(list((tmp_path / "out").iterdir())) == 1
    terminal.terminate()
    assert terminal.finish() == 143
    assert list((tmp_path / "out").iterdir()) == []


def test_passphrase_at_a_terminal(tmp_path: Path) -> None:
    """At a terminal the passphrase is asked for twice to export and once to import, and does not show."""
    file = tmp_path / "keys.byok"
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
