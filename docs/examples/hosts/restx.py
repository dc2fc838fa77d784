from flask import Flask, request
from flask_restx import Api, Resource
from flask_session import Session

from flask_byok import BYOK, ByokError, get_provider_with_api_key, problem_response

byok = BYOK()
api = Api()


# begin
@api.errorhandler(ByokError)
def show_byok_error(error):
    return problem_response(error).get_json(), error.status


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
