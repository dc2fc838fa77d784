"""Servers from elsewhere, each as a process with a port of its own: aimock, LiteLLM's proxy and moto."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from flask_byok.testing import FakeProviders
from tests.services import Server

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-peers"
NODE = Path(__file__).parent / "node"
#: What tells that `scripts/peers` has been here.
INSTALLED = (ENVIRONMENT / ".stamp", NODE / "node_modules/.package-lock.json")


def missing() -> str:
    """Say what is to be installed, or nothing."""
    absent = [str(path.relative_to(ROOT)) for path in INSTALLED if not path.exists()]
    return f"{' and '.join(absent)} not found: run scripts/peers." if absent else ""


class PeerServer(Server):
    """A server that speaks HTTP and sees nothing of this process's environment."""

    #: A path that answers 200 when the server is ready.
    ready_path: str

    def __init__(self) -> None:
        super().__init__()
        self.http = httpx2.Client(base_url=self.url, timeout=30, trust_env=False)

    @property
    def url(self) -> str:
        """The server's origin."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        return self.http.get(self.ready_path).is_success

    def stop(self) -> None:
        self.http.close()
        super().stop()

    def run(self, *command: str | Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a program of the peers' environment."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), **variables}
        program = ENVIRONMENT / "bin" / command[0]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *command[1:]], cwd=self.directory, env=environment, stdout=log, stderr=log
            )


class Aimock(PeerServer):
    """``@copilotkit/aimock``: the APIs of many providers on one port, with keys checked.

    It answers as it is told (`tell`), else 503, and keeps what it was asked (`calls`).
    """

    name = "aimock"
    ready_path = "/ready"
    #: One of each shape; each is good for every provider.
    API_KEYS: Mapping[str, str] = {
        "openai": "sk-proj-aimock-4f1d6c0b8a2e97351d0c6b4f",
        "anthropic": "sk-ant-api03-aimock-4f1d6c0b8a2e97351d0c6b4f",
        "google": "AIzaAimock4f1d6c0b8a2e97351d0c6b4f12345",
        "groq": "gsk_aimock4f1d6c0b8a2e97351d0c6b4f",
        "xai": "xai-aimock4f1d6c0b8a2e97351d0c6b4f",
        "openrouter": "sk-or-v1-aimock4f1d6c0b8a2e97351d0c6b4f",
    }

    @property
    def base_urls(self) -> dict[str, str]:
        """The base URL of each provider, for ``BYOK_BASE_URLS``."""
        return {
            "openai": f"{self.url}/v1",
            "anthropic": self.url,
            "google": self.url,
            "groq": f"{self.url}/openai/v1",
            "xai": f"{self.url}/v1",
            "openrouter": f"{self.url}/api/v1",
        }

    def launch(self) -> subprocess.Popen[bytes]:
        config = {
            "port": self.port,
            "strict": True,
            "auth": {"apiKeys": list(self.API_KEYS.values())},
        }
        file = self.directory / "aimock.json"
        file.write_text(json.dumps(config))
        script = NODE / "node_modules/@copilotkit/aimock/dist/aimock-cli.js"
        return self.run("node", script, "--config", file)

    def tell(self, message: str, response: Mapping[str, Any], **options: Any) -> None:
        """Say how to answer a person's message that contains this one.

        :param response: ``content``, ``reasoning``, ``toolCalls``, ``usage``, ``finishReason``, or ``error``
            with ``status``.
        :param options: ``latency`` (milliseconds before each piece), ``chunkSize`` (characters),
            ``truncateAfterChunks``, ``disconnectAfterMs``, ``chaos``, …
        """
        fixture = {"match": {"userMessage": message}, "response": response, **options}
        self._control("POST", "fixtures", {"fixtures": [fixture]})

    def calls(self) -> list[dict[str, Any]]:
        """Return what was asked: ``method``, ``path``, ``headers``, ``body``, ``response``."""
        calls: list[dict[str, Any]] = self._control("GET", "journal").json()
        return calls

    def reset(self) -> None:
        """Forget all answers and questions."""
        self._control("POST", "reset")

    def _control(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.API_KEYS['openai']}"}
        answer = self.http.request(method, f"/__aimock/{path}", json=body, headers=headers)
        return answer.raise_for_status()


class LiteLLM(PeerServer):
    """LiteLLM's proxy with a master key and no database, in front of fake providers."""

    name = "LiteLLM"
    #: It imports so much that it needs 7 seconds of a processor; twice that at its first start.
    patience = 300.0
    ready_path = "/health/liveliness"
    MASTER_KEY = "sk-litellm-master-4f1d6c0b8a2e9735"
    #: The models that it offers, by the provider that each is of.
    MODELS: Mapping[str, str] = {
        "openai": "gpt-4o-mini",
        "anthropic": "claude-haiku-4-5",
        "google": "gemini-2.5-flash",
    }
    #: LiteLLM's name for the provider, and what it wants below the provider's own base URL.
    _UPSTREAMS: Mapping[str, tuple[str, str]] = {
        "openai": ("openai", ""),
        "anthropic": ("anthropic", ""),
        "google": ("gemini", "/v1beta"),
    }

    def __init__(self, upstream: FakeProviders) -> None:
        super().__init__()
        self.upstream = upstream

    @property
    def base_urls(self) -> dict[str, str]:
        """The base URL of each wire, for ``BYOK_BASE_URLS``."""
        return {"openai": f"{self.url}/v1", "anthropic": self.url, "google": self.url}

    def launch(self) -> subprocess.Popen[bytes]:
        config = {
            "model_list": [
                {"model_name": model, "litellm_params": self._upstream(provider, model)}
                for provider, model in self.MODELS.items()
            ],
            "litellm_settings": {"num_retries": 0, "telemetry": False},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "general_settings": {"master_key": self.MASTER_KEY},
        }
        file = self.directory / "litellm.yaml"
        file.write_text(json.dumps(config))  # YAML is a superset of JSON
        where = ("--host", "127.0.0.1", "--port", str(self.port))
        # Without the variable it asks a public server for the models' prices.
        return self.run(
            "litellm", "--config", str(file), *where, LITELLM_LOCAL_MODEL_COST_MAP="True"
        )

    def _upstream(self, provider: str, model: str) -> dict[str, str]:
        prefix, below = self._UPSTREAMS[provider]
        return {
            "model": f"{prefix}/{model}",
            "api_base": self.upstream.base_url(provider) + below,
            "api_key": self.upstream.api_key(provider, owner="litellm"),
        }


class Moto(PeerServer):
    """moto's server: AWS, with signatures and permissions checked. STS and IAM are installed."""

    name = "moto"
    ready_path = "/moto-api/data.json"

    def launch(self) -> subprocess.Popen[bytes]:
        where = ("-H", "127.0.0.1", "-p", str(self.port))
        return self.run("moto_server", *where, INITIAL_NO_AUTH_ACTION_COUNT="0")

    def create_access_key(self, user: str) -> tuple[str, str]:
        """Make a user of IAM without any permission, and return a key's id and secret."""
        self._iam("CreateUser", user)
        created = self._iam("CreateAccessKey", user)
        key_id, secret = (
            re.search(f"<{name}>(.+?)</{name}>", created)
            for name in ("AccessKeyId", "SecretAccessKey")
        )
        assert key_id is not None
        assert secret is not None
        return key_id[1], secret[1]

    def _iam(self, action: str, user: str) -> str:
        """Call IAM without a signature: moto lets the next call through, and only that."""
        self.http.post("/moto-api/reset-auth", content=b"1")
        scope = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request"
        data = {"Action": action, "UserName": user, "Version": "2010-05-08"}
        answer = self.http.post("/", data=data, headers={"Authorization": scope})
        return answer.raise_for_status().text
