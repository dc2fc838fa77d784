"""Signals that tell a host what happened to keys.

The sender is the app. The payload is safe facts only: ``provider``, and where they apply ``tier``, ``source``,
``hint`` or ``verdict``; never a key.
"""

from __future__ import annotations

from blinker import Namespace

#: All signals of this package.
flask_byok = Namespace()

key_set = flask_byok.signal("key_set")
key_cleared = flask_byok.signal("key_cleared")
key_validated = flask_byok.signal("key_validated")
key_promoted = flask_byok.signal("key_promoted")
key_used = flask_byok.signal("key_used")
key_rejected = flask_byok.signal("key_rejected")
#: Sent by ``flask byok purge-expired`` for each account's key that expires within a week, at each run, with ``owner``,
#: ``provider``, ``id`` and ``expires_at``.
key_expiring = flask_byok.signal("key_expiring")
