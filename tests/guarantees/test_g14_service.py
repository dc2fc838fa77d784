"""Nobody takes the service from the others: one worker with eight threads answers them during each attack."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from tests.app import KEYS
from tests.http.hostile_server import endless, head, hostile
from tests.services import free_port, wait_until

ROOT = Path(__file__).parent.parent.parent
EVENTS = head(200, "Content-Type: text/event-stream")
#: Seconds after which a person gives up; what waits for a silent server waits for 30 (`transport.PERSONAL`).
PATIENCE = 28.0


@contextmanager
def worker(folder: Path) -> Iterator[str]:
    """Run one worker with eight threads, as gunicorn's documentation has it, and yield its address."""
    port = free_port()
    made = "from tests.guarantees.attacked_host import create_app; from pathlib import Path"
    (folder / "wsgi.py").write_text(f"{made}\napp = create_app(Path({str(folder)!r}))\n")
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--threads", "8", "--workers", "1"]
    command += ["--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", str(folder), "--timeout", "300"]
    command += ["--chdir", str(folder), "--pythonpath", str(ROOT), "--graceful-timeout", "1"]
    with (folder / "gunicorn.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx2.get(f"{url}/plain").status_code == 200, "gunicorn", 60)
        yield url
    finally:
        process.terminate()
        process.wait()


class Person:
    """A visitor with a session and an address of their own."""

    def __init__(self, url: str, address: str) -> None:
        self.client = httpx2.Client(
            base_url=url, timeout=PATIENCE, headers={"X-Forwarded-For": address}
        )

    def bring(self, server: str) -> None:
        """Keep a key for a server of their own."""
        assert self.client.get(KEYS).status_code == 200
        body = {
            "provider": "custom",
            "api_key": "sk-of-their-own",
            "validate": "off",
            "base_url": server,
        }
        assert self.client.post(f"{KEYS}/set", json=body).status_code == 200

    def chat(self) -> None:
        """Ask their own server, and wait for it."""
        with closing(self.client), suppress(httpx2.HTTPError):
            self.client.get("/chat/custom?model=m")

    def check(self) -> None:
        """Have the key checked."""
        with closing(self.client), suppress(httpx2.HTTPError):
            self.client.post(f"{KEYS}/validate", json={"provider": "custom"})

    def send_bad_cookies(self) -> None:
        """Send session ids that no store can look up."""
        with closing(self.client):
            for value in (r'"a\000b"', r'"\303\050"', "x" * 5_000) * 5:
                with suppress(httpx2.HTTPError):
                    self.client.get("/visit", headers={"Cookie": f"session={value}"})


Attack = Callable[[str, str, str], list[Callable[[], None]]]


def bad_cookies(url: str, silent: str, huge: str) -> list[Callable[[], None]]:
    """Four people send bad cookies."""
    return [Person(url, f"192.0.2.{number}").send_bad_cookies for number in range(4)]


def silent_chats(url: str, silent: str, huge: str) -> list[Callable[[], None]]:
    """Twenty-four people chat with servers that never answer."""
    people = [Person(url, f"192.0.2.{number}") for number in range(24)]
    for person in people:
        person.bring(silent)
    return [person.chat for person in people]


def huge_streams(url: str, silent: str, huge: str) -> list[Callable[[], None]]:
    """One person has a stream of short lines that does not end."""
    person = Person(url, "192.0.2.1")
    person.bring(huge)
    return [person.chat]


def many_checks(url: str, silent: str, huge: str) -> list[Callable[[], None]]:
    """One IPv6 network has twenty checks at once."""
    people = [Person(url, f"2001:db8::{number:x}") for number in range(1, 21)]
    for person in people:
        person.bring(silent)
    return [person.check for person in people]


def _answered(url: str, number: int) -> int:
    """Return how many of a person's requests are answered; the person has no part in the attack."""
    person = Person(url, f"198.51.100.{number}")
    good = 0
    with closing(person.client):
        for visit in range(1, 11):
            with suppress(httpx2.HTTPError):
                good += person.client.get("/visit").text == str(visit)
                good += person.client.get(KEYS).status_code == 200
    return good


def _try(folder: Path, attacks: list[Attack], people: int) -> float:
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        yield EVENTS
        over.wait()

    with ExitStack() as stack:
        silent = stack.enter_context(hostile(silence))
        huge = stack.enter_context(hostile(lambda: endless(EVENTS, b"data: x\n" * 8_000)))
        url = stack.enter_context(worker(folder))
        acts = [act for attack in attacks for act in attack(url, silent.origin, huge.origin)]
        with ThreadPoolExecutor(len(acts)) as attackers, ThreadPoolExecutor(3) as others:
            running = [attackers.submit(act) for act in acts]
            if silent_chats in attacks or many_checks in attacks:
                wait_until(lambda: silent.heads, "the attack")
            good = sum(others.map(_answered, [url] * people, range(people)))
            over.set()
            for each in running:
                each.result()
    return good / (people * 20)


@pytest.mark.parametrize("attack", [bad_cookies, silent_chats, huge_streams, many_checks])
def test_others_are_answered(tmp_path: Path, attack: Attack) -> None:
    """During each attack the other people's requests are answered."""
    assert _try(tmp_path, [attack], people=3) >= 0.99


@pytest.mark.stress
def test_others_are_answered_during_all_attacks(tmp_path: Path) -> None:
    """During all attacks together, fifty people are answered."""
    attacks = [bad_cookies, silent_chats, huge_streams, many_checks]
    assert _try(tmp_path, attacks, people=50) >= 0.99
