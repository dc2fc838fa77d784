"""Speech services, as data. Each row names the document that it follows; see :mod:`.rows_cloud` about 401."""

from __future__ import annotations

from ..model.credential import Verdict
from .auth import Auth
from .rows_cloud import AZURE_RULES, CERTIFICATES, SERVICE_ACCOUNT, SIGNED_HERE, text_field
from .rules import NO_CREDIT, TOO_MANY_CALLS, USUAL, with_region
from .spec import CheckSpec, Field, ProviderSpec, Rule

_ELEVENLABS = "https://elevenlabs.io/docs/eleven-api/resources/errors"
_PAUSED = "ElevenLabs has paused the free use of this account, as it does behind proxies."
_PAID_PLAN = "The key is good, but this needs a paid plan."

ELEVENLABS = ProviderSpec(
    id="elevenlabs",
    name="ElevenLabs",
    base_url="https://{region}",
    adapter="http",
    fields=with_region(
        {
            "global": "api.elevenlabs.io",
            "eu": "api.eu.residency.elevenlabs.io",
            "india": "api.in.residency.elevenlabs.io",
            "singapore": "api.sg.residency.elevenlabs.io",
        },
        "sk_…",
    ),
    auth=Auth("xi-api-key", "{api_key}"),
    env=("ELEVENLABS_API_KEY", "ELEVEN_API_KEY"),
    prefixes=("sk_",),
    get_key_url="https://elevenlabs.io/app/settings/api-keys",
    docs="https://elevenlabs.io/docs/api-reference/user/get",
    check=CheckSpec(
        path="/v1/user",
        good="subscription",
        models_path=None,
        rules=(
            Rule((400, 401, 403), Verdict.VALID_RESTRICTED, contains="missing_permissions"),
            Rule((400, 401, 402), Verdict.VALID_NO_CREDIT, contains="quota_exceeded"),
            Rule((401, 403), Verdict.VALID_RESTRICTED, _PAUSED, "detected_unusual_activity"),
            Rule((401,), Verdict.INVALID, contains="invalid_api_key", source=_ELEVENLABS),
            Rule((402,), Verdict.VALID_RESTRICTED, _PAID_PLAN, "paid_plan_required"),
            Rule((400,), contains="max_character_limit_exceeded", kind="context_too_long"),
            Rule((429,), Verdict.UNREACHABLE, contains="system_busy", kind="provider_overloaded"),
            TOO_MANY_CALLS,
        ),
    ),
)

_ASSEMBLYAI = "https://www.assemblyai.com/docs/guides/common_errors_and_solutions"

ASSEMBLYAI = ProviderSpec(
    id="assemblyai",
    name="AssemblyAI",
    base_url="https://{region}",
    adapter="http",
    fields=with_region({"us": "api.assemblyai.com", "eu": "api.eu.assemblyai.com"}),
    auth=Auth("Authorization", "{api_key}"),
    env=("ASSEMBLYAI_API_KEY",),
    get_key_url="https://www.assemblyai.com/app/api-keys",
    docs="https://www.assemblyai.com/docs/api-reference/transcripts/list",
    check=CheckSpec(
        path="/v2/transcript?limit=1",
        good="transcripts",
        models_path=None,
        rules=(
            # A disabled account and an empty balance get a 401 too: only these words mean the key.
            Rule((401,), Verdict.INVALID, contains="authentication error, api token missing"),
            Rule((400, 401), Verdict.VALID_NO_CREDIT, contains="balance is negative"),
            Rule((429,), Verdict.VALID_RATE_LIMITED, source=_ASSEMBLYAI),
        ),
    ),
)

_DEEPGRAM = "https://developers.deepgram.com/docs/errors"

DEEPGRAM = ProviderSpec(
    id="deepgram",
    name="Deepgram",
    base_url="https://{region}",
    adapter="http",
    fields=with_region({"us": "api.deepgram.com", "eu": "api.eu.deepgram.com"}),
    auth=Auth("Authorization", "Token {api_key}"),
    env=("DEEPGRAM_API_KEY",),
    get_key_url="https://console.deepgram.com",
    docs="https://developers.deepgram.com/reference/manage/projects/list",
    check=CheckSpec(
        path="/v1/projects",
        good="projects",
        models_path=None,
        rules=(
            Rule((401, 403), Verdict.VALID_RESTRICTED, contains="insufficient_permissions"),
            Rule((401,), Verdict.INVALID, contains="invalid credentials", source=_DEEPGRAM),
            NO_CREDIT,
            TOO_MANY_CALLS,
        ),
    ),
)

REVAI = ProviderSpec(
    id="revai",
    name="Rev AI",
    base_url="https://{region}",
    adapter="http",
    fields=with_region({"us": "api.rev.ai", "eu": "ec1.api.rev.ai"}),
    env=("REVAI_ACCESS_TOKEN",),
    get_key_url="https://www.rev.ai/access_token",
    docs="https://docs.rev.ai/api/asynchronous",
    check=CheckSpec(
        path="/speechtotext/v1/account",
        good="email",
        models_path=None,
        rules=(
            Rule((200,), Verdict.VALID_NO_CREDIT, path="balance_seconds", equals=0, place="check"),
            *USUAL,
        ),
    ),
)

GLADIA = ProviderSpec(
    id="gladia",
    name="Gladia",
    base_url="https://api.gladia.io",
    adapter="http",
    auth=Auth("x-gladia-key", "{api_key}"),
    env=("GLADIA_API_KEY",),
    prefixes=("sk_gladia_",),
    get_key_url="https://app.gladia.io/account",
    docs="https://docs.gladia.io/api-reference/v2/pre-recorded/list",
    check=CheckSpec(
        path="/v2/pre-recorded?limit=1",
        good="items",
        models_path=None,
        rules=(
            Rule((401,), Verdict.INVALID, contains="gladia user not found"),
            Rule((401,), Verdict.INVALID, contains="gladia key not found"),
            TOO_MANY_CALLS,
        ),
    ),
)

_WRONG_KEY_OR_REGION = "Azure rejected this key in this region. Check both."
_SPEECH = "https://learn.microsoft.com/en-us/azure/ai-services/speech-service/troubleshooting"

AZURE_SPEECH = ProviderSpec(
    id="azure_speech",
    name="Azure Speech",
    base_url="https://{region}.api.cognitive.microsoft.com",
    adapter="http",
    fields=(
        text_field(
            "region",
            "Region",
            r"[a-z]{4,20}[0-9]?",
            "AZURE_SPEECH_REGION",
            "SPEECH_REGION",
            placeholder="westeurope",
        ),
        Field(),
    ),
    auth=Auth("Ocp-Apim-Subscription-Key", "{api_key}"),
    env=("AZURE_SPEECH_KEY", "SPEECH_KEY"),
    get_key_url="https://portal.azure.com",
    docs=_SPEECH,
    check=CheckSpec(
        # Answers with a token, which is a text.
        path="/sts/v1.0/issueToken",
        method="POST",
        answer="text",
        good="eyJ",
        models_path=None,
        rules=(
            *AZURE_RULES,
            Rule((403,), Verdict.VALID_NO_CREDIT, contains="out of call volume quota"),
            Rule((401,), Verdict.INVALID, _WRONG_KEY_OR_REGION, source=_SPEECH),
        ),
    ),
)

GOOGLE_SPEECH = ProviderSpec(
    id="google_speech",
    name="Google Speech-to-Text",
    base_url="https://speech.googleapis.com",
    adapter="http",
    fields=(SERVICE_ACCOUNT,),
    auth=SIGNED_HERE,
    env=("GOOGLE_APPLICATION_CREDENTIALS",),
    get_key_url="https://console.cloud.google.com/iam-admin/serviceaccounts",
    docs="https://cloud.google.com/speech-to-text/docs/reference/rest",
    check=CERTIFICATES,
)

#: In the order in which they are shown.
SPEECH = (ELEVENLABS, DEEPGRAM, ASSEMBLYAI, GLADIA, REVAI, AZURE_SPEECH, GOOGLE_SPEECH)
