from flask import Flask, render_template_string, request
from flask_session import Session
from flask_talisman import Talisman

from flask_byok import BYOK, get_provider_with_api_key

byok = BYOK()
PAGE = "<!doctype html><title>Chat</title>{{ byok.head() }}{{ byok.button() }}{{ byok.dialog() }}"


def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    Session(app)
    # begin
    policy = {"default-src": "'self'", "script-src": "'self'"}
    Talisman(
        app,
        content_security_policy=policy,
        content_security_policy_nonce_in=["script-src"],
        session_cookie_samesite="Lax",
    )
    app.config["BYOK_CSP_NONCE"] = lambda: request.csp_nonce  # before byok.init_app(app)
    byok.init_app(app)
    # end

    @app.get("/")
    def page():
        return render_template_string(PAGE)

    @app.post("/chat")
    def chat():
        provider = get_provider_with_api_key("openai")
        return byok.stream_response(provider, request.get_json()["messages"])

    return app
