from cachelib import FileSystemCache
from flask import Flask, render_template_string, request
from flask_session import Session

from flask_byok import BYOK, get_provider_with_api_key

app = Flask(__name__)
sessions = FileSystemCache("instance/sessions", threshold=0)  # 0: never drop anyone's session
app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=sessions)
app.config.from_prefixed_env()  # SECRET_KEY from FLASK_SECRET_KEY, and so on
Session(app)
byok = BYOK(app)
PAGE = "<!doctype html><title>Chat</title>{{ byok.head() }}{{ byok.button() }}{{ byok.dialog() }}"
app.add_url_rule("/", view_func=lambda: render_template_string(PAGE))


@app.post("/chat")
def chat():
    provider = get_provider_with_api_key("openai")
    return byok.stream_response(provider, request.get_json()["messages"])
