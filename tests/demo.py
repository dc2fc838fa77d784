"""The demo as a program, and a visitor who uses it over HTTP; for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

from tests import services

# Variables that the demo reads.
_FOREIGN = ("REDIS_URL", "DATABASE_URL", "PORT", "SECRET_KEY", "BYOK_", "_API_KEY")


class Demo:
    """A running demo, and what it printed when it started."""

    def __init__(self, process: subprocess.Popen[str], banner: str) -> None:
        self.process = process
        self.banner = banner

    def printed(self, pattern: str) -> str:
        """Return the part of the banner that matches a pattern."""
        found = re.search(pattern, self.banner)
        assert found is not None, f"{pattern} is not in {self.banner}"
        return found[0]

    @property
    def url(self) -> str:
        """The address."""
        return self.printed(r"http://127\.0\.0\.1:\d+")

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return Path(self.printed(r"\S*/flask-byok-demo-\w+"))

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Stop it as Ctrl-C does. Return its exit status and what it printed since the banner."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, rest.strip()


class Visitor:
    """A browser without a screen: keeps cookies and the CSRF token."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = build_opener(HTTPCookieProcessor(CookieJar()))

    def open(
        self, path: str, data: bytes | None = None, method: str | None = None, **headers: str
    ) -> Any:
        """Send a request and return the answer, also if it is an error."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.url + path, data=data, headers=named, method=method)
        try:
            return self._opener.open(request, timeout=10)
        except HTTPError as error:
            return error

    def page(self, path: str = "/") -> str:
        """Load a page."""
        with self.open(path) as answer:
            assert answer.status == 200
            return str(answer.read().decode())

    def csrf_token(self) -> str:
        """Read the token from the page."""
        found = re.search(r'name="csrf-token" content="([^"]+)"', self.page())
        assert found is not None
        return found[1]

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """Post JSON and return the status and the JSON of the answer."""
        with self.stream(path, body) as answer:
            return answer.status, json.loads(answer.read())

    def stream(self, path: str, body: object) -> Any:
        """Post JSON and return the open answer."""
        return self.open(
            path,
            json.dumps(body).encode(),
            Content_Type="application/json",
            X_CSRFToken=self.csrf_token(),
        )

    def submit(self, path: str, **fields: str) -> tuple[int, str]:
        """Send a form and return the status and the page."""
        form = urlencode(fields | {"csrf_token": self.csrf_token()}).encode()
        with self.open(path, form) as answer:
            return answer.status, answer.read().decode()

    def source(self, provider: str = "demo") -> str | None:
        """Return the tier whose key serves, or None."""
        with self.open("/api/providers/keys") as answer:
            statuses = json.load(answer)["providers"]
        source: str | None = next(s["source"] for s in statuses if s["provider"] == provider)
        return source

    def chat(self, text: str, provider: str = "demo") -> Any:
        """Send a message and return the open stream."""
        messages = [{"role": "user", "content": text}]
        return self.stream("/chat", {"provider": provider, "messages": messages})


def start_demo(**environ: str) -> subprocess.Popen[str]:
    """Start the program with these environment variables, without any other that it reads."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith(_FOREIGN) or name.endswith(_FOREIGN))
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "flask_byok.demo"],
        env=kept | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def run_demo(**environ: str) -> Iterator[Demo]:
    """Run the demo on a free port."""
    with start_demo(**{"PORT": str(services.free_port())} | environ) as process:
        try:
            assert process.stdout is not None
            banner = ""
            for line in process.stdout:
                banner += line
                if "Ctrl-C" in line:
                    break
            yield Demo(process, banner)
        finally:
            process.kill()


def read_events(text: str) -> list[tuple[str, Any]]:
    """Read server-sent events as (name, data)."""
    frames = (dict(line.split(": ", 1) for line in f.splitlines()) for f in text.split("\n\n") if f)
    return [(frame["event"], json.loads(frame["data"])) for frame in frames]
