from flask import Flask, request
from flask_restx import Api, Resource
from flask_session import Session

from flask_byok import BYOK, ByokError, get_provider_with_api_key

byok = BYOK()
api = Api()


# begin
@api.errorhandler(ByokError)
def leave_to_flask(error):
    raise error  # Flask answers with the problem object and its headers


# end


@api.route("/chat")
class Chat(Resource):
    def post(self):
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, request.get_json()["messages"])


def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    Session(app)
    byok.init_app(app)
    api.init_app(app)
    return app
