# begin
import sentry_sdk

from flask_byok import sentry_before_send

sentry_sdk.init(dsn="https://made-up@sentry.example/1", before_send=sentry_before_send)
# end
