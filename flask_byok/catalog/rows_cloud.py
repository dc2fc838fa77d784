"""Clouds and people's own servers, as data. Each row names the document that it follows.

A bare 401 is a bad key only where the provider documents it so; elsewhere the words decide, and without them the key
stays unchecked.
"""

from __future__ import annotations

from ..model.credential import Verdict
from .auth import Auth, SigV4
from .google_account import ServiceAccount, belongs
from .rules import TOO_MANY_CALLS, TOO_MANY_IN_CALLS, UNKNOWN_KEY
from .spec import CheckSpec, Field, ProviderSpec, Rule


def text_field(
    name: str, label: str, pattern: str, *env: str, default: str = "", placeholder: str = ""
) -> Field:
    """Return a field that is no secret; it is required unless it has a default."""
    shown = placeholder or default
    return Field(name, label, False, not default, shown, "text", pattern, (), default, env)


# --- Microsoft ---

_KEYS_OFF = "This Azure resource no longer accepts keys: key access is switched off."
_KEPT_OUT = "The network rules of this Azure resource keep our server out. The key was not checked."
# Sources: learn.microsoft.com/azure/ai-services/{authentication,disable-local-auth,cognitive-services-virtual-networks}
AZURE_RULES = (
    Rule((401, 403), Verdict.DISABLED, _KEYS_OFF, "key based authentication is disabled"),
    Rule((403,), reason=_KEPT_OUT, contains="denied due to virtual network", kind="not_permitted"),
    TOO_MANY_CALLS,
)
# The name in the address that Azure shows, and that AZURE_OPENAI_ENDPOINT holds.
_RESOURCE = (
    r"(?i)(?:https://)?([a-z0-9][a-z0-9-]{0,62}[a-z0-9])"
    r"(?:\.(?:openai|services\.ai|cognitiveservices)\.azure\.com(?:/.*)?)?"
)
_ENDPOINT = ("AZURE_OPENAI_ENDPOINT", "AZURE_RESOURCE_NAME")

AZURE_OPENAI = ProviderSpec(
    id="azure_openai",
    name="Azure OpenAI",
    base_url="https://{resource}.openai.azure.com/openai/v1",
    fields=(
        text_field("resource", "Resource name", _RESOURCE, *_ENDPOINT, placeholder="my-resource"),
        Field(),
    ),
    auth=Auth("api-key", "{api_key}"),
    env=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
    aliases=("azure",),
    get_key_url="https://portal.azure.com",
    docs="https://learn.microsoft.com/en-us/azure/ai-foundry/openai/latest",
    limit_name="max_completion_tokens",
    check=CheckSpec(
        rules=(
            *AZURE_RULES,
            Rule((401,), Verdict.VALID_RESTRICTED, contains="permissiondenied"),
            Rule((401,), Verdict.INVALID, contains="access denied due to invalid subscription key"),
        )
    ),
)

# --- Amazon ---

_STS = "https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html"
_CLOCK = "The clock of our server is wrong, so AWS did not look at the key. Tell the operator."
_EXPIRED = "This key has expired. Create a new one."
_NOT_ITS_SECRET = "The secret access key does not belong to this access key ID. Check both."  # noqa: S105
# The commercial regions only: in the others AWS knows other keys, and would call these invalid.
_AWS_REGION = (
    r"(?!cn-)[a-z]{2}-(?:north|south|central|east|west|(?:north|south)(?:east|west))-[1-9]"
)
_REGION = text_field(
    "region", "Region", _AWS_REGION, "AWS_REGION", "AWS_DEFAULT_REGION", default="us-east-1"
)

AWS = ProviderSpec(
    id="aws",
    name="AWS",
    base_url="https://sts.us-east-1.amazonaws.com",
    adapter="http",
    fields=(
        Field(
            "access_key_id",
            "Access key ID",
            placeholder="AKIA…",
            pattern=r"(?:AKIA|ASIA)[A-Z0-9]{16}",
            env=("AWS_ACCESS_KEY_ID",),
        ),
        Field("secret_access_key", "Secret access key", env=("AWS_SECRET_ACCESS_KEY",)),
        Field("session_token", "Session token", required=False, env=("AWS_SESSION_TOKEN",)),
        _REGION,
    ),
    auth=SigV4("sts", "us-east-1"),
    env=("AWS_ACCESS_KEY_ID",),
    prefixes=("AKIA", "ASIA"),
    get_key_url="https://console.aws.amazon.com/iam/home#/security_credentials",
    docs="https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html",
    check=CheckSpec(
        path="/",
        method="POST",
        body="Action=GetCallerIdentity&Version=2011-06-15",
        # STS answers in XML unless it is asked for JSON.
        headers={"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
        good="GetCallerIdentityResponse.GetCallerIdentityResult.Arn",
        models_path=None,
        rules=(
            Rule((400, 403), Verdict.UNCHECKED, _CLOCK, "signature expired", source=_STS),
            Rule((400, 403), Verdict.UNCHECKED, _CLOCK, "signature not yet current", source=_STS),
            Rule((400, 403), Verdict.UNCHECKED, _CLOCK, "requestexpired", source=_STS),
            Rule((400, 403), Verdict.DISABLED, _EXPIRED, "expiredtoken", source=_STS),
            Rule((403,), Verdict.INVALID, contains="invalidclienttokenid", source=_STS),
            Rule((403,), Verdict.INVALID, _NOT_ITS_SECRET, "signaturedoesnotmatch", source=_STS),
            # Who is told that he may not ask has shown who he is.
            Rule((403,), Verdict.VALID, contains="accessdenied", kind="not_permitted", source=_STS),
            Rule((400,), contains="throttling", kind="provider_rate_limited", source=_STS),
        ),
    ),
)

_BEDROCK = (
    "https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html"
)
_NOT_HERE = "Amazon Bedrock rejected this key in this region. Check both."

BEDROCK = ProviderSpec(
    id="bedrock",
    name="Amazon Bedrock",
    # AWS recommends this endpoint for new applications, before that of bedrock-mantle.
    base_url="https://bedrock-runtime.{region}.amazonaws.com/openai/v1",
    fields=(Field(placeholder="ABSK…"), _REGION),
    env=("AWS_BEARER_TOKEN_BEDROCK",),
    prefixes=("ABSK", "bedrock-api-key-"),
    get_key_url="https://console.aws.amazon.com/bedrock/home#/api-keys",
    default_model="openai.gpt-oss-20b-1:0",
    docs="https://docs.aws.amazon.com/bedrock/latest/userguide/inference-chat-completions.html",
    limit_name="max_completion_tokens",
    check=CheckSpec(
        # The runtime endpoint lists no models.
        path="https://bedrock.{region}.amazonaws.com/foundation-models?byOutputModality=TEXT",
        good="modelSummaries",
        models_path=None,
        rules=(
            Rule((401, 403), Verdict.INVALID, _NOT_HERE, "authentication failed: please make sure"),
            Rule((401, 403), Verdict.DISABLED, _EXPIRED, "bearer token has expired"),
            Rule((401,), Verdict.INVALID, contains="invalid_api_key"),
            Rule((403,), Verdict.VALID_RESTRICTED, contains="not authorized to perform"),
            Rule((403,), Verdict.VALID_RESTRICTED, contains="don't have access to the model"),
            Rule((400,), contains="model identifier is invalid", kind="model_unknown"),
            Rule((400,), contains="input is too long", kind="context_too_long", source=_BEDROCK),
            TOO_MANY_CALLS,
        ),
    ),
)

# --- Google ---

_REASONS = "https://github.com/googleapis/googleapis/blob/master/google/api/error_reason.proto"
_SERVICE_OFF = "The key is good, but may not use this API: enable it, or grant the role for it."
SERVICE_ACCOUNT = Field("service_account_json", "Service account key (JSON)", kind="json")
SIGNED_HERE = ServiceAccount("https://www.googleapis.com/auth/cloud-platform")
#: Nothing secret is sent: the account's public certificates tell whether its key belongs to it.
CERTIFICATES = CheckSpec(
    ask=belongs,
    models_path=None,
    rules=(
        Rule((401,), Verdict.INVALID, contains="unauthenticated"),
        Rule((403,), Verdict.VALID_RESTRICTED, _SERVICE_OFF, "service_disabled", source=_REASONS),
        Rule((403,), Verdict.VALID_RESTRICTED, _SERVICE_OFF, "iam_permission_denied"),
        Rule((403,), Verdict.VALID_NO_CREDIT, contains="billing_disabled", source=_REASONS),
        Rule((403,), Verdict.DISABLED, contains="consumer_suspended", source=_REASONS),
        TOO_MANY_IN_CALLS,
    ),
)

VERTEX = ProviderSpec(
    id="vertex",
    name="Google Vertex AI",
    # Its global endpoint, in OpenAI's format.
    base_url="https://aiplatform.googleapis.com/v1/projects/{project}/locations/global/endpoints/openapi",
    fields=(
        text_field(
            "project",
            "Project ID",
            r"[a-z][a-z0-9-]{4,28}[a-z0-9]",
            "GOOGLE_VERTEX_PROJECT",
            "GOOGLE_CLOUD_PROJECT",
            placeholder="my-project",
        ),
        SERVICE_ACCOUNT,
    ),
    auth=SIGNED_HERE,
    env=("GOOGLE_APPLICATION_CREDENTIALS",),
    aliases=("google_vertex", "vertex_ai"),
    get_key_url="https://console.cloud.google.com/iam-admin/serviceaccounts",
    default_model="google/gemini-3.8-flash",
    docs="https://docs.cloud.google.com/vertex-ai/generative-ai/docs/multimodal/call-vertex-using-openai-library",
    check=CERTIFICATES,
)

# --- Data clouds ---

_KEPT_OUT_HERE = (
    "The IP access list of this workspace keeps our server out. The key was not checked."
)
_NO_TOKEN = "Databricks does not take this for a token. Its tokens begin with dapi."  # noqa: S105
_WORKSPACE = (
    r"(?i)(?:https://)?((?:[a-z0-9-]+\.)+"
    r"(?:cloud\.databricks\.com|gcp\.databricks\.com|azuredatabricks\.net))(?:/.*)?"
)
_WORKSPACE_EXAMPLE = "adb-123.4.azuredatabricks.net"

DATABRICKS = ProviderSpec(
    id="databricks",
    name="Databricks",
    base_url="https://{host}/serving-endpoints",
    fields=(
        text_field(
            "host", "Workspace", _WORKSPACE, "DATABRICKS_HOST", placeholder=_WORKSPACE_EXAMPLE
        ),
        Field(label="Personal access token", placeholder="dapi…"),
    ),
    env=("DATABRICKS_TOKEN",),
    prefixes=("dapi",),
    get_key_url="https://docs.databricks.com/aws/en/dev-tools/auth/pat",
    default_model="databricks-gpt-5-4-mini",
    docs="https://docs.databricks.com/aws/en/machine-learning/model-serving/query-chat-models",
    check=CheckSpec(
        # "Who am I?", which every user may ask.
        path="https://{host}/api/2.0/preview/scim/v2/Me",
        good="userName",
        models_path=None,
        rules=(
            Rule((403,), reason=_KEPT_OUT_HERE, contains="databricks ip acl", kind="not_permitted"),
            Rule((403,), Verdict.INVALID, contains="invalid access token"),
            Rule(
                (401,), reason=_NO_TOKEN, contains="credential was not sent", kind="not_permitted"
            ),
            Rule((403,), Verdict.VALID_RESTRICTED, contains="not have required scopes"),
        ),
    ),
)

_WORKERS_AI = "https://developers.cloudflare.com/workers-ai/platform/errors/"
_NOT_IN_ACCOUNT = (
    "Cloudflare does not let this token use Workers AI in this account. "
    "Check the token, its permissions and the account ID."
)
_NO_SUCH_ACCOUNT = "Cloudflare knows no such account. Check the account ID."

CLOUDFLARE = ProviderSpec(
    id="cloudflare",
    name="Cloudflare Workers AI",
    base_url="https://api.cloudflare.com/client/v4/accounts/{account_id}/ai/v1",
    fields=(
        text_field(
            "account_id",
            "Account ID",
            r"[0-9a-f]{32}",
            "CLOUDFLARE_ACCOUNT_ID",
            placeholder="0123456789abcdef0123456789abcdef",
        ),
        Field(label="API token"),
    ),
    env=("CLOUDFLARE_API_KEY", "CLOUDFLARE_API_TOKEN"),
    prefixes=("cfat_", "cfut_"),
    get_key_url="https://dash.cloudflare.com/profile/api-tokens",
    default_model="@cf/openai/gpt-oss-20b",
    docs="https://developers.cloudflare.com/workers-ai/configuration/open-ai-compatibility/",
    check=CheckSpec(
        # Not tokens/verify: the user's refuses tokens of an account, and the account's those of a user.
        path="https://api.cloudflare.com/client/v4/accounts/{account_id}/ai/models/search?per_page=1",
        good="result",
        models_path=None,
        rules=(
            Rule((400,), Verdict.INVALID, contains="invalid format for authorization header"),
            # So it answers an unknown token, another account's, and one that may not use Workers AI.
            Rule((401, 403), reason=_NOT_IN_ACCOUNT, contains="10000", kind="not_permitted"),
            Rule((404,), reason=_NO_SUCH_ACCOUNT, contains="could not route to", place="check"),
            Rule((400,), contains="no such model", kind="model_unknown", source=_WORKERS_AI),
            Rule((429,), Verdict.VALID_NO_CREDIT, contains="daily free allocation"),
            Rule((429,), Verdict.UNREACHABLE, contains="data centers", kind="provider_overloaded"),
        ),
    ),
)

_ACCOUNT = (
    r"(?i)(?:https://)?([a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)*?)"
    r"(?:\.snowflakecomputing\.com(?:/.*)?)?"
)

SNOWFLAKE = ProviderSpec(
    id="snowflake",
    name="Snowflake Cortex",
    base_url="https://{account}.snowflakecomputing.com/api/v2/cortex/v1",
    fields=(
        # In names of hosts Snowflake writes - for _.
        text_field(
            "account", "Account", _ACCOUNT, "SNOWFLAKE_ACCOUNT", placeholder="myorg-account1"
        ),
        Field(label="Programmatic access token"),
    ),
    headers={"X-Snowflake-Authorization-Token-Type": "PROGRAMMATIC_ACCESS_TOKEN"},
    env=("SNOWFLAKE_PAT",),
    get_key_url="https://docs.snowflake.com/en/user-guide/programmatic-access-tokens",
    default_model="claude-sonnet-4-6",
    docs="https://docs.snowflake.com/en/user-guide/snowflake-cortex/cortex-rest-api",
    limit_name="max_completion_tokens",
    check=CheckSpec(
        path="https://{account}.snowflakecomputing.com/api/v2/cortex/models",
        good="models",
        models_path=None,
        rules=(
            Rule((401,), Verdict.INVALID, contains="programmatic access token is invalid"),
            Rule((400,), contains="unknown model", kind="model_unknown"),
            Rule((400,), contains="max tokens of", kind="context_too_long"),
        ),
    ),
)

# --- Servers of the operator's and of people's own ---

LOCAL = ProviderSpec(
    id="local",
    name="Local server",
    fields=(Field(required=False),),
    standalone=True,
    docs="https://docs.ollama.com/api/openai-compatibility",
    # Older releases of Ollama list no models as "data": null.
    check=CheckSpec(
        good="data|object",
        # llama.cpp's word for it.
        rules=(UNKNOWN_KEY, Rule((400,), contains="exceed_context_size", kind="context_too_long")),
    ),
)

CUSTOM = ProviderSpec(
    id="custom",
    name="Custom (OpenAI-compatible)",
    fields=(
        Field("name", "Name", secret=False, required=False, placeholder="My vLLM"),
        Field("base_url", "Base URL", secret=False, placeholder="https://…/v1"),
        Field(required=False),
        Field("model", "Model", secret=False, required=False),
    ),
    standalone=True,
    check=CheckSpec(
        rules=(
            # Many are proxies of OpenAI and pass its answers on.
            Rule((401, 403), Verdict.VALID_RESTRICTED, contains="missing scopes"),
            UNKNOWN_KEY,
            Rule((404,), reason="This server lists no models to check a key by.", place="check"),
        )
    ),
)

#: In the order in which they are shown.
CLOUDS = (AZURE_OPENAI, BEDROCK, VERTEX, CLOUDFLARE, DATABRICKS, SNOWFLAKE, AWS)
OWN = (LOCAL, CUSTOM)
