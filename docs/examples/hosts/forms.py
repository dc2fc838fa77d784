from flask import Flask, flash, redirect, render_template_string, request, url_for
from flask_session import Session

from flask_byok import BYOK, CredentialError, get_provider_with_api_key

byok = BYOK()
PAGE = """<!doctype html><title>Chat</title>{{ byok.head() }}
{% for message in get_flashed_messages() %}<p role="alert">{{ message }}</p>{% endfor %}
<form method="post" action="{{ url_for('chat') }}"><input name="question"><button>Ask</button></form>
{{ byok.button() }}{{ byok.dialog() }}"""


def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    Session(app)
    byok.init_app(app)

    @app.get("/")
    def page():
        return render_template_string(PAGE)

    @app.post("/chat")
    def chat():
        provider = get_provider_with_api_key("openai")
        messages = [{"role": "user", "content": request.form["question"]}]
        return "".join(provider.stream_chat(messages))

    # begin
    @app.errorhandler(CredentialError)
    def ask_for_key(error):
        flash(str(error))
        return redirect(url_for("page"))

    # end
    return app
