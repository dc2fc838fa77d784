"""``python -m flask_byok.demo``: start the fake provider and the chat app, and print their addresses."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from flask import Flask

from flask_byok import ByokError, StoreError
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state

from .failure import UnusableSettingError

_BANNER = """
  flask-byok demo       {url}  {remark}

  a key to try          {good}
  one that is rejected  {bad}

  sign in as            ada, grace or katherine; the page shows their passwords

  sessions              {sessions}
  their keys            {keys}
  keys in accounts      {accounts}

  A demo, for this machine only. Its files are deleted when it stops: press Ctrl-C.
"""

#: What the keys to try do.
TO_TRY = ("good", "restricted", "broke", "rate_limited", "disabled", "bad")

#: Seconds between two words of the fake provider.
WORD_DELAY = 0.04


def main() -> int:
    """Run the demo until it is stopped; returns the exit status."""
    try:
        run()
    except ModuleNotFoundError as error:
        print(f"The demo needs {error.name}: pip install 'flask-byok[demo]'", file=sys.stderr)
    except (UnusableSettingError, ByokError) as error:
        print(error, file=sys.stderr)
    else:
        print("Stopped.")
        return 0
    return 1


def run() -> None:
    """Serve until Ctrl-C.

    :raises UnusableSettingError: an environment variable names something that does not work.
    """
    from .app import create_app
    from .environment import app_config, describe_stores
    from .server import make_http_server, open_socket, serve

    with ExitStack() as stack:
        listening, remark = open_socket(os.environ)
        stack.enter_context(listening)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="flask-byok-demo-")))
        fake = stack.enter_context(FakeProviders())
        fake.chunk_delay = WORD_DELAY
        api_keys = {behaviour: fake.api_key("demo", behaviour) for behaviour in TO_TRY}
        config = app_config(os.environ, folder, fake.base_url("demo"))
        app = create_app(config | {"DEMO_API_KEYS": api_keys})
        stack.callback(_write_counts, app)  # while the folder is there
        server = make_http_server(app, listening)
        stores = describe_stores(os.environ, folder)
        url = f"http://{server.host}:{server.port}/"
        print(_BANNER.format(url=url, remark=remark, **api_keys, **stores), flush=True)
        serve(server)


def _write_counts(app: Flask) -> None:
    """Write how often keys were used, which else happens at the end of the process."""
    with suppress(StoreError):  # it may have gone before
        get_state(app).service.traffic.flush()


if __name__ == "__main__":
    sys.exit(main())
