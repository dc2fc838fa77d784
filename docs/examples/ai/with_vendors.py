from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from elevenlabs import ElevenLabs
from flask import Blueprint, request
from mistralai.client import Mistral

from flask_byok import get_provider_with_api_key

views = Blueprint("vendors", __name__)


# begin
def chat_with_mistral(provider, text):
    client = Mistral(
        api_key=provider.api_key,
        server_url=provider.credential.base_url.removesuffix("/v1"),
        client=provider.http_client,
        async_client=provider.async_http_client,
    )
    messages = [{"role": "user", "content": text}]
    answer = client.chat.complete(model="mistral-small-latest", messages=messages)
    return answer.choices[0].message.content


def speak_with_elevenlabs(provider, text):
    client = ElevenLabs(
        api_key=provider.api_key,
        base_url=provider.credential.base_url,
        httpx_client=provider.http_client,
    )
    return b"".join(client.text_to_speech.convert("JBFqnCBsd6RMkjVDRZzb", text=text))


def speak_with_deepgram(provider, text):
    url, no_sockets = provider.credential.base_url, "wss://closed.invalid"
    client = DeepgramClient(
        api_key=provider.api_key,
        environment=DeepgramClientEnvironment(
            base=url, agent_rest=url, production=no_sockets, agent=no_sockets
        ),
        httpx_client=provider.http_client,
        timeout=60,
    )
    return b"".join(client.speak.v1.audio.generate(text=text))


# end
WAYS = {
    "mistral": chat_with_mistral,
    "elevenlabs": speak_with_elevenlabs,
    "deepgram": speak_with_deepgram,
}


@views.post("/ask/<name>")
def ask(name):
    said = WAYS[name](get_provider_with_api_key(name), request.get_json()["question"])
    return {"answer": said.decode() if isinstance(said, bytes) else said}
