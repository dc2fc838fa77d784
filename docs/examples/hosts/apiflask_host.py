from apiflask import APIFlask, Schema
from apiflask.fields import Dict, List
from flask_session import Session

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()


class Conversation(Schema):
    messages = List(Dict())


def create_app(config):
    app = APIFlask(__name__)
    app.config.from_mapping(config)
    Session(app)
    byok.init_app(app)

    @app.post("/chat")
    @app.input(Conversation)
    def chat(json_data):
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, json_data["messages"])

    return app
