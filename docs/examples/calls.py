import openai
from flask import Flask, jsonify

from flask_byok import (
    BYOK,
    MissingCredentialError,
    get_chat_model_with_api_key,
    get_provider_with_api_key,
    key_set,
)


def add_views(app: Flask, byok: BYOK) -> None:
    # begin
    @app.get("/models")
    def models():
        provider = get_provider_with_api_key("openai")
        names = [model.id for model in provider.client.models.list()]  # OpenAI's own client
        return jsonify(names=names, source=provider.source)

    @app.errorhandler(openai.APIStatusError)  # an SDK's own client raises the SDK's errors
    def refused(error):
        return jsonify(code="provider_error", status=error.status_code), 502

    @app.get("/poem")
    @byok.require_keys("openai")  # without one: 409 key_missing
    def poem():
        provider = get_provider_with_api_key("openai", timeout=30)
        return "".join(provider.stream_chat([{"role": "user", "content": "A poem"}]))

    @app.get("/ask")
    def ask():
        model = get_chat_model_with_api_key("openai", "gpt-4o-mini")  # LangChain
        return model.invoke("A question").content

    @app.get("/key-or-not")
    def key_or_not():
        try:
            byok.get_api_key("anthropic")  # the key itself, as a string
        except MissingCredentialError as error:
            return f"{error.code}: {error}"
        return "there is one"

    @key_set.connect_via(app)  # signals tell what happened, never a key
    def remember(sender, provider, hint, **facts):
        sender.logger.info("%s: a key %s was saved", provider, hint)

    # end
    app.extensions["remember"] = remember  # signals hold their receivers weakly
