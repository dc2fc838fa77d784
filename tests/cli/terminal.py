"""A real terminal, for what is asked for at one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

_HOST = """
from pathlib import Path
from tests.app import make_app
app = make_app(Path({directory!r}), BYOK_VALIDATE_ON_SET="off", BYOK_ALLOW_CUSTOM_PROVIDERS=True)
"""


class Terminal:
    """Runs ``flask byok`` at a terminal of its own, and types."""

    def __init__(self, directory: Path, *args: str) -> None:
        host = _HOST.format(directory=str(directory))
        (directory / "host.py").write_text(host)
        self._ours, theirs = os.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", str(directory / "host.py"), "byok", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def expect(self, text: str) -> None:
        """Read until the terminal shows a text."""
        deadline = time.monotonic() + 30
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self._read()

    def type(self, text: str) -> None:
        """Type a line, once the echo is off."""
        time.sleep(0.1)
        os.write(self._ours, f"{text}\n".encode(errors="surrogateescape"))

    def forget(self) -> None:
        """Go on from here with what is expected."""
        self.shown = ""

    def finish(self) -> int:
        """Wait for the end and return the exit code."""
        while self._read():
            pass
        os.close(self._ours)
        return self._process.wait(30)

    def _read(self) -> bool:
        try:
            found = os.read(self._ours, 4096)
        except OSError:  # the other side is closed
            return False
        self.shown += found.decode()
        return bool(found)
