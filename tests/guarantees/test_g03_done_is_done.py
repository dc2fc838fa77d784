"""G3: no overlap of requests can lose a `set`, undo a `clear`, or bring keys back.

Real gunicorn with several processes and threads, on Redis and on SQL. Each kind of overlap is tried 50 times, and 200
times in the long trials; the same overlaps on keys kept in the session's own data show what goes wrong there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.services import create_database

from .browsers import Browser, gunicorn

#: How often each overlap is tried, by where keys are kept.
TRIALS = {"redis": 50, "sqlite": 50, "redis, often": 200, "sqlite, often": 200, "postgresql": 200}
SLOW = 40  # milliseconds that a slow request holds the session open
PROVIDERS = ("openai", "anthropic", "google", "groq")

#: Returns what went wrong in one trial, or None.
Trial = Callable[[Browser], str | None]


@pytest.fixture(
    scope="module",
    params=[
        "redis",
        "sqlite",
        pytest.param("redis, often", marks=pytest.mark.stress),
        pytest.param("sqlite, often", marks=pytest.mark.stress),
        pytest.param("postgresql", marks=pytest.mark.stress),
    ],
)
def origin(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Serve the host with the session tier on each store."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param.startswith("redis"):
        environ = {"SESSIONS_HOST_REDIS": request.getfixturevalue("redis_server").url}
    elif request.param == "postgresql":
        server_url = request.getfixturevalue("postgres_server_url")
        environ = {"SESSIONS_HOST_DATABASE": create_database(server_url)}
    else:
        environ = {"SESSIONS_HOST_DATABASE": f"sqlite:///{folder / 'byok.sqlite3'}"}
    with gunicorn(folder, **environ) as origin:
        yield origin


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> int:
    """Return how often each overlap is tried here."""
    return TRIALS[request.node.callspec.params["origin"]]


def key(tag: str) -> str:
    """Return a key whose last four characters are the tag."""
    return f"sk-overlap-{tag:0>4}"


def slow(browser: Browser, how: str) -> Callable[[], object]:
    """Return a slow request that reads, or writes, the session."""
    return lambda: browser.send("GET", f"/slow-{how}?ms={SLOW}")


def two_sets_at_once(browser: Browser) -> str | None:
    browser.establish()
    done = browser.together(
        lambda: browser.set("openai", key("aaaa")), lambda: browser.set("groq", key("bbbb"))
    )
    both = [("openai", "sk-…aaaa"), ("groq", "…bbbb")]
    return _difference(browser, dict(pair for pair, ok in zip(both, done, strict=True) if ok))


def first_writes_at_once(browser: Browser) -> str | None:
    browser.send("GET", "/slow-write")  # the host's session is there, ours is not yet
    browser.together(browser.establish, browser.establish, slow(browser, "read"))
    return two_sets_at_once(browser)


def set_during(how: str, browser: Browser) -> str | None:
    browser.establish()
    _, done = browser.together(slow(browser, how), lambda: browser.set("openai", key("aaaa")))
    return _difference(browser, {"openai": "sk-…aaaa"} if done else {})


def set_during_sign_out(browser: Browser) -> str | None:
    browser.establish()
    browser.set("groq", key("bbbb"))
    browser.together(
        lambda: browser.send("POST", "/logout"), lambda: browser.set("openai", key("aaaa"))
    )
    for cookie in browser.cookies:
        if browser.hints(cookie):
            return "a key came back after sign-out"
    return None


def clear_during(how: str, browser: Browser) -> str | None:
    browser.establish()
    browser.set("openai", key("aaaa"))
    browser.set("groq", key("bbbb"))
    browser.together(slow(browser, how), lambda: browser.clear("openai"))
    return _difference(browser, {"groq": "…bbbb"})


def sign_out_during(how: str, path: str, browser: Browser) -> str | None:
    browser.establish()
    browser.send("POST", "/login/ada")
    browser.set("openai", key("aaaa"))
    browser.together(slow(browser, how), lambda: browser.send("POST", path))
    for cookie in [*browser.cookies, None]:
        if browser.hints(cookie):
            return "a key came back after sign-out"
    # A new sign-in in the very session that an overlap may have kept up must not find them either.
    browser.send("POST", "/login/ada")
    return "a key came back after the next sign-in" if browser.hints() else None


def renewal_during(how: str, browser: Browser) -> str | None:
    browser.establish()
    browser.set("openai", key("aaaa"))
    old = browser.cookie
    answers = browser.together(slow(browser, how), lambda: browser.send("POST", "/regenerate"))
    new = answers[1].headers["set-cookie"].split(";")[0].removeprefix("session=")
    if new == old:
        return "the session was not renewed"
    if browser.hints(new) != {"openai": "sk-…aaaa"}:
        return "the key did not move to the renewed session"
    return "the old session still has the key" if browser.hints(old) else None


def _difference(browser: Browser, expected: dict[str, str]) -> str | None:
    found = browser.hints()
    return None if found == expected else f"expected {expected}, found {found}"


KINDS: dict[str, Trial] = {
    "two sets at once": two_sets_at_once,
    "first writes at once": first_writes_at_once,
    "set during a slow read": partial(set_during, "read"),
    "set during a slow write": partial(set_during, "write"),
    "set during sign-out": set_during_sign_out,
    "clear during a slow read": partial(clear_during, "read"),
    "clear during a slow write": partial(clear_during, "write"),
    "sign-out during a slow read": partial(sign_out_during, "read", "/logout"),
    "sign-out during a slow write": partial(sign_out_during, "write", "/logout"),
    "sign-out and more": partial(sign_out_during, "write", "/logout-and-greet"),
    "sign-out by forgetting": partial(sign_out_during, "read", "/forget"),
    "renewal during a slow read": partial(renewal_during, "read"),
    "renewal during a slow write": partial(renewal_during, "write"),
}


def run_trials(origin: str, trial: Trial, count: int, *, at_once: int = 6) -> list[str]:
    """Run a trial many times, each with a browser of its own, and return what went wrong."""

    def one(_: int) -> str | None:
        with Browser(origin) as browser:
            return trial(browser)

    with ThreadPoolExecutor(at_once) as pool:
        return [wrong for wrong in pool.map(one, range(count)) if wrong]


@pytest.mark.parametrize("kind", KINDS)
def test_overlaps_lose_and_revive_nothing(origin: str, trials: int, kind: str) -> None:
    """Whatever overlaps, an acknowledged set stays, a cleared key stays away, and a session that ended has none."""
    assert run_trials(origin, KINDS[kind], trials) == []


def naive_set_during_slow_read(browser: Browser) -> str | None:
    browser.send("GET", "/naive/list")
    browser.together(slow(browser, "read"), lambda: browser.send("POST", "/naive/set/openai/aaaa"))
    return None if "openai" in browser.send("GET", "/naive/list").json() else "a set was lost"


def naive_two_sets_at_once(browser: Browser) -> str | None:
    browser.send("GET", "/naive/list")
    browser.together(
        lambda: browser.send("POST", "/naive/set/openai/aaaa?ms=10"),
        lambda: browser.send("POST", "/naive/set/groq/bbbb?ms=10"),
    )
    found = browser.send("GET", "/naive/list").json()
    return None if len(found) == 2 else "a set was lost"


def naive_clear_during_slow_read(browser: Browser) -> str | None:
    browser.send("POST", "/naive/set/openai/aaaa")
    browser.together(slow(browser, "read"), lambda: browser.send("POST", "/naive/clear/openai"))
    return "a cleared key came back" if browser.send("GET", "/naive/list").json() else None


def naive_sign_out_during_slow_read(browser: Browser) -> str | None:
    browser.send("POST", "/naive/set/openai/aaaa")
    browser.together(slow(browser, "read"), lambda: browser.send("POST", "/logout"))
    found = [browser.send("GET", "/naive/list", cookie=cookie).json() for cookie in browser.cookies]
    return "a key came back after sign-out" if any(found) else None


@pytest.mark.parametrize(
    "trial",
    [
        *(naive_set_during_slow_read, naive_two_sets_at_once),
        *(naive_clear_during_slow_read, naive_sign_out_during_slow_read),
    ],
    ids=lambda trial: trial.__name__,
)
def test_the_naive_design_loses_and_revives(origin: str, trial: Trial) -> None:
    """Keys kept in the session's own data are lost or come back in most of the same overlaps."""
    assert len(run_trials(origin, trial, 20)) >= 5


def random_interleaving(browser: Browser, seed: int) -> str | None:
    """Run rounds of random overlapping sets and clears among slow requests, checking after each round."""
    chance = random.Random(seed)
    # The tags that some order of the operations explains; None for no key.
    expected: dict[str, set[str | None]] = {}
    browser.establish()
    for step in range(3):
        calls: list[Callable[[], object]] = [slow(browser, chance.choice(["read", "write"]))]
        for provider in chance.sample(PROVIDERS, chance.randint(1, 4)):
            outcomes = expected[provider] = set()
            for turn in range(chance.randint(1, 2)):
                if chance.random() < 0.35:
                    calls.append(lambda p=provider: browser.clear(p))  # type: ignore[misc]
                    outcomes.add(None)
                else:
                    tag = f"{step}{turn}{chance.randint(10, 99)}"
                    calls.append(lambda p=provider, t=tag: browser.set(p, key(t)))  # type: ignore[misc]
                    outcomes.add(tag)
        chance.shuffle(calls)
        if not all(browser.together(*calls)):
            return "an operation was refused in a session that was alive throughout"
        found = {provider: hint[-4:] for provider, hint in browser.hints().items()}
        if wrong := [p for p, tags in expected.items() if found.get(p) not in tags]:
            return f"seed {seed}, step {step}: {wrong} hold {found}"
    return None


def test_random_interleavings_agree_with_a_model(origin: str, trials: int) -> None:
    """Any interleaving of sets, clears and slow requests ends in a state that some order of them explains."""
    seeds = itertools.count()
    assert run_trials(origin, lambda b: random_interleaving(b, next(seeds)), trials) == []
