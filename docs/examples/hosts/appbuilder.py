from flask import Flask, request
from flask_appbuilder import AppBuilder, expose
from flask_appbuilder.api import BaseApi, safe
from flask_appbuilder.models.sqla.base import SQLA
from flask_session import Session

from flask_byok import BYOK, ByokError, get_provider_with_api_key, problem_response

byok = BYOK()


class Chat(BaseApi):
    # begin
    @expose("/", methods=["POST"])
    @safe  # it answers every error with 500, so ours is answered before
    def chat(self):
        try:
            provider = get_provider_with_api_key("openai")
        except ByokError as error:
            return problem_response(error)
        return byok.stream_response(provider, request.get_json()["messages"])

    # end


def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    db = SQLA(app)
    Session(app)
    byok.init_app(app)
    with app.app_context():
        appbuilder = AppBuilder(app, db.session)
        appbuilder.add_api(Chat)
    return app
