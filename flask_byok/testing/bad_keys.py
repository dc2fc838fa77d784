"""How providers refuse a key that they do not know, where that is not what their format has in common.

Sources: each vendor's error reference, and the bodies people quote in public bug reports; the rules of the rows in the
catalog name them.
"""

from __future__ import annotations

_AZURE = (
    401,
    {
        "error": {
            "code": "401",
            "message": "Access denied due to invalid subscription key or wrong API endpoint.",
        }
    },
)

#: Status and body, JSON or a text, by provider.
BAD_KEYS: dict[str, tuple[int, object]] = {
    "assemblyai": (401, {"error": "Authentication error, API token missing/invalid"}),
    "aws": (
        403,
        {
            "Error": {
                "Type": "Sender",
                "Code": "InvalidClientTokenId",
                "Message": "The security token included in the request is invalid.",
            }
        },
    ),
    "azure_openai": _AZURE,
    "azure_speech": _AZURE,
    "bedrock": (
        403,
        {"Message": "Authentication failed: Please make sure your API Key is valid."},
    ),
    "cerebras": (
        401,
        {
            "message": "Wrong API Key",
            "type": "invalid_request_error",
            "param": "api_key",
            "code": "wrong_api_key",
        },
    ),
    # So it answers a good token that lacks a permission, too.
    "cloudflare": (
        401,
        {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]},
    ),
    "cohere": (401, {"message": "invalid api token"}),
    "databricks": (403, {"error_code": 403, "message": "Invalid access token."}),
    "deepgram": (401, {"err_code": "INVALID_AUTH", "err_msg": "Invalid credentials."}),
    "elevenlabs": (401, {"detail": {"status": "invalid_api_key", "message": "Invalid API key"}}),
    "fireworks": (
        401,
        {
            "error": {
                "object": "error",
                "type": "invalid_request_error",
                "code": "UNAUTHORIZED",
                "message": "The API key you provided is invalid.",
            }
        },
    ),
    "gladia": (401, {"statusCode": 401, "message": "gladia key not found"}),
    "huggingface": (401, {"error": "Invalid username or password."}),
    "minimax": (
        401,
        {
            "type": "error",
            "error": {"type": "authentication_error", "message": "invalid api key (2049)"},
        },
    ),
    "mistral": (401, {"detail": "Unauthorized"}),
    "moonshot": (
        401,
        {
            "error": {
                "type": "incorrect_api_key_error",
                "message": "Incorrect API key provided",
            }
        },
    ),
    "nebius": (401, {"detail": "Couldn't authenticate. Reason: token is not valid"}),
    "ovhcloud": (403, {"message": "Authentication Failed"}),
    "revai": (401, {"title": "Authorization has been denied for this request."}),
    "snowflake": (401, {"code": "394400", "message": "Programmatic access token is invalid."}),
    "vercel": (
        401,
        {"error": {"message": "Authentication failed", "type": "authentication_error"}},
    ),
    "zai": (401, {"error": {"code": "1000", "message": "Authentication Failed"}}),
}
