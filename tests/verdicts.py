"""What a check says of the keys of each provider, by the provider's own documents."""

from __future__ import annotations

from flask_byok.model.credential import Verdict

#: What each provider documents for a bad key, one without credit, a restricted one, one over its limit, and a disabled
#: one; "-" says that its answer does not tell.
TABLE = """
openai        invalid no_credit restricted rate_limited disabled
anthropic     invalid no_credit restricted rate_limited disabled
google        invalid no_credit restricted rate_limited disabled
groq          invalid no_credit restricted rate_limited disabled
xai           invalid no_credit -          rate_limited disabled
openrouter    invalid no_credit -          rate_limited disabled
mistral       invalid no_credit -          rate_limited invalid
cohere        invalid no_credit -          rate_limited invalid
deepseek      invalid no_credit -          rate_limited invalid
perplexity    invalid -         -          rate_limited invalid
moonshot      invalid no_credit -          rate_limited invalid
zai           invalid no_credit restricted rate_limited disabled
alibaba       invalid no_credit restricted rate_limited invalid
minimax       invalid no_credit -          rate_limited invalid
together      invalid no_credit -          rate_limited invalid
huggingface   invalid no_credit restricted -            invalid
cerebras      invalid no_credit -          rate_limited invalid
fireworks     invalid no_credit restricted rate_limited invalid
nvidia        -       no_credit -          -            -
nebius        invalid no_credit -          rate_limited -
deepinfra     -       no_credit -          -            -
vercel        invalid no_credit -          rate_limited invalid
ovhcloud      invalid no_credit -          -            -
azure_openai  invalid no_credit restricted rate_limited disabled
bedrock       invalid no_credit restricted rate_limited disabled
vertex        invalid valid     valid      valid        disabled
cloudflare    -       no_credit -          -            -
databricks    invalid no_credit restricted -            -
snowflake     invalid no_credit -          -            -
aws           invalid -         -          -            disabled
elevenlabs    invalid no_credit restricted rate_limited -
deepgram      invalid no_credit restricted rate_limited -
assemblyai    invalid no_credit -          rate_limited -
gladia        invalid -         -          rate_limited -
revai         invalid no_credit -          rate_limited invalid
azure_speech  invalid no_credit -          rate_limited disabled
google_speech invalid valid     valid      valid        disabled
local         invalid no_credit -          -            invalid
custom        invalid no_credit restricted -            invalid
"""
BEHAVIOURS = ("bad", "broke", "restricted", "rate_limited", "disabled")
WORDS = {
    "-": Verdict.UNCHECKED,
    "no_credit": Verdict.VALID_NO_CREDIT,
    "restricted": Verdict.VALID_RESTRICTED,
    "rate_limited": Verdict.VALID_RATE_LIMITED,
}
VERDICTS = {
    (provider, behaviour): WORDS.get(word) or Verdict(word)
    for provider, *words in map(str.split, TABLE.strip().splitlines())
    for behaviour, word in zip(BEHAVIOURS, words, strict=True)
}
for one in dict.fromkeys(provider for provider, _ in VERDICTS):
    VERDICTS[one, "overloaded"] = Verdict.UNREACHABLE
    VERDICTS[one, "good"] = VERDICTS[one, "slow"] = Verdict.VALID
# It lists its models to everyone, so that a good key is not told from a bad one.
VERDICTS["ovhcloud", "good"] = VERDICTS["ovhcloud", "slow"] = Verdict.UNCHECKED
# Only these tell more.
VERDICTS["google", "service_disabled"] = Verdict.VALID_RESTRICTED
VERDICTS["xai", "blocked"] = VERDICTS["xai", "team_blocked"] = Verdict.DISABLED
