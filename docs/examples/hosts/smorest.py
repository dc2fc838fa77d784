from flask import Flask
from flask.views import MethodView
from flask_session import Session
from flask_smorest import Api, Blueprint
from marshmallow import Schema, fields

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()
blueprint = Blueprint("chat", __name__)


class Conversation(Schema):
    messages = fields.List(fields.Dict())


@blueprint.route("/chat")
class Chat(MethodView):
    @blueprint.arguments(Conversation)
    def post(self, conversation):
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, conversation["messages"])


def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config, API_TITLE="Chat", API_VERSION="1", OPENAPI_VERSION="3.1.0")
    Session(app)
    byok.init_app(app)
    Api(app).register_blueprint(blueprint)
    return app
