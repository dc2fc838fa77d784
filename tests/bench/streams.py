"""What a streamed answer costs a server: the host with flask-byok, a bare view, and LiteLLM's proxy.

Each is a process of its own in front of the same provider, and only its own processor time counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2

from flask_byok.testing import FakeProviders
from tests.peers import servers
from tests.services import Server

from .measure import show

ANSWERS = 200
WARM = 20
_TICK = os.sysconf("SC_CLK_TCK")


class Host(Server):
    """gunicorn with threads, as our documentation sets it up."""

    name = "gunicorn"

    def __init__(self, fake: FakeProviders, pieces: int) -> None:
        super().__init__()
        self._fake, self._pieces = fake, pieces
        self.url = f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        return httpx2.get(f"{self.url}/bare").is_success

    def launch(self) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "BENCH_FOLDER": str(self.directory),
            "BENCH_UPSTREAM": self._fake.base_url("openai"),
            "BENCH_PIECES": str(self._pieces),
            "OPENAI_API_KEY": self._fake.api_key("openai"),
        }
        options = ["--bind", f"127.0.0.1:{self.port}", "--threads", "8", "--log-level", "warning"]
        command = [sys.executable, "-m", "gunicorn", *options, "tests.bench.stream_host:app"]
        return subprocess.Popen(command, env=environment, cwd=self.directory)


def bench_streams() -> None:
    """Measure the three in turn."""
    with FakeProviders() as fake:
        body = {"model": "gpt-4o-mini", "stream": True}
        body["messages"] = [{"role": "user", "content": "Count to ten."}]
        with httpx2.stream(
            "POST",
            fake.base_url("openai") + "/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {fake.api_key('openai')}"},
        ) as answer:
            pieces = sum(line.startswith("data:") for line in answer.iter_lines())
        with Host(fake, pieces) as host, httpx2.Client(timeout=60) as client:
            ways: dict[str, tuple[int, Callable[[], object]]] = {
                "a bare view": (host.process.pid, lambda: client.get(f"{host.url}/bare")),
                "stream_response": (host.process.pid, lambda: client.get(f"{host.url}/byok")),
            }
            if not servers.missing():
                with servers.LiteLLM(fake) as proxy:
                    headers = {"Authorization": f"Bearer {proxy.MASTER_KEY}"}
                    url = f"{proxy.url}/v1/chat/completions"
                    ways["LiteLLM's proxy"] = (
                        proxy.process.pid,
                        lambda: client.post(url, json=body, headers=headers),
                    )
                    _measure(ways, pieces)
            else:
                _measure(ways, pieces)


def _measure(ways: dict[str, tuple[int, Callable[[], object]]], pieces: int) -> None:
    times = {}
    for name, (pid, call) in ways.items():
        for _ in range(WARM):
            call()
        before = _processor_time(pid)
        for _ in range(ANSWERS):
            call()
        times[name] = (_processor_time(pid) - before) / ANSWERS * 1e6
    goal = "≤ × 4 of a bare view, ≤ × 0.12 of the proxy"
    show(f"A streamed answer of {pieces} pieces", times, against="a bare view", goal=goal)
    if "LiteLLM's proxy" in times:
        ratio = times["stream_response"] / times["LiteLLM's proxy"]
        print(f"  stream_response is × {ratio:.3f} of the proxy")


def _processor_time(pid: int) -> float:
    """Return the seconds that a process and its children have used."""
    family, own = {pid}, 0.0
    stats = [Path(f"/proc/{each}/stat") for each in os.listdir("/proc") if each.isdigit()]
    for path in sorted(stats, key=lambda p: int(p.parent.name)):
        try:
            number, _, rest = path.read_text().partition(" (")
        except OSError:
            continue
        fields = rest.rpartition(") ")[2].split()
        if int(number) in family or int(fields[1]) in family:
            family.add(int(number))
            own += (int(fields[11]) + int(fields[12])) / _TICK
    return own


if __name__ == "__main__":
    bench_streams()
