"""The operator's keys, in the environment and in secret files."""

from __future__ import annotations

import os
import random
import string
from itertools import product
from pathlib import Path

import pytest

from flask_byok.catalog import PROVIDERS
from flask_byok.catalog.spec import Field, ProviderSpec
from flask_byok.errors import UnreadableCredentialError
from flask_byok.keys.operator import MAX_SECRET_FILE, OperatorKeys
from flask_byok.model.credential import is_placeholder
from flask_byok.model.owner import Tier
from flask_byok.settings import Settings
from flask_byok.testing.api_keys import SHAPES, make_api_key

KEY, OTHER = "sk-operator-0123456789", "sk-another-9876543210"
SPEC = ProviderSpec(id="google", name="Google", env=("GEMINI_API_KEY", "GOOGLE_API_KEY"))


def env_key(gemini: str | None, google: str | None, spec: ProviderSpec = SPEC) -> str | None:
    """Find the key in these variables."""
    named = {"GEMINI_API_KEY": gemini, "GOOGLE_API_KEY": google}
    environ = {name: value for name, value in named.items() if value is not None}
    found = OperatorKeys(Settings(), environ).key(Tier.ENV, spec)
    return None if found is None else found.fields["api_key"].reveal()


def file_key(directory: Path, **environ: str) -> tuple[str, str] | None:
    """Find the key in the directory's files, and say where it was."""
    found = OperatorKeys(Settings(secrets_dir=directory), environ).key(Tier.SECRET, SPEC)
    return None if found is None else (found.fields["api_key"].reveal(), found.name)


@pytest.mark.parametrize(
    ("gemini", "google", "key"),
    [
        (KEY, OTHER, KEY),
        (None, OTHER, OTHER),
        *((blank, OTHER, OTHER) for blank in ("", "  ", "\n")),
        ("", None, None),
        (f' "{KEY}"\n', None, KEY),
    ],
)
def test_first_variable_with_a_key_wins(
    gemini: str | None, google: str | None, key: str | None
) -> None:
    """The catalog's names are tried in order; a blank variable is none, and wrapping is stripped."""
    assert env_key(gemini, google) == key


@pytest.mark.parametrize("malformed", ["short", "sk-with space-0123456789", "schlüssel-0123456"])
def test_malformed_is_not_skipped(malformed: str) -> None:
    """A value that cannot be a key raises, and the next name is not asked."""
    with pytest.raises(UnreadableCredentialError) as caught:
        env_key(malformed, KEY)
    assert (caught.value.provider, caught.value.tier) == ("google", "env")
    assert malformed not in str(caught.value)
    assert "GEMINI" not in str(caught.value)


PLACEHOLDERS = [
    "your_openai_api_key_here", "YOUR-API-KEY", "YourApiKeyHere", "your_mistral_key", "changeme", "change-me",
    "${OPENAI_API_KEY}", "$OPENAI_API_KEY", "%OPENAI_API_KEY%", "{{ openai_api_key }}", "$(cat key.txt)", "<your key>",
    "[your key]", "ollama", "EMPTY", "1234", "none", "dummy", "sk-no-key-required", "not-needed", "lm-studio",
    "sk-...", "sk-proj-…", "sk-your-key-here", "xxx", "sk-xxxxxxxxxxxxxxxx", "sk-ant-api03-xxxx",
    "AIzaXXXXXXXX", "********", "TODO", "TODO: add key", "None", "null", "undefined", "n/a", '""', "''", "placeholder",
    "insert key here", "REPLACE_WITH_YOUR_KEY", "OPENAI_API_KEY", "process.env.OPENAI_API_KEY", "<redacted>",
    "op://vault/openai/api key", "ref+vault://secret/openai#/key", "sm://project/openai", "env://OPENAI_API_KEY",
    "arn:aws:secretsmanager:eu-central-1:123456789012:secret:production/openai-AbCdEf", "aws-sm:openai",
    "@Microsoft.KeyVault(SecretUri=https://a-rather-long-name.vault.azure.net/secrets/openai/)", "secretref:openai-key",
    "ENC[AES256_GCM,data:p673w7b0dPKxaZwmMcTuVJFnEDg=,iv:Tx2,tag:sRt=,type:str]", "ENC(G6N718UuyPE5bHyWKy02auQPUtm)",
    "vault:secret/data/openai#OPENAI_API_KEY", "encrypted:BDqDBibm4wsYqMpCjTQ6BsDHm9K3dAt", "file:/run/secrets/openai",
    "projects/123456789/secrets/openai-api-key/versions/latest", "{{ op://vault/openai/credential }}", "#{OPENAI_KEY}#",
    '{{ with secret "secret/data/openai" }}{{ .Data.data.api_key }}{{ end }}', "$__file{/run/secrets/openai}",
    '{"OPENAI_API_KEY": "sk-proj-0123456789-0123456789-0123456789-0123456789"}', "/run/secrets/openai_api_key",
]  # fmt: skip


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_placeholders_are_no_keys(tmp_path: Path, placeholder: str) -> None:
    """A placeholder in a variable or a file, or a reference to a secret, counts as unset and is named as a fault."""
    keys = OperatorKeys(Settings(secrets_dir=tmp_path), {"GEMINI_API_KEY": placeholder})
    (tmp_path / "gemini_api_key").write_text(placeholder)
    assert keys.key(Tier.ENV, SPEC) is None
    assert keys.key(Tier.SECRET, SPEC) is None
    said = [
        f"{name} holds a placeholder" for name in (tmp_path / "gemini_api_key", "GEMINI_API_KEY")
    ]
    assert [fault.split(",")[0] for fault in keys.faults([SPEC])] == said
    assert env_key(placeholder, KEY) == KEY


def test_no_real_key_is_a_placeholder() -> None:
    """Keys of every provider's shape, of few letters or many, are keys."""
    letters = string.ascii_letters + string.digits + "-_"
    prefixes = {"", *(prefix for spec in PROVIDERS for prefix in spec.prefixes)}
    chance = random.Random(8)
    for prefix, length, alphabet in product(
        prefixes, (12, 20, 32, 48), (letters, string.ascii_lowercase)
    ):
        for _ in range(50):
            key = prefix + "".join(chance.choices(alphabet, k=length))
            assert not is_placeholder(key), key
    fakes = [make_api_key(provider, "good", n) for provider in SHAPES for n in range(50)]
    fakes.append(
        '{"client_id":"a","client_secret":"b","tenant":"c","scope":"d","more":"to be longer"}'
    )
    assert not any(map(is_placeholder, fakes))


@pytest.mark.parametrize(
    "evil", ["a-" * 29 + "!", "sk" * 30, "your_" + "a_" * 27, "aan" * 19 + "?", "no" * 29 + "q"]
)
def test_placeholders_are_told_quickly(evil: str) -> None:
    """No text takes long to compare: a pattern that tries every division of it into words would not end."""
    for text in (evil, evil + "9", evil[1:]):
        is_placeholder(text)


def test_the_apps_config_holds_keys_too() -> None:
    """A key in the app's config is the operator's, before the environment's; other entries of the name are not."""
    config: dict[str, object] = {"GOOGLE_API_KEY": KEY}
    keys = OperatorKeys(Settings(), {"GOOGLE_API_KEY": OTHER}, config)
    found = keys.key(Tier.ENV, SPEC)
    assert found is not None
    assert (found.fields["api_key"].reveal(), found.name) == (KEY, "app.config['GOOGLE_API_KEY']")
    config["GOOGLE_API_KEY"] = None
    found = keys.key(Tier.ENV, SPEC)
    assert found is not None
    assert found.name == "GOOGLE_API_KEY"


def test_name_is_known_and_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own environment is read at each use; the repr has the variable's name and no key."""
    keys = OperatorKeys(Settings())
    for name in SPEC.env:
        monkeypatch.delenv(name, raising=False)
    assert keys.key(Tier.ENV, SPEC) is None
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    found = keys.key(Tier.ENV, SPEC)
    assert found is not None
    assert found.name == "GOOGLE_API_KEY"
    assert KEY not in repr(found)


def test_provider_with_several_secrets() -> None:
    """A provider that needs more than one secret is not served by one variable."""
    fields = (Field("api_key"), Field("secret_access_key"))
    spec = ProviderSpec(id="aws", name="AWS", env=("GEMINI_API_KEY",), fields=fields)
    assert env_key(KEY, None, spec) is None


def test_secret_files(tmp_path: Path) -> None:
    """A file is called as the variable in lower case, read at each use; one that a variable names comes first."""
    file, elsewhere = tmp_path / "google_api_key", tmp_path / "elsewhere"
    for value in (KEY, OTHER):
        file.write_text(f"{value}\n")
        assert file_key(tmp_path) == (value, str(file))
    elsewhere.write_text(KEY)
    named = file_key(tmp_path, GEMINI_API_KEY_FILE=str(elsewhere))
    assert named == (KEY, "GEMINI_API_KEY_FILE")


def test_nothing_there(tmp_path: Path) -> None:
    """No directory, no file, an empty file, a directory or a pipe of that name: no key."""
    assert file_key(tmp_path / "absent") is None
    assert file_key(tmp_path) is None
    (tmp_path / "google_api_key").write_text("\n")
    (tmp_path / "gemini_api_key").mkdir()
    (tmp_path / "gemini_api_key" / "google_api_key").write_text(KEY)
    assert file_key(tmp_path) is None
    (tmp_path / "google_api_key").unlink()
    os.mkfifo(tmp_path / "google_api_key")
    assert file_key(tmp_path) is None


@pytest.mark.parametrize(
    "content", [b"short", b"\xff\xfe" + KEY.encode(), b"x" * (MAX_SECRET_FILE + 1), None]
)
def test_unusable_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that holds no possible key, or cannot be opened, raises, and the next name is not asked."""
    file = tmp_path / "gemini_api_key"
    if content is None:
        file.symlink_to(file)  # even root cannot open that
    else:
        file.write_bytes(content)
    (tmp_path / "google_api_key").write_text(KEY)
    with pytest.raises(UnreadableCredentialError) as caught:
        file_key(tmp_path)
    assert (caught.value.provider, caught.value.tier) == ("google", "secret")


@pytest.mark.parametrize("target", ["absent", "."])
def test_named_file_that_is_none(tmp_path: Path, target: str) -> None:
    """A _FILE variable that names no file raises: the operator meant one."""
    with pytest.raises(UnreadableCredentialError):
        file_key(tmp_path, GEMINI_API_KEY_FILE=str(tmp_path / target))


@pytest.mark.parametrize(
    ("variable", "owner", "said"),
    [
        ("OPENAI_API_KEY", "anthropic", "looks like a key for Anthropic"),
        ("ANTHROPIC_API_KEY", "openai", "looks like a key for OpenAI"),
        ("OPENAI_API_KEY", "sk-admin-0123456789abcdefghijABCDEFGHIJ", "an admin key"),
        ("ANTHROPIC_API_KEY", "sk-ant-admin01-0123456789abcdefghijABCDEFGHIJ", "an admin key"),
    ],
)
def test_keys_of_another_kind_are_told(
    tmp_path: Path, variable: str, owner: str, said: str
) -> None:
    """A key of another provider, or for admins, is told without the key; behind a gateway any key may be right."""
    key = make_api_key(owner) if owner in SHAPES else owner
    settings = Settings(secrets_dir=tmp_path)
    (fault,) = OperatorKeys(settings, {variable: key}).faults(PROVIDERS)
    assert fault.startswith(f"{variable} holds ")
    assert said in fault
    assert key not in fault
    urls = {"openai": "https://gateway.example", "anthropic": "https://gateway.example"}
    settings = Settings(secrets_dir=tmp_path, base_urls=urls)
    assert not list(OperatorKeys(settings, {variable: key}).faults(PROVIDERS))


def test_nothing_is_said_of_a_providers_own_keys(tmp_path: Path) -> None:
    """A key as its provider makes it is no fault in that provider's variable."""
    specs = [spec for spec in PROVIDERS if spec.id in SHAPES and spec.env]
    assert len(specs) > 5
    for spec in specs:
        keys = OperatorKeys(Settings(secrets_dir=tmp_path), {spec.env[0]: make_api_key(spec.id)})
        assert not [fault for fault in keys.faults(PROVIDERS) if "looks like" in fault], spec.id
        assert not list(keys.misnamed(PROVIDERS))


def test_a_key_in_a_variable_of_another_name_is_told() -> None:
    """A variable that nothing reads is named if a provider's key is in it, and that provider has none."""
    key = make_api_key("openai")
    (note,) = OperatorKeys(Settings(), {"OPENAI_KEY": key, "PATH": "/bin"}).misnamed(PROVIDERS)
    assert note.startswith("OPENAI_KEY in the environment looks like a key for OpenAI")
    assert "OPENAI_API_KEY is" in note
    assert key not in note
    both = {"OPENAI_KEY": key, "OPENAI_API_KEY": key}
    assert not list(OperatorKeys(Settings(), both).misnamed(PROVIDERS))
