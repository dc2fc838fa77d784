"""Every public call, by every way to make it outside a view: the operator's key serves none that does not say so."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Response, copy_current_request_context, session

from flask_byok import ConfigurationError, OwnerRequiredError, get_provider_with_api_key
from tests.app import Browser, browser
from tests.keeper import logged
from tests.outside.calls import CALLS, tried
from tests.outside.conftest import Place

Found = dict[str, str]
#: The codes of our own errors that say what to write.
REFUSED = {"owner_required", "configuration"}


def _no_context(place: Place) -> Found:
    return tried(place.app.byok)


def _app_context(place: Place) -> Found:
    with place.app.app_context():
        return tried(place.app.byok)


def _request_context(place: Place) -> Found:
    with place.app.test_request_context():
        session["made"] = "here"  # this is no session that a browser sent
        return tried(place.app.byok)


def _executor(place: Place) -> Found:
    with ThreadPoolExecutor() as pool:
        return pool.submit(_app_context, place).result()


def _bare_thread_of_a_view(place: Place) -> Found:
    with ThreadPoolExecutor() as pool:
        return _in_view(place, lambda: pool.submit(tried, place.app.byok).result())


def _task_of_an_async_view(place: Place) -> Found:
    async def work() -> Found:
        return tried(place.app.byok)

    async def view() -> Found:
        # A task with a context of its own, as one that a loop elsewhere runs.
        return await asyncio.create_task(work(), context=contextvars.Context())

    return _in_view(place, view)


def _generator_after_the_request(place: Place) -> Found:
    found: Found = {}

    def pieces() -> Iterator[str]:
        found.update(tried(place.app.byok))
        yield "done"

    _in_view(place, lambda: Response(pieces()))
    return found


def _after_a_block(place: Place) -> Found:
    with place.app.app_context():
        with place.app.byok.as_operator(), place.app.byok.acting_for("ada"):
            pass
        return tried(place.app.byok)


def _interleaved_streams(place: Place) -> Found:
    with place.app.app_context():
        streams = [_stream_for(place, user) for user in ("ada", "bob")]
        assert [next(stream) for stream in streams] == ["first", "first"]
        for stream in streams:
            stream.close()
        return tried(place.app.byok)


def _stream_for(place: Place, user: str) -> Iterator[str]:
    with place.app.byok.acting_for(user):
        yield "first"


def _context_copied_in_a_block(place: Place) -> Found:
    # Greenlets begin in a copy of the context that starts them, those of a pool too, which do other work later.
    with place.app.app_context(), place.app.byok.acting_for("ada"):
        copied = contextvars.copy_context()
    return copied.run(_app_context, place)


def _request_of_another_app(place: Place) -> Found:
    from tests.app import make_app

    other = make_app(place.directory / "other", place.fake)
    with other.app_context(), other.byok.acting_for("ada"):
        other.byok.set("openai", place.fake.api_key("openai"), validate="off")

    def view() -> Found:
        with other.app_context():
            return tried(other.byok)

    return _in_view(place, view)


def _another_app(place: Place) -> Found:
    from tests.app import make_app

    other = make_app(place.directory / "other", place.fake)
    with place.app.app_context(), place.app.byok.acting_for("ada"), other.app_context():
        return tried(other.byok)


def _in_view(place: Place, view: Callable[[], Any]) -> Any:
    place.app.add_url_rule("/view", "view", view)
    return _signed_in(place).get("/view").get_json(silent=True)


def _signed_in(place: Place) -> Browser:
    visitor = browser(place.app)
    visitor.post("/sign-in/ada")
    return visitor


@pytest.mark.parametrize(
    "way",
    [
        _no_context,
        _app_context,
        _request_context,
        _executor,
        _bare_thread_of_a_view,
        _task_of_an_async_view,
        _generator_after_the_request,
        _after_a_block,
        _interleaved_streams,
        _context_copied_in_a_block,
        _another_app,
        _request_of_another_app,
    ],
)
def test_no_key_serves_where_it_is_not_known_whose(
    place: Place, way: Callable[[Place], Found]
) -> None:
    """Each call raises our own error, and sends no key."""
    found = way(place)
    assert found.keys() == CALLS.keys()
    assert set(found.values()) <= REFUSED
    assert place.used() == set()


def test_the_errors_say_what_to_write(place: Place) -> None:
    """With an app the error names both lines to write; without one, the place to make the provider object."""
    with place.app.app_context(), pytest.raises(OwnerRequiredError) as known:
        get_provider_with_api_key("openai")
    assert "with byok.acting_for(" in str(known.value)
    assert "with byok.as_operator()" in str(known.value)
    with pytest.raises(ConfigurationError, match="in the view, before the stream starts"):
        get_provider_with_api_key("openai")


def _copied_thread(place: Place) -> Found:
    def view() -> Found:
        with ThreadPoolExecutor() as pool:
            return pool.submit(copy_current_request_context(_used), place).result()

    return _in_view(place, view)


def _to_thread(place: Place) -> Found:
    async def view() -> Found:
        return await asyncio.to_thread(_used, place)

    return _in_view(place, view)


def _async_view(place: Place) -> Found:
    async def view() -> Found:
        return _used(place)

    return _in_view(place, view)


def _cookie_alone(place: Place) -> Found:
    visitor = _signed_in(place)
    cookie = visitor.get_cookie("session")
    assert cookie is not None
    with place.app.test_request_context(headers={"Cookie": f"session={cookie.value}"}):
        return _used(place)


def _named(place: Place) -> Found:
    with place.app.app_context(), place.app.byok.acting_for("ada"):
        return _used(place)


def _named_in_a_bare_request(place: Place) -> Found:
    with (
        place.app.app_context(),
        place.app.byok.acting_for("ada"),
        place.app.test_request_context(),
    ):
        return _used(place)


def _named_in_a_view(place: Place) -> Found:
    def view() -> Found:
        with place.app.byok.as_operator(), place.app.byok.acting_for("ada"):
            return _used(place)

    place.app.add_url_rule("/view", "view", view)
    return browser(place.app).get("/view").get_json()  # type: ignore[no-any-return]


def _used(place: Place) -> Found:
    return {"source": place.app.byok.resolve("openai").source}


@pytest.mark.parametrize(
    "way",
    [
        _copied_thread,
        _to_thread,
        _async_view,
        _cookie_alone,
        _named,
        _named_in_a_bare_request,
        _named_in_a_view,
    ],
)
def test_a_known_persons_key_serves(place: Place, way: Callable[[Place], Found]) -> None:
    """Where the request or the code tells whose keys are meant, that person's key serves."""
    assert way(place) == {"source": "user"}


def test_a_request_does_not_act_for_whom_code_around_it_names(place: Place) -> None:
    """A block around a test's client, or one that an unfinished stream holds open, names no request's caller."""
    visitor = browser(place.app)
    with place.app.app_context(), place.app.byok.acting_for("ada"):
        assert visitor.get("/used/openai").get_json()["source"] == "env"
        assert _used(place) == {"source": "user"}

    def unfinished() -> Iterator[str]:
        with place.app.app_context(), place.app.byok.acting_for("ada"):
            yield "first"

    stream = unfinished()
    next(stream)
    assert visitor.get("/used/openai").get_json()["source"] == "env"
    stream.close()


def test_streams_of_others_name_nobody_in_a_view(place: Place) -> None:
    """Two streams that end in the order in which they began leave the view to its own caller."""

    def view() -> Found:
        streams = [_stream_for(place, user) for user in ("ada", "ada")]
        assert [next(stream) for stream in streams] == ["first", "first"]
        assert [list(stream) for stream in streams] == [[], []]
        return _used(place)

    place.app.add_url_rule("/view", "view", view)
    assert browser(place.app).get("/view").get_json() == {"source": "env"}


@pytest.mark.parametrize("user", [None, "", False, True, b"7", "a\0b", "x" * 251])
def test_what_is_no_user_id(place: Place, user: Any) -> None:
    """A job whose user id was lost is refused: the operator's key does not take the place of the person's."""
    with (
        place.app.app_context(),
        pytest.raises(ConfigurationError, match="id"),
        place.app.byok.acting_for(user),
    ):
        place.app.byok.resolve("openai")


def test_verbs_for_a_named_person_work_on_the_account(place: Place) -> None:
    """Outside a request keys are set, checked and removed in the person's account; nothing waits for promotion."""
    byok, new = place.app.byok, place.fake.api_key("groq", owner="ada")
    with place.app.app_context(), byok.acting_for("ada", teams=["red"]):
        assert byok.set("groq", new)["source"] == "user"
        assert byok.validate("groq").verdict == "valid"
        assert byok.promote() == {"promoted": [], "kept": []}
        assert byok.clear("groq") == ["user"]
    actions = [entry for entry in logged(place.app, "user:ada") if entry[1] != "set"]
    assert actions == [("user:ada", "validate", "valid"), ("user:ada", "clear", "done")]


def test_the_operator_uses_and_does_not_set(place: Place) -> None:
    """`as_operator` finds the operator's key, also where people must sign in; its own keys are set by commands."""
    from flask_byok import NotAllowedError
    from tests.app import make_app

    app = make_app(place.directory / "b", place.fake, BYOK_REQUIRE_LOGIN=True)
    with app.app_context(), app.byok.as_operator():
        assert app.byok.resolve("openai").source == "env"
        with pytest.raises(NotAllowedError, match="flask byok set"):
            app.byok.set("openai", place.operators)
