from flask import Flask, request
from flask_session import Session

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()


def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    Session(app)
    byok.init_app(app)

    # begin
    @app.post("/chat")
    async def chat():
        provider = get_provider_with_api_key("openai")
        messages = request.get_json()["messages"]
        pieces = [piece async for piece in provider.astream_chat(messages)]
        return {"answer": "".join(pieces)}

    # end
    return app
