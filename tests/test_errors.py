"""The error tree."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from flask_byok import errors
from flask_byok.errors import ByokError, KeyRefusedError, RateLimitedError, StoreError
from flask_byok.model.credential import Validation, Verdict

TREE = errors.__doc__ or ""
#: name, HTTP status, code
DRAWN = re.findall(r"^ +(\w+Error) +(\d{3}) (\w+)$", TREE, re.MULTILINE)


def every_error(root: type[ByokError] = ByokError) -> set[type[ByokError]]:
    """Return the whole tree of public errors."""
    children = {child for child in root.__subclasses__() if child.__module__ == errors.__name__}
    return {root} | {error for child in children for error in every_error(child)}


@pytest.mark.parametrize(("name", "status", "code"), DRAWN)
def test_tree_is_as_drawn(name: str, status: str, code: str) -> None:
    """Each error has the status and code that the drawing of the tree gives it."""
    error = getattr(errors, name)
    assert (error.status, error.code) == (int(status), code)
    assert issubclass(error, ByokError)


def test_drawing_is_complete() -> None:
    """The drawing names every error there is, and none besides."""
    drawn = {getattr(errors, name) for name in re.findall(r"^ +(\w+Error)\b", TREE, re.MULTILINE)}
    assert drawn == every_error()


def test_codes_differ() -> None:
    """No two errors that have codes of their own share one, or a title."""
    tree = {error for error in every_error() if "code" in vars(error)}
    assert len({error.code for error in tree}) == len({error.title for error in tree}) == len(tree)


def test_credential_errors_are_one_family() -> None:
    """One except catches whatever stands between a caller and a usable key."""
    family = every_error(errors.CredentialError)
    assert {error.__name__ for error in family} == {
        "CredentialError",
        "MissingCredentialError",
        "RejectedCredentialError",
        "UnreadableCredentialError",
    }


def test_safe_attributes() -> None:
    """An error says which provider and tier are meant, and has its title for want of a message."""
    error = errors.RejectedCredentialError(provider="openai", tier="session")
    assert (error.provider, error.tier) == ("openai", "session")
    assert str(error) == "The provider rejected this API key"
    assert str(errors.ConfigurationError("Say what to do.")) == "Say what to do."
    assert errors.UnknownProviderError().provider is None


def test_refusal_carries_its_validation() -> None:
    """A refused key comes with what the check found; the message is our reason."""
    validation = Validation("openai", Verdict.INVALID, "Not known.", datetime.now(UTC))
    error = KeyRefusedError(validation, provider="openai")
    assert error.validation is validation
    assert str(error) == "Not known."


def test_when_to_try_again() -> None:
    """What passes by itself says after how many seconds to try again."""
    assert StoreError(tier="session").retry_after == 1
    assert RateLimitedError(retry_after=7).retry_after == 7
