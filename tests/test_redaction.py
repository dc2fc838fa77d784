"""Logs and error reports without keys."""

from __future__ import annotations

import base64
import copy
import gc
import io
import json
import logging
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flask_byok.catalog import Catalog
from flask_byok.http import Endpoint, Outbound
from flask_byok.keys.checks import Check
from flask_byok.keys.typed import Typed
from flask_byok.model.credential import Secret
from flask_byok.providers import make_provider
from flask_byok.redaction import REDACTED, install_log_redaction, redact, sentry_before_send
from flask_byok.testing import FakeProviders
from tests.app import browser, make_app
from tests.providers.conftest import HELLO, credential_for

CANARY = 'sk-canary+/="0123456789\\abc&%'


@pytest.fixture
def secret() -> Secret:
    """Keep a key with every awkward character alive."""
    return Secret(CANARY)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Write all loggers' records at DEBUG into a text, redacted."""
    factory = logging.getLogRecordFactory()
    install_log_redaction()
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)
    logging.setLogRecordFactory(factory)


def test_only_secrets_are_redacted(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region beside a key, of the operator's or a person's, stays readable in logs; the key does not."""
    for owner in ("operator", "person"):
        app = make_app(tmp_path / owner, fake, BYOK_PROVIDERS=["moonshot"])
        fields = {**fake.fields("moonshot", owner=owner), "region": "international"}
        said = f"international {fields['api_key']}"
        app.get("/said")(
            lambda app=app, said=said: redact(f"{app.byok.resolve('moonshot').provider} {said}")
        )
        visitor = browser(app)
        visitor.load()
        if owner == "operator":
            monkeypatch.setenv("MOONSHOT_API_KEY", fields["api_key"])
        else:
            assert visitor.call("set", provider="moonshot", fields=fields).status_code == 200
            monkeypatch.delenv("MOONSHOT_API_KEY")
        assert visitor.get("/said").text == f"moonshot international {REDACTED}"


def encodings(value: str) -> dict[str, str]:
    """Write a value in each way that it may appear."""
    return {
        "plain": value,
        "url": quote(value),
        "url path": quote(value, safe=""),
        "json": json.dumps({"k": value}),
        "repr": repr([value]),
        "base64": base64.b64encode(value.encode()).decode(),
        "url-safe base64": base64.urlsafe_b64encode(value.encode()).decode(),
        "basic auth": base64.b64encode(f"user:{value}".encode()).decode(),
        "base64 within": base64.b64encode(f"a{value}bc".encode()).decode(),
        "base64 within 2": base64.b64encode(f"ab{value}c".encode()).decode(),
    }


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60))
def test_any_key_is_redacted_in_any_encoding(value: str) -> None:
    """Every encoding of every printable key is redacted."""
    assume(value != REDACTED)
    alive = Secret(value)
    for text in encodings(value).values():
        assert redact(text) != text
    del alive


BODY = [
    line * 4
    for line in ("MIIEvQIBADANBgkq", "hkiG9w0BAQEF+A/S", "CANARYb64Aa0/+Bb", "CANARYlast==")
]
PEM = "\n".join(["-----BEGIN PRIVATE KEY-----", *BODY, "-----END PRIVATE KEY-----", ""])


@pytest.mark.parametrize(
    "text",
    [
        *(PEM, PEM.strip(), repr(PEM), json.dumps({"private_key": PEM}), PEM.replace("\n", "\r\n")),
        *(json.dumps(json.dumps({"private_key": PEM})), "".join(BODY), *BODY, quote("".join(BODY))),
        base64.b64encode(PEM.encode()).decode(),
    ],
)
def test_a_service_accounts_private_key_is_redacted(text: str) -> None:
    """What libraries read out of a service account's file is redacted, whole, escaped, and each line of it alone."""
    account = {"type": "service_account", "private_key": PEM, "client_email": "bot@example.org"}
    alive = Secret(json.dumps(account, separators=(",", ":")))
    redacted = redact(f"bot@example.org {text}")
    assert redacted.startswith("bot@example.org ")
    for line in BODY:
        assert line not in redacted
        assert base64.b64encode(line.encode()).decode()[4:-4] not in redacted
    del alive


def test_a_secret_in_braces_that_is_no_file() -> None:
    """A secret that only looks like a file, or has no private key in it, is redacted as any other."""
    for value in ("{not-json-0123456789", '{"private_key":17,"more":"0123456789"}', "{" * 5000):
        alive = Secret(value)
        assert redact(f"a {value} b") == f"a {REDACTED} b"
        del alive


def test_what_is_redacted_of_several_keys() -> None:
    """The longer of two keys is redacted whole; a short value, which would blot out words, and a dead one are left."""
    short = "sk-proj-0123456789"
    alive = [Secret(short), Secret(short + "-and-more"), Secret("the")]
    assert redact(f"the {short}-and-more {short}") == f"the {REDACTED} {REDACTED}"
    del alive
    gc.collect()
    assert redact(short) == short


@pytest.mark.parametrize(
    "extra",
    [
        {"authorization": f"Bearer {CANARY}"},
        {"headers": {"authorization": ["x", f"Bearer {CANARY}"]}},
        {"headers": {CANARY: 1}},
        {"pair": ("x", CANARY)},
        {"body": CANARY.encode()},
        {"deep": json.loads("[" * 50 + json.dumps(CANARY) + "]" * 50)},
    ],
)
def test_extra_fields_are_redacted(
    secret: Secret, log: io.StringIO, caplog: pytest.LogCaptureFixture, extra: dict[str, Any]
) -> None:
    """What a record is given by `extra=`, as structured logging is, holds no key."""
    logging.getLogger("some.library").error("x", extra=extra)
    # Others may log meanwhile: connections of an earlier test that are collected now.
    (record,) = (record for record in caplog.records if record.name == "some.library")
    assert CANARY not in repr(vars(record))
    assert repr(CANARY)[1:-1] not in repr(vars(record))
    assert REDACTED in repr(vars(record))


def test_other_extra_fields_are_left_as_they_are(
    secret: Secret, log: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    """Values without a key are the very objects that were given."""
    cycle: dict[str, Any] = {"name": "x"}
    cycle["self"] = [cycle]
    items = [1, ("a", b"b"), {"c": None}]
    extra = {"items": items, "number": 7, "who": object(), "cycle": cycle}
    logging.getLogger("some.library").error("x", extra=extra)
    (record,) = (record for record in caplog.records if record.name == "some.library")
    assert all(vars(record)[name] is value for name, value in extra.items())


def test_records_go_to_other_processes_and_come_from_them(secret: Secret, log: io.StringIO) -> None:
    """A record that is made of its parts, as after a socket or a queue, is redacted; each pickles to plain things."""
    sent = {"msg": "using %s", "args": (CANARY,), "levelno": 40, "levelname": "ERROR"}
    record = logging.makeLogRecord(sent)
    assert record.getMessage() == f"using {REDACTED}"
    assert CANARY not in repr(vars(record))
    record = logging.getLogger("x").makeRecord("x", 20, "f", 1, "m %d", (1,), None, extra={"a": 1})
    pickled = pickle.dumps(record)
    assert b"flask_byok" not in pickled
    assert (pickle.loads(pickled).getMessage(), pickle.loads(pickled).a) == ("m 1", 1)
    assert copy.copy(record).getMessage() == "m 1"


def test_message_arguments_and_traceback_are_redacted(secret: Secret, log: io.StringIO) -> None:
    """The key is in no part of a record as it is written."""
    logger = logging.getLogger("some.library")
    logger.debug("calling with %s and %r", CANARY, {"key": CANARY})
    logger.info("headers: %(key)s", {"key": CANARY})
    logger.warning(f"formatted {CANARY}")
    try:
        try:
            raise ValueError(f"bad header {CANARY}")
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        logger.exception("failed")
    logger.error("stack", stack_info=True)
    written = log.getvalue()
    assert CANARY not in written
    assert repr(CANARY)[1:-1] not in written
    assert written.count(REDACTED) >= 4
    assert "RuntimeError: outer" in written


def test_a_record_that_cannot_be_formatted_is_redacted(
    secret: Secret, log: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """logging prints such a record's parts itself, so they are redacted first."""
    logging.getLogger("some.library").warning("two %s %s", CANARY)
    captured = capsys.readouterr()
    assert CANARY not in log.getvalue() + captured.out + captured.err
    assert REDACTED in log.getvalue()


def test_records_without_a_key_are_left_as_they_are(
    secret: Secret, log: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    """Message, arguments and exception of other records stay, for handlers that look at them."""
    try:
        raise ValueError("harmless")
    except ValueError:
        logging.getLogger("some.library").exception("number %d", 7)
    (record,) = (record for record in caplog.records if record.name == "some.library")
    assert (record.msg, record.args) == ("number %d", (7,))
    assert record.exc_info


def test_installing_twice_wraps_once_and_keeps_the_hosts_factory() -> None:
    """Several apps may each install it, and what the host's own factory makes is what is redacted."""
    before = logging.getLogRecordFactory()

    def hosts(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.request_id = "r1"
        return record

    logging.setLogRecordFactory(hosts)
    try:
        install_log_redaction()
        once = logging.getLogRecordFactory()
        install_log_redaction()
        assert logging.getLogRecordFactory() is once
        record = logging.getLogger("x").makeRecord("x", 20, "f", 1, "m", (), None)
    finally:
        logging.setLogRecordFactory(before)
    assert record.request_id == "r1"  # type: ignore[attr-defined]


def test_an_event_of_sentry_is_redacted(secret: Secret) -> None:
    """Every text of an event, however deep, as key or as value."""
    event = {
        "exception": {"values": [{"value": f"bad {CANARY}", "n": 1}]},
        "vars": {CANARY: ("x", CANARY.encode())},
        "level": "error",
    }
    found = sentry_before_send(event, {})
    assert CANARY not in str(found)
    assert REDACTED in str(found)
    assert found["level"] == "error"


def test_threads_that_make_and_drop_secrets_do_not_break_logging(log: io.StringIO) -> None:
    """A record can be redacted while other requests' secrets come and go."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def churn() -> None:
        while not stop.is_set():
            [Secret("k" * 20) for _ in range(50)]

    def write() -> None:
        try:
            for _ in range(200):
                logging.getLogger("some.library").debug("x")
        except RuntimeError as error:
            failures.append(error)

    churners = [threading.Thread(target=churn) for _ in range(2)]
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in churners + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in churners:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
@pytest.mark.parametrize("behaviour", ["good", "bad"])
def test_the_sdks_and_the_http_client_log_no_key_at_debug(
    log: io.StringIO, fake: FakeProviders, provider: str, behaviour: str
) -> None:
    """A chat and a check with every logger at DEBUG write much, and no key."""
    spec, api_key = Catalog().get(provider), fake.api_key(provider, behaviour)
    credential, outbound = credential_for(fake, provider, api_key), Outbound()
    try:
        assert list(make_provider(spec, credential, outbound).stream_chat(HELLO))
    except Exception:
        assert behaviour == "bad"
        logging.getLogger("host").exception("chat failed")
    del credential
    endpoint = Endpoint(fake.base_url(provider), "operator")
    fields = {"api_key": Secret(api_key)}
    Check(spec, Typed(fields, fields, None, endpoint), outbound).validation()
    del fields
    # Today's SDKs mask their headers themselves; a host that logs a key shows the redactor at work.
    alive = Secret(api_key)
    logging.getLogger("host").debug("using %s", api_key)
    del alive
    written = log.getvalue()
    assert "send_request_headers" in written
    assert f"using {REDACTED}" in written
    for text in encodings(api_key).values():
        assert text not in written
    assert api_key[12:] not in written


def test_among_many_keys() -> None:
    """A key is found among many that are alive, in short texts and in long ones, plain and encoded."""
    alive = [Secret(f"sk-many-{number:04}-abcdefgh") for number in range(30)]
    for filler in ("", "word " * 3000):
        for secret in alive[::7]:
            plain = secret.reveal()
            encoded = base64.b64encode(plain.encode()).decode()
            for written in (plain, quote(plain, safe=""), encoded):
                assert written[3:-3] not in redact(f"{filler}it is {written}, {filler}")
