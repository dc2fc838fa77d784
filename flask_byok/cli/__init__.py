"""The command line: ``flask byok``, one module a family of commands."""

from __future__ import annotations

from . import check as check
from .accounts import audit as audit
from .accounts import keys as keys
from .accounts import transfer as transfer
from .common import byok as byok
