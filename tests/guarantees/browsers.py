"""What a browser does with overlapping requests, and the gunicorn that answers them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.services import free_port, wait_until

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def gunicorn(folder: Path, *, workers: int = 3, threads: int = 6, **environ: str) -> Iterator[str]:
    """Run the host under gunicorn with several processes and threads; yields its address."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "gunicorn", "tests.guarantees.sessions_host:app"),
        *("--bind", f"127.0.0.1:{port}", "--workers", str(workers), "--threads", str(threads)),
        # A busy machine leaves connections idle for longer than gunicorn's two seconds.
        *("--log-level", "error", "--worker-tmp-dir", str(folder), "--keep-alive", "30"),
        *("--graceful-timeout", "5"),
    ]
    env = {**os.environ, "SESSIONS_HOST_FOLDER": str(folder), **environ}
    with (folder / "gunicorn.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    origin = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: httpx2.get(f"{origin}/slow-read").status_code == 200, "gunicorn", 60)
        yield origin
    finally:
        process.terminate()
        process.wait()


class Browser:
    """One person's browser: overlapping requests, and a cookie that each answer may change."""

    def __init__(self, origin: str) -> None:
        self._client = httpx2.Client(base_url=origin, timeout=30)
        self.cookie: str | None = None
        #: Every session id that was ever handed out.
        self.cookies: list[str] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def send(self, method: str, path: str, body: Any = None, cookie: str | None = None) -> Any:
        """Send one request with the present cookie, or with a given one, and take what cookie comes back."""
        sent = cookie or self.cookie
        self._client.cookies.clear()
        headers = {"Cookie": f"session={sent}"} if sent else {}
        response = self._client.request(method, path, json=body, headers=headers)
        if cookie is None:
            self._take(response)
        return response

    def together(self, *calls: Callable[[], Any]) -> list[Any]:
        """Run calls at once and return their answers in the order given."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return [answer.result() for answer in [pool.submit(call) for call in calls]]

    def establish(self) -> None:
        """Ask for the list of keys, as the settings dialog does first."""
        assert self.send("GET", "/api/providers/keys").status_code == 200

    def set(self, provider: str, api_key: str) -> bool:
        """Save a key and say whether that was acknowledged."""
        body = {"provider": provider, "api_key": api_key, "validate": "off"}
        response = self.send("POST", "/api/providers/keys/set", body)
        assert response.status_code in (200, 409), response.text
        return bool(response.status_code == 200)

    def clear(self, provider: str) -> bool:
        """Clear a key and say whether that was acknowledged."""
        response = self.send("POST", "/api/providers/keys/clear", {"provider": provider})
        assert response.status_code == 200, response.text
        return True

    def hints(self, cookie: str | None = None) -> dict[str, str]:
        """Return the hints of the keys in use, by provider."""
        listed = self.send("GET", "/api/providers/keys", cookie=cookie).json()["providers"]
        return {status["provider"]: status["hint"] for status in listed if status["has_key"]}

    def _take(self, response: Any) -> None:
        for name, value in response.headers.multi_items():
            if name.lower() == "set-cookie" and value.startswith("session="):
                self.cookie = value.split(";")[0].removeprefix("session=") or None
                if self.cookie and self.cookie not in self.cookies:
                    self.cookies.append(self.cookie)
