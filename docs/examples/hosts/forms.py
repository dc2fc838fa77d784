from flask import Flask, render_template_string, request
from flask_session import Session

from flask_byok import BYOK, ByokError, get_provider_with_api_key, problem_response

byok = BYOK()
PAGE = """<!doctype html><title>Chat</title>{{ byok.head() }}
{% if problem %}<p role="alert">{{ problem }}</p>{% endif %}
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
    @app.errorhandler(ByokError)
    def show_problem(error):
        answer = problem_response(error)  # with its status, and Retry-After
        answer.data = render_template_string(PAGE, problem=answer.get_json()["detail"])
        answer.mimetype = "text/html"
        return answer

    # end
    return app
