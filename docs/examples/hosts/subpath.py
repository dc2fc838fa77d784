from flask import Flask, render_template_string, request
from flask_session import Session
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()
PAGE = "<!doctype html><title>Chat</title>{{ byok.head() }}{{ byok.button() }}{{ byok.dialog() }}"


def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    Session(app)
    byok.init_app(app)
    # begin
    # The proxy strips the path and names it, for example with nginx:
    #   location /chat/ { proxy_pass http://127.0.0.1:8000/; proxy_set_header X-Forwarded-Prefix /chat; ... }
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
    app.config["SESSION_COOKIE_PATH"] = "/chat"
    # end

    @app.get("/")
    def page():
        return render_template_string(PAGE)

    @app.post("/chat")
    def chat():
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, request.get_json()["messages"])

    return app
