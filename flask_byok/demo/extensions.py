"""The demo's extensions, made without an app so that every module can import them."""

from __future__ import annotations

from flask_login import LoginManager
from flask_session import Session
from flask_wtf import CSRFProtect

from flask_byok import BYOK

from .provider import DEMO

byok = BYOK()
byok.register_provider(DEMO)
csrf = CSRFProtect()
login_manager = LoginManager()
server_side_session = Session()
