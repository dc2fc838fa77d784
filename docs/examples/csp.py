import secrets

from flask import Flask, request


def add_policy(app: Flask) -> None:
    # begin
    def csp_nonce():
        return request.environ.setdefault("csp_nonce", secrets.token_urlsafe(16))

    app.config["BYOK_CSP_NONCE"] = csp_nonce  # before BYOK(app)

    @app.after_request
    def add_content_security_policy(response):
        response.headers.setdefault(
            "Content-Security-Policy",
            f"default-src 'self'; script-src 'nonce-{csp_nonce()}' 'strict-dynamic'; base-uri 'none'; "
            "require-trusted-types-for 'script'; trusted-types 'none'",
        )
        return response

    # end
