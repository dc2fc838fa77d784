from cachelib import FileSystemCache
from flask import Flask, request
from flask_session import Session

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()


def create_app(**config):
    app = Flask(__name__)
    sessions = FileSystemCache("instance/sessions", threshold=0)
    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=sessions)
    app.config.from_prefixed_env()
    app.config.update(config)
    Session(app)
    byok.init_app(app)

    @app.post("/chat")
    def chat():
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, request.get_json()["messages"])

    return app
