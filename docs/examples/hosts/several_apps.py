from flask import Flask, request
from flask_session import Session
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()  # one object for both


def make_app(name, config):
    app = Flask(name)
    app.config.from_mapping(config)
    Session(app)
    byok.init_app(app)

    @app.post("/chat")
    def chat():
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, request.get_json()["messages"])

    return app


def create_app(config):
    # begin
    of_shop = {
        "BYOK_DATABASE_URL": "sqlite:///shop-keys.sqlite3",
        "SESSION_COOKIE_NAME": "shop",
        "SESSION_KEY_PREFIX": "shop:",
    }
    of_desk = {
        "SECRET_KEY": "another one",
        "BYOK_DATABASE_URL": "sqlite:///desk-keys.sqlite3",
        "SESSION_COOKIE_PATH": "/desk",
        "SESSION_KEY_PREFIX": "desk:",
    }
    shop, desk = make_app("shop", config | of_shop), make_app("desk", config | of_desk)
    shop.wsgi_app = DispatcherMiddleware(shop.wsgi_app, {"/desk": desk.wsgi_app})
    # end
    return shop
