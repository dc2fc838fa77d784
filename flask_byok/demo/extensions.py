"""The demo's extensions, made without an app so that every module can import them."""

from __future__ import annotations

from flask_login import LoginManager
from flask_session import Session
from flask_wtf import CSRFProtect

from flask_byok import BYOK, Field, ProviderSpec

byok = BYOK()
csrf = CSRFProtect()
login_manager = LoginManager()
server_side_session = Session()

# Has no address of its own: the fake server's port is free to choose, and comes from BYOK_BASE_URLS.
byok.register_provider(
    ProviderSpec(
        id="demo",
        name="Demo provider",
        fields=(Field(placeholder="demo-…"),),
        prefixes=("demo-good-", "demo-"),
        get_key_url="/keys-to-try",
        default_model="demo-small",
    )
)
