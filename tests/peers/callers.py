"""Clients from elsewhere, run by Node.js or a Python of their own: each prints what it understood."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from .servers import ENVIRONMENT, NODE

#: What a client printed of one answer: a line for each piece, and a last one with ``final`` or ``error``.
Lines = list[dict[str, Any]]


def run_client(script: str, url: str, **options: Any) -> Lines:
    """Let a script call a URL once, and return the lines that it printed.

    :param script: a name in ``node/``, or of a file for Python.

    :param options: see the script; ``api_key``, ``model``, ``messages``, ``headers``, … if it takes them.
    """
    return run_client_often(script, url, options)[0]


def run_client_often(script: str, url: str, *calls: dict[str, Any]) -> list[Lines]:
    """Make several calls, one after the other, in one process: to start it takes longer than a call."""
    is_python = script.endswith(".py")
    program = ENVIRONMENT / "bin" / ("python" if is_python else "node")
    file = Path(__file__).with_name(script) if is_python else NODE / f"{script}.mjs"
    command = [str(program), str(file), url, json.dumps(calls)]
    # Nothing of the developer's own settings, such as OPENAI_BASE_URL. LiteLLM asks no server for the models' prices.
    environment = {"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    answers: list[Lines] = [[]]
    for line in map(json.loads, done.stdout.splitlines()):
        answers[-1].append(line)
        if line.keys() & {"final", "error"}:
            answers.append([])
    assert answers.pop() == []
    assert len(answers) == len(calls)
    return answers


def final(lines: Lines) -> Any:
    """Return what a client put together from the whole answer.

    :raises AssertionError: it raised an error instead.
    """
    assert "final" in lines[-1], lines[-1]
    return lines[-1]["final"]


def error(lines: Lines) -> dict[str, Any]:
    """Return the error that a client raised: its ``name``, ``status``, ``code`` and ``message``.

    :raises AssertionError: it read a whole answer instead.
    """
    assert "error" in lines[-1], lines[-1]
    raised: dict[str, Any] = lines[-1]["error"]
    return raised
