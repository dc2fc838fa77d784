"""The app of ``test_graceful``, for gunicorn: it writes counts of uses at the end of its process only."""

from __future__ import annotations

import json
import os
from pathlib import Path

from flask_byok.keys.traffic import Traffic
from flask_byok.web.caller import get_state
from tests.app import make_app

app = make_app(Path(os.environ["FOLDER"]), BYOK_BASE_URLS=json.loads(os.environ["BASE_URLS"]))
_service = get_state(app).service
_service.traffic = Traffic(_service.accounts.count, 3600.0, _service.sessions.count)
