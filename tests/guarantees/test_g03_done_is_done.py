"""G3: no overlap of requests can lose a `set`, undo a `clear`, or bring keys back.

Real gunicorn with several processes and threads, on Redis and on SQL. Each kind of overlap is tried 50 times, and 200
times in the long trials; the same overlaps on keys kept in the session's own data show what goes wrong there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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
        environ = {"SESSIONS_HOST_DATABASE": request.getfixturevalue("own_postgres_url")}
    else:
        environ = {"SESSIONS_HOST_DATABASE": f"sqlite:///{folder / 'byok.sqlite3'}"}
    with gunicorn(folder, **environ) as origin:
        yield origin


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> int:
    """Return how often each overlap is tried here."""
    return TRIALS[request.node.callspec.params["origin"]]


@pytest.fixture(scope="module")
def own_postgres_url(request: pytest.FixtureRequest) -> str:
    """Return a database on the real PostgreSQL that lives as long as this module."""
    from tests.services import create_database

    return create_database(request.getfixturevalue("postgres_server_url"))


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
    expected = {"openai": "sk-…aaaa", "groq": "…bbbb"}
    return _difference(
        browser, {p: h for p, h, ok in zip(*_pairs(expected), done, strict=True) if ok}
    )


def first_writes_at_once(browser: Browser) -> str | None:
    browser.send("GET", "/slow-write")  # the host's session is there, ours is not yet
    browser.together(browser.establish, browser.establish, slow(browser, "read"))
    return two_sets_at_once(browser)


def set_during_slow_read(browser: Browser) -> str | None:
    browser.establish()
    _, done = browser.together(slow(browser, "read"), lambda: browser.set("openai", key("aaaa")))
    return _difference(browser, {"openai": "sk-…aaaa"} if done else {})


def set_during_slow_write(browser: Browser) -> str | None:
    browser.establish()
    _, done = browser.together(slow(browser, "write"), lambda: browser.set("openai", key("aaaa")))
    return _difference(browser, {"openai": "sk-…aaaa"} if done else {})


def clear_during_slow_read(browser: Browser) -> str | None:
    return _clear_during(browser, "read")


def clear_during_slow_write(browser: Browser) -> str | None:
    return _clear_during(browser, "write")


def sign_out_during_slow_read(browser: Browser) -> str | None:
    return _sign_out_during(browser, "read", "/logout")


def sign_out_during_slow_write(browser: Browser) -> str | None:
    return _sign_out_during(browser, "write", "/logout")


def sign_out_and_go_on_during_slow_write(browser: Browser) -> str | None:
    return _sign_out_during(browser, "write", "/logout-and-greet")


def sign_out_by_forgetting_during_slow_read(browser: Browser) -> str | None:
    return _sign_out_during(browser, "read", "/forget")


def renewal_during_slow_read(browser: Browser) -> str | None:
    return _renewal_during(browser, "read")


def renewal_during_slow_write(browser: Browser) -> str | None:
    return _renewal_during(browser, "write")


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


def _clear_during(browser: Browser, how: str) -> str | None:
    browser.establish()
    browser.set("openai", key("aaaa"))
    browser.set("groq", key("bbbb"))
    browser.together(slow(browser, how), lambda: browser.clear("openai"))
    return _difference(browser, {"groq": "…bbbb"})


def _sign_out_during(browser: Browser, how: str, path: str) -> str | None:
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


def _renewal_during(browser: Browser, how: str) -> str | None:
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


def _pairs(expected: dict[str, str]) -> tuple[list[str], list[str]]:
    return list(expected), list(expected.values())


def _difference(browser: Browser, expected: dict[str, str]) -> str | None:
    found = browser.hints()
    return None if found == expected else f"expected {expected}, found {found}"


KINDS: list[Trial] = [
    two_sets_at_once,
    first_writes_at_once,
    set_during_slow_read,
    set_during_slow_write,
    clear_during_slow_read,
    clear_during_slow_write,
    sign_out_during_slow_read,
    sign_out_during_slow_write,
    sign_out_and_go_on_during_slow_write,
    sign_out_by_forgetting_during_slow_read,
    renewal_during_slow_read,
    renewal_during_slow_write,
    set_during_sign_out,
]


def run_trials(origin: str, trial: Trial, count: int, *, at_once: int = 6) -> list[str]:
    """Run a trial many times, each with a browser of its own, and return what went wrong."""

    def one(_: int) -> str | None:
        with Browser(origin) as browser:
            return trial(browser)

    with ThreadPoolExecutor(at_once) as pool:
        return [wrong for wrong in pool.map(one, range(count)) if wrong]


@pytest.mark.parametrize("trial", KINDS, ids=lambda trial: trial.__name__)
def test_overlaps_lose_and_revive_nothing(origin: str, trials: int, trial: Trial) -> None:
    """Whatever overlaps, an acknowledged set stays, a cleared key stays away, and a session that ended has none."""
    assert run_trials(origin, trial, trials) == []


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
        naive_set_during_slow_read,
        naive_two_sets_at_once,
        naive_clear_during_slow_read,
        naive_sign_out_during_slow_read,
    ],
    ids=lambda trial: trial.__name__,
)
def test_the_naive_design_loses_and_revives(origin: str, trial: Trial) -> None:
    """Keys kept in the session's own data are lost or come back in most of the same overlaps."""
    assert len(run_trials(origin, trial, 20)) >= 5


class Model:
    """What one session must hold: the last acknowledged set of each provider, unless cleared since."""

    def __init__(self) -> None:
        self.expected: dict[str, set[str | None]] = {}

    def unsettled(self, provider: str, *outcomes: str | None) -> None:
        """Note that overlapping operations on one provider may end in any of these."""
        self.expected[provider] = set(outcomes)

    def wrong(self, found: dict[str, str]) -> list[str]:
        """Return the providers that hold something that no order of the operations explains."""
        return [p for p, allowed in self.expected.items() if found.get(p) not in allowed]


def random_interleaving(browser: Browser, seed: int) -> str | None:
    """Run rounds of random overlapping sets and clears among slow requests, checking after each round."""
    chance = random.Random(seed)
    model = Model()
    browser.establish()
    for step in range(3):
        calls: list[Callable[[], object]] = [slow(browser, chance.choice(["read", "write"]))]
        for provider in chance.sample(PROVIDERS, chance.randint(1, 4)):
            outcomes: list[str | None] = []
            for turn in range(chance.randint(1, 2)):
                if chance.random() < 0.35:
                    calls.append(lambda p=provider: browser.clear(p))  # type: ignore[misc]
                    outcomes.append(None)
                else:
                    tag = f"{step}{turn}{chance.randint(10, 99)}"
                    calls.append(lambda p=provider, t=tag: browser.set(p, key(t)))  # type: ignore[misc]
                    outcomes.append(tag)
            model.unsettled(provider, *outcomes)
        chance.shuffle(calls)
        if not all(browser.together(*calls)):
            return "an operation was refused in a session that was alive throughout"
        found = {provider: hint[-4:] for provider, hint in browser.hints().items()}
        if wrong := model.wrong(found):
            return f"seed {seed}, step {step}: {wrong} hold {found}"
    return None


def test_random_interleavings_agree_with_a_model(origin: str, trials: int) -> None:
    """Any interleaving of sets, clears and slow requests ends in a state that some order of them explains."""
    with ThreadPoolExecutor(6) as pool:

        def one(seed: int) -> str | None:
            with Browser(origin) as browser:
                return random_interleaving(browser, seed)

        assert [wrong for wrong in pool.map(one, range(trials)) if wrong] == []
