"""How far a long command is, on terminals of several kinds."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

_WORK = """
import click
from flask_byok.cli.common import steps
total = {total}
with steps("Sealing again", total) as shown:
    for done in range(total // 10, total + 1, total // 10 or 1):
        shown.reach(done)
"""


def shown_on(columns: int, total: int = 100_000, **environ: str) -> str:
    """Return what a command of so many steps shows on a terminal of so many columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK.format(total=total)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean | {"TERM": "xterm"} | environ,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode()


@pytest.mark.parametrize("columns", [40, 80])
def test_bar_fits_the_terminal(columns: int) -> None:
    """No state of the bar is wider than the terminal, where it would leave lines behind."""
    states = re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown_on(columns)))
    assert any("100000/100000" in state for state in states)
    assert max(map(len, states)) <= columns


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_terminals_that_cannot_draw(environ: dict[str, str]) -> None:
    """A terminal that knows no escapes gets none, but lines."""
    shown = shown_on(80, **environ)
    assert "\x1b" not in shown
    assert "50,000 of 100,000" in shown


def test_nothing_to_do() -> None:
    """Nothing to do is one line without a bar."""
    assert shown_on(80, total=0).split() == ["Sealing", "again:", "0"]


_INTERRUPTED = """
import time, click
from flask_byok.cli.common import Commands
group = Commands("byok")
@group.command("work", with_appcontext=False)
def work():
    print("working", flush=True)
    time.sleep(60)
group(["work"])
"""


def test_ctrl_c_is_told_from_findings() -> None:
    """A command that was interrupted ends with 130, as a shell expects, and not with the status of findings."""
    command = [sys.executable, "-c", _INTERRUPTED]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == "Error: Interrupted.\n"
