from app import byok, create_app
from flask_socketio import SocketIO, emit

from flask_byok import ByokError, get_provider_with_api_key

app = create_app()
socketio = SocketIO(app)


# begin
@socketio.on("ask")
def answer(text):
    try:
        provider = get_provider_with_api_key("openai")  # of the person who is connected
        for piece in provider.stream_chat([{"role": "user", "content": text}]):
            emit("piece", piece)
    except ByokError as error:
        return {"code": error.code, "detail": str(error)}
    return {"source": provider.source}


# end
