import os
from concurrent.futures import ThreadPoolExecutor

from app import byok, create_app
from celery import Celery
from flask import Response, copy_current_request_context, jsonify, request, session

from flask_byok import get_provider_with_api_key

app = create_app()
celery = Celery("jobs", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
pool = ThreadPoolExecutor(max_workers=4)


def ask(text):
    provider = get_provider_with_api_key("openai")
    return "".join(provider.stream_chat([{"role": "user", "content": text}]))


# begin celery
@celery.task
def summarise(user_id, text):
    with app.app_context(), byok.acting_for(user_id):
        return ask(text)


# end celery


# begin rq
def summarise_in_rq(user_id, text):
    with app.app_context(), byok.acting_for(user_id):
        return ask(text)


# end rq


# begin thread
@app.post("/in-a-thread")
def in_a_thread():
    @copy_current_request_context
    def work():  # for the person of this request, session keys included
        return ask("Hello")

    return pool.submit(work).result()


# end thread


# begin executor
def work_for(user_id):
    with app.app_context(), byok.acting_for(user_id):
        return ask("Hello")


@app.post("/in-the-background")
def in_the_background():
    pool.submit(work_for, session["user_id"])
    return jsonify(started=True)


# end executor


# begin command
@app.cli.command("nightly")
def nightly():
    with byok.as_operator():
        print(ask("A line for the front page"))


# end command


# begin generator
@app.post("/own-format")
def own_format():
    provider = get_provider_with_api_key("openai")  # in the view, before the stream starts
    messages = request.get_json()["messages"]

    def lines():
        for text in provider.stream_chat(messages):
            yield text + "\n"

    return Response(lines(), mimetype="text/plain")


# end generator
