"""The operator's keys, in the environment and in secret files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flask_byok.catalog.spec import Field, ProviderSpec
from flask_byok.errors import UnreadableCredentialError
from flask_byok.keys.operator import MAX_SECRET_FILE, EnvironmentKeys, SecretFileKeys
from flask_byok.settings import Settings

KEY, OTHER = "sk-operator-0123456789", "sk-another-9876543210"
SPEC = ProviderSpec(id="google", name="Google", env=("GEMINI_API_KEY", "GOOGLE_API_KEY"))


def env_key(**environ: str) -> str | None:
    """Find the key in these variables."""
    found = EnvironmentKeys(Settings(), environ).key(SPEC)
    return None if found is None else found.fields["api_key"].reveal()


class TestEnvironment:
    """Environment variables."""

    def test_first_name_wins(self) -> None:
        """The names of the catalog are tried in its order."""
        assert env_key(GOOGLE_API_KEY=OTHER, GEMINI_API_KEY=KEY) == KEY
        assert env_key(GOOGLE_API_KEY=OTHER) == OTHER

    @pytest.mark.parametrize("blank", ["", "  ", "\n"])
    def test_blank_is_none(self, blank: str) -> None:
        """An empty variable counts as none."""
        assert env_key(GEMINI_API_KEY=blank) is None
        assert env_key(GEMINI_API_KEY=blank, GOOGLE_API_KEY=KEY) == KEY

    def test_wrapping_is_stripped(self) -> None:
        """Quotes and white space around a key are taken off, as from a pasted one."""
        assert env_key(GEMINI_API_KEY=f' "{KEY}"\n') == KEY

    @pytest.mark.parametrize(
        "malformed", ["short", "sk-with space-0123456789", "schlüssel-0123456"]
    )
    def test_malformed_is_not_skipped(self, malformed: str) -> None:
        """A value that cannot be a key raises, and the next name is not asked."""
        with pytest.raises(UnreadableCredentialError) as caught:
            env_key(GEMINI_API_KEY=malformed, GOOGLE_API_KEY=KEY)
        assert (caught.value.provider, caught.value.tier) == ("google", "env")
        assert malformed not in str(caught.value)
        assert "GEMINI" not in str(caught.value)

    def test_name_is_told_and_key_is_not(self) -> None:
        """Which variable it was is known; the repr shows no key."""
        found = EnvironmentKeys(Settings(), {"GOOGLE_API_KEY": KEY}).key(SPEC)
        assert found is not None
        assert found.name == "GOOGLE_API_KEY"
        assert KEY not in repr(found)

    def test_change_is_seen_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The process's own environment is read at each use."""
        keys = EnvironmentKeys(Settings())
        monkeypatch.delenv("GEMINI_API_KEY", raising=False)
        monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
        assert keys.key(SPEC) is None
        monkeypatch.setenv("GOOGLE_API_KEY", KEY)
        assert keys.key(SPEC) is not None

    def test_provider_with_several_secrets(self) -> None:
        """A provider that needs more than one secret is not served by one variable."""
        fields = (Field("api_key"), Field("secret_access_key"))
        spec = ProviderSpec(id="aws", name="AWS", env=("AWS_KEY",), fields=fields)
        assert EnvironmentKeys(Settings(), {"AWS_KEY": KEY}).key(spec) is None


class TestSecretFiles:
    """Docker secrets and the like."""

    def test_file_in_the_directory(self, tmp_path: Path) -> None:
        """A file is named as the variable in lower case; a newline at its end is not part of the key."""
        file = tmp_path / "google_api_key"
        file.write_text(f"{KEY}\n")
        found = SecretFileKeys(Settings(secrets_dir=tmp_path), {}).key(SPEC)
        assert found is not None
        assert (found.fields["api_key"].reveal(), found.name) == (KEY, str(file))

    def test_rotation_is_seen_at_once(self, tmp_path: Path) -> None:
        """The file is read at each use."""
        keys = SecretFileKeys(Settings(secrets_dir=tmp_path), {})
        for value in (KEY, OTHER):
            (tmp_path / "google_api_key").write_text(value)
            found = keys.key(SPEC)
            assert found is not None
            assert found.fields["api_key"].reveal() == value

    def test_named_file_comes_first(self, tmp_path: Path) -> None:
        """A file named by the variable with _FILE after it comes before the directory."""
        (tmp_path / "gemini_api_key").write_text(KEY)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_text(OTHER)
        found = SecretFileKeys(
            Settings(secrets_dir=tmp_path), {"GEMINI_API_KEY_FILE": str(elsewhere)}
        ).key(SPEC)
        assert found is not None
        assert (found.fields["api_key"].reveal(), found.name) == (OTHER, "GEMINI_API_KEY_FILE")

    def test_nothing_there(self, tmp_path: Path) -> None:
        """No directory, no file, an empty file, a directory or a pipe of that name: no key."""
        assert SecretFileKeys(Settings(secrets_dir=tmp_path / "absent"), {}).key(SPEC) is None
        assert SecretFileKeys(Settings(secrets_dir=tmp_path), {}).key(SPEC) is None
        (tmp_path / "google_api_key").write_text("\n")
        (tmp_path / "gemini_api_key").mkdir()
        (tmp_path / "gemini_api_key" / "google_api_key").write_text(KEY)
        assert SecretFileKeys(Settings(secrets_dir=tmp_path), {}).key(SPEC) is None
        (tmp_path / "google_api_key").unlink()
        os.mkfifo(tmp_path / "google_api_key")
        assert SecretFileKeys(Settings(secrets_dir=tmp_path), {}).key(SPEC) is None

    @pytest.mark.parametrize(
        "content", [b"short", b"\xff\xfe" + KEY.encode(), b"x" * (MAX_SECRET_FILE + 1)]
    )
    def test_unusable_content(self, tmp_path: Path, content: bytes) -> None:
        """A file that holds no possible key raises, and the next name is not asked."""
        (tmp_path / "gemini_api_key").write_bytes(content)
        (tmp_path / "google_api_key").write_text(KEY)
        with pytest.raises(UnreadableCredentialError) as caught:
            SecretFileKeys(Settings(secrets_dir=tmp_path), {}).key(SPEC)
        assert (caught.value.provider, caught.value.tier) == ("google", "secret")

    def test_unreadable_file(self, tmp_path: Path) -> None:
        """A file that cannot be opened raises instead of counting as none."""
        (tmp_path / "gemini_api_key").symlink_to(tmp_path / "gemini_api_key")  # root too
        with pytest.raises(UnreadableCredentialError):
            SecretFileKeys(Settings(secrets_dir=tmp_path), {}).key(SPEC)

    @pytest.mark.parametrize("target", ["absent", "."])
    def test_named_file_that_is_none(self, tmp_path: Path, target: str) -> None:
        """A _FILE variable that names no file raises: the operator meant one."""
        environ = {"GEMINI_API_KEY_FILE": str(tmp_path / target)}
        with pytest.raises(UnreadableCredentialError):
            SecretFileKeys(Settings(secrets_dir=tmp_path), environ).key(SPEC)
