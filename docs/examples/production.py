import os

from flask import Flask
from flask_session import Session
from flask_wtf import CSRFProtect

# begin
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from flask_byok import BYOK


def create_app():
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=os.environ["SECRET_KEY"],
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_TYPE="redis",
        SESSION_REDIS=Redis.from_url(
            os.environ["REDIS_URL"],
            socket_connect_timeout=0.2,  # seconds
            socket_timeout=0.5,
            retry=Retry(NoBackoff(), 0),
        ),
    )  # BYOK_ENCRYPTION_KEY comes from the environment
    Session(app)
    CSRFProtect(app)
    BYOK(app)
    return app


# end
