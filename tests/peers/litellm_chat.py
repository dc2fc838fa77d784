"""LiteLLM as a client: chats, run by the peers' own Python. Arguments and output are as in ``node/common.mjs``.

Options: ``api_base``, where the URL goes on; the others are those of ``litellm.completion``. Lines: {chunk}… and
{final}, the completion as it was read or put together; or {error}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

litellm.suppress_debug_info = True  # it would print to the lines
HELLO = [{"role": "user", "content": "hello"}]


def say(**line: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps(line), flush=True)  # noqa: T201


def ask(url: str, *, api_base: str = "", messages: Any = HELLO, **options: Any) -> None:
    """Make one call, streamed or whole."""
    answer = litellm.completion(
        messages=messages, api_base=f"{url}{api_base}", num_retries=0, max_retries=0, **options
    )
    if not options.get("stream"):
        say(final=answer.model_dump())
        return
    chunks = []
    for chunk in answer:
        chunks.append(chunk)
        say(chunk=chunk.model_dump())
    say(final=litellm.stream_chunk_builder(chunks, messages=messages).model_dump())


def main(url: str, calls: str) -> None:
    """Make the calls, one after the other."""
    for options in json.loads(calls):
        try:
            ask(url, **options)
        except Exception as error:
            status = getattr(error, "status_code", None)
            say(error={"name": type(error).__name__, "status": status, "message": str(error)})


main(*sys.argv[1:])
