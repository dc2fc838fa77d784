"""AWS as moto plays it: keys of its own, with signatures checked."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from .servers import ENVIRONMENT, Moto

SCRIPT = Path(__file__).with_name("aws_identity.py")


def identities(moto: Moto, *keys: tuple[str, str]) -> list[Any]:
    """Ask moto whose keys these are, by AWS's own SDK."""
    program = str(ENVIRONMENT / "bin/python")
    command = [program, str(SCRIPT), moto.url, *map("=".join, keys)]
    # Nothing of the developer's own settings, such as AWS_PROFILE.
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_moto_knows_good_keys_from_bad_ones(moto: Moto) -> None:
    """A key's owner is told; a wrong secret and an unknown id are refused, each with AWS's own code."""
    key_id, secret = moto.create_access_key("ann")
    unknown = "AKIAIOSFODNN7EXAMPLE"
    assert identities(moto, (key_id, secret), (key_id, "x" * 40), (unknown, secret)) == [
        {"arn": "arn:aws:iam::123456789012:user/ann"},
        {"status": 403, "code": "SignatureDoesNotMatch"},
        {"status": 403, "code": "InvalidClientTokenId"},
    ]
