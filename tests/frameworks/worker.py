"""Run recipes in one host with visitors of their own: ``worker.py FOLDER``, the rest as JSON on standard input.

Prints as JSON what the visitors were answered, and the names of hosts that were looked up.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.app import HostApp, browser, make_app

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "ai"
sought: list[str] = []


def record(host: Any, *rest: Any, **options: Any) -> Any:
    """Look up a name as the system does, and remember it."""
    if host != "127.0.0.1":
        sought.append(str(host))
    return _look_up(host, *rest, **options)


_look_up, socket.getaddrinfo = socket.getaddrinfo, record


def run(app: HostApp, recipe: str, keys: dict[str, dict[str, str]]) -> list[tuple[str, str, Any]]:
    """Ask every provider twice with each visitor's key, all at once; keys are by visitor and provider."""
    visitors = {owner: browser(app) for owner in keys}
    tasks = [(owner, provider) for owner in keys for provider in keys[owner]]
    for owner, provider in tasks:
        saved = visitors[owner].save(keys[owner][provider], provider, validate="off")
        assert saved.status_code == 200, saved.text

    def ask(task: tuple[str, str]) -> tuple[str, str, Any]:
        owner, provider = task
        question = {"question": f"owner:{owner} hello"}
        answer = visitors[owner].twin().post(f"/{recipe}/ask/{provider}", json=question)
        return owner, provider, answer.get_json()["answer"]

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, tasks * 2))


def main(folder: str) -> None:
    """Run each recipe."""
    given = json.load(sys.stdin)
    sys.path.insert(0, str(EXAMPLES))
    keys = [keys for people in given["recipes"].values() for keys in people.values()]
    app = make_app(
        Path(folder),
        BYOK_BASE_URLS=given["base_urls"],
        BYOK_PROVIDERS=sorted({provider for each in keys for provider in each}),
        PROPAGATE_EXCEPTIONS=True,
    )
    for recipe in given["recipes"]:
        views = importlib.import_module(recipe).views
        app.register_blueprint(views, url_prefix=f"/{recipe}")
        app.csrf.exempt(views)
    answers = {recipe: run(app, recipe, keys) for recipe, keys in given["recipes"].items()}
    atexit._run_exitfuncs()  # traces that wait to be sent are sent now
    sys.stdout.write("\n" + json.dumps({"answers": answers, "sought": sought}) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
