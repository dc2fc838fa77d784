from flask import Flask, request
from flask_security import Security, SQLAlchemyUserDatastore, auth_required
from flask_security.models import fsqla_v3
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()
db = SQLAlchemy()
fsqla_v3.FsModels.set_db_info(db)


class Role(db.Model, fsqla_v3.FsRoleMixin):
    pass


class User(db.Model, fsqla_v3.FsUserMixin):
    pass


# begin
def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    db.init_app(app)
    Session(app)
    Security(app, SQLAlchemyUserDatastore(db, User, Role))
    byok.init_app(app)

    @app.post("/chat")
    @auth_required("session")
    def chat():
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, request.get_json()["messages"])

    return app


# end
