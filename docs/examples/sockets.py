from app import byok, create_app
from flask_socketio import SocketIO, emit

from flask_byok import (
    ByokError,
    OwnerRequiredError,
    get_provider_with_api_key,
    problem_response,
)

app = create_app()
socketio = SocketIO(
    app, async_mode="threading"
)  # by itself it takes gevent where that is installed


# begin
@socketio.on("ask")
def answer(text):
    try:
        provider = get_provider_with_api_key("openai")  # of the person who is connected
        for piece in provider.stream_chat([{"role": "user", "content": text}]):
            emit("piece", piece)
    except OwnerRequiredError as error:  # no session yet, or another person's
        return {"code": error.code, "detail": "Load this page again, then ask."}
    except ByokError as error:
        return problem_response(error).get_json()
    return {"source": provider.source}


# end
