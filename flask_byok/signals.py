"""Signals that report to the host what happened to keys.

The sender is the app. The payload is safe facts only: ``provider``, and as far as they apply ``tier``, ``source``,
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
#: Sent at each run of ``flask byok purge-expired`` for each account key that expires within a week, with ``owner``,
#: ``provider``, ``id`` and ``expires_at``.
key_expiring = flask_byok.signal("key_expiring")
