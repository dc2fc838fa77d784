"""Keys as people paste them, with what stands around them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok import get_provider_with_api_key
from flask_byok.catalog import Catalog, Field, ProviderSpec
from flask_byok.catalog.paste import looks_like
from flask_byok.errors import KeyRefusedError, MalformedApiKeyError
from flask_byok.keys.typed import read_typed
from flask_byok.model.credential import Secret, Verdict
from flask_byok.settings import Settings

from .conftest import MakeWorld

CATALOG = Catalog()
OPENAI, ANTHROPIC = CATALOG.get("openai"), CATALOG.get("anthropic")
ACME = ProviderSpec(id="acme", name="Acme", base_url="https://acme.example", prefixes=("acme_",))
PAIR = ProviderSpec(
    id="pair",
    name="Pair",
    base_url="https://pair.example",
    fields=(Field("access_key_id", "Id"), Field("secret_access_key", "Secret")),
)

KEY = "sk-proj-CANARY4711_abc-DEF0123456789xyz"
OTHER = "sk-ant-api03-CANARY0815-abcDEF_0123456789"
PLAIN = "CANARYaB3dE5fG7hJ9kL1mN3pQ5rS7tU"

#: What stands around a key; ``{}`` is the key.
AROUND = [
    *("OPENAI_API_KEY={}", 'export OPENAI_API_KEY="{}"', "set OPENAI_API_KEY={}", "API_KEY = '{}'"),
    *(
        '$env:OPENAI_API_KEY = "{}"',
        'setx OPENAI_API_KEY "{}"',
        "OPENAI_API_KEY: {}",
        "-e X_KEY={}",
    ),
    *("HF_TOKEN={} # mine", "OPENAI_API_KEY\t{}", "API key: {}", "My key is {}", "--api-key {}"),
    *('{{"api_key": "{}"}}', '{{"openai":"{}"}}', '"OPENAI_API_KEY": "{}",', 'apiKey: "{}" }}'),
    *('{{\n  "name": "work",\n  "api_key": "{}"\n}}', '"{{\\"api_key\\": \\"{}\\"}}"'),
    'curl https://api.example/v1/chat \\\n  -H "Authorization: Bearer {}" \\\n'
    '  -H "Content-Type: application/json" \\\n'
    '  -d \'{{"model": "claude-3-5-sonnet-20241022", "max_tokens": 12345678}}\'',
    *("-H 'x-api-key: {}' \\", "x-goog-api-key:{}", "api-key: {}", "Authorization: Token {}"),
    *("https://api.example/v1/models?key={}&alt=sse", "Bearer {}", "authorization: bearer {}"),
    *('api_key="{}"', "os.environ['OTHER'] = '{}'", 'OpenAI(api_key="{}", timeout=5)'),
    *('api_key: str = "{}"', "new OpenAI({{ apiKey: '{}' }});", 'const apiKey: string = "{}";'),
    *("{},", "{};", "{}.", '"{}"', "'{}',", "“{}”", "«{}»", "`{}`", "<{}>", "<code>{}</code>"),
    *("```\n{}\n```", "```bash\nexport KEY={}\n```", "> OPENAI_API_KEY={}", "$ export KEY={}"),
    *("- {}", "\ufeff{}\u200b", "\xa0{}\u2028", "\u202a{}\u202c\r\n", "# mine:\nKEY={}\n"),
    *("api.key={}\nDEBUG=1\nPORT=8080\n", "OPENAI_API_KEY={0}\nOPENAI_API_KEY={0}"),
]
#: Those around a key whose beginning nobody knows; brackets alone are those of a placeholder.
AROUND_ANY = [around for around in AROUND if not around.startswith(("<", "- "))]

letters = st.text(string.ascii_letters + string.digits + "-_", min_size=30, max_size=80)
prefixes = st.sampled_from(sorted(p for s in CATALOG for p in s.prefixes if len(p) > 3))
known_keys = st.builds("{}1{}z".format, prefixes, letters)


def read(text: str, spec: ProviderSpec = OPENAI, name: str = "api_key") -> str:
    """Return the key that is taken from what was typed."""
    fields = {f.name: Secret("12345678") for f in spec.fields} | {name: Secret(text)}
    return read_typed(spec, fields, None, Settings()).fields[name].reveal()


@pytest.mark.parametrize("around", AROUND)
def test_a_key_comes_out_alone(around: str) -> None:
    """A key comes out of what is pasted with it, unchanged."""
    assert read(around.format(KEY)) == KEY


@pytest.mark.parametrize("around", AROUND_ANY)
def test_a_key_without_a_known_beginning_comes_out(around: str) -> None:
    """What stands around a key tells where it is, though its beginning tells nothing."""
    assert read(around.format(PLAIN)) == PLAIN


@given(key=known_keys, around=st.sampled_from(AROUND), spec=st.sampled_from([*CATALOG][:6]))
def test_any_key_comes_out_of_any_form(key: str, around: str, spec: ProviderSpec) -> None:
    """Keys of each known beginning come out of each form, in every provider's field."""
    assert read(around.format(key), spec) == key


def base64(size: int) -> st.SearchStrategy[str]:
    """Make base64 of so many groups of four, padded or not."""
    groups = st.text(string.ascii_letters + string.digits + "+/", min_size=size * 4, max_size=80)
    return st.builds(
        lambda text, pad: text[: len(text) // 4 * 4 - pad] + "=" * pad, groups, st.integers(0, 2)
    )


REAL = st.one_of(
    known_keys,
    base64(5),
    letters.map("a{}9".format),
    st.uuids().map(str),
    st.builds("{}:{}".format, letters.map("u{}".format), base64(4)),
    st.builds("eyJ{}.eyJ{}.{}x".format, letters, letters, letters),
    st.builds("AQ.{}x".format, letters),
    letters.map("user@example.com:{}7".format),
    st.builds("{}{}{}".format, known_keys, st.sampled_from("$!@:%*^#?"), letters),
)


@given(key=REAL)
def test_a_real_key_is_not_cut(key: str) -> None:
    """A key with ``=``, ``:``, ``/``, ``+`` or ``.`` in it, and nothing around it, stays as it is."""
    assert read(key) == key


@given(key=known_keys, parts=st.integers(1, 2))
@pytest.mark.parametrize("gap", ["\n", "\r\n   ", "\xa0", "\u200b", "\u00ad"])
def test_a_wrapped_key_is_joined(key: str, parts: int, gap: str) -> None:
    """A key whose beginning is known is joined again where a full line, or what no screen shows, parts it."""
    full = f"OPENAI_API_KEY={key:Z<65}"[:80]
    whole = full + "Q4xy" * 20 * (parts - 1) + "Q4xyQ4xy"
    lines = [whole[at : at + len(full)] for at in range(0, len(whole), len(full))]
    assert read(gap.join(lines) + "\n") == whole.partition("=")[2]
    assert read(f'"{key}{gap}Q4x"') == f"{key}Q4x"
    assert read(f"export KEY='{key}{gap}Q4x'") == f"{key}Q4x"


def test_a_key_that_is_not_whole_goes_on() -> None:
    """In a line that is not full, what the shape of the provider's keys says is no whole key goes on in the next."""
    begun, rest = "sk-proj-CANARY4711abcdefghi", "jklT3BlbkFJ0123456789"
    assert read(f"OPENAI_API_KEY={begun}\n{rest}\nDEBUG=1") == begun + rest


LONG = f"sk-ant-api03-{'CANARYaB3' * 10}-wXyZ_AA"


@pytest.mark.parametrize(
    "text",
    [
        *(f"{KEY}\n{rest}" for rest in ("acct42", "Q4x", "B7", "12345678", "2026-12-01")),
        *(f"OPENAI_API_KEY={KEY}\n{rest}\n" for rest in ("acct42", "v2", "user7@host")),
    ],
)
def test_a_line_of_its_own_is_no_part_of_a_key(text: str) -> None:
    """A key in a line that is not full is whole: what stands in the next one is not joined to it."""
    assert read(text) == KEY


@pytest.mark.parametrize(
    "other", ["2026-12-01", "org-1", "550e8400-e29b-41d4-a716-446655440000", "1234", "my key 2"]
)
def test_what_is_something_else_is_no_part_of_a_key(other: str) -> None:
    """After a full line too a date, a number, a name and a UUID are not joined to the key before them."""
    assert read(f"{LONG}\n{other}", ANTHROPIC) == LONG


ENV = f"# keys\nexport ANTHROPIC_API_KEY={OTHER}\nOPENAI_API_KEY='{KEY}'\nSECRET_KEY=django-CANARY-1\n"


def test_the_own_key_of_several_is_taken() -> None:
    """Of several keys the only one of this provider is taken, by its variable, its beginning or its field's name."""
    assert read(ENV) == KEY
    assert read(ENV, ANTHROPIC) == OTHER
    assert read(f"{OTHER}\n{KEY}") == KEY
    assert read(f"GROQ_API_KEY={PLAIN}\nANTHROPIC_API_KEY={OTHER[::-1]}", ANTHROPIC) == OTHER[::-1]
    file = "[default]\naws_access_key_id = CANARY0001\nsecret_access_key = CANARY/0002+x="
    assert read(file, PAIR, "secret_access_key") == "CANARY/0002+x="


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{KEY}\n{'Q4x' * 20}", "in one line"),
        (f"{KEY}\n{KEY[-10:]}", "in one line"),
        (f"{KEY}{'Q4x' * 20}\ngpt4", "in one line"),
        (f"{KEY}\n{KEY[:-1]}0", "several keys"),
        (f"A_TOKEN={PLAIN}\nB_TOKEN={PLAIN[::-1]}", "several keys"),
        (f"OPENAI_API_KEY={KEY}\nOPENAI_API_KEY={KEY}0", "several keys"),
        (f"{PLAIN}\n{PLAIN[::-1]}", "Copy the key alone"),
        ('f("CANARY")', "No API key was found"),
        ('curl x -d \'{"model": "claude-CANARY-20241022"}\'', "Copy the key alone"),
        (
            '{"type": "a", "private_key_id": "CANARY1234567", "k": "-----BEGIN KEY-----"}',
            "Copy the",
        ),
        ("OPENAI_API_KEY=CANARY", "8 to 4,096"),
        *((f"OPENAI_API_KEY={hole}", "placeholder") for hole in ("sk-...", "your_api_key_here")),
        *((f"{KEY}{odd}abc123", "8 to 4,096") for odd in "\0\x07é"),
        ("OPENAI_API_KEY=", "placeholder"),
        ('{"api_key": "sk-..."}', "placeholder"),
        ("Authorization: Bearer $OPENAI_API_KEY", "placeholder"),
        ("op://vault/item/api_key", "placeholder"),
        ("arn:aws:secretsmanager:eu-west-1:1:secret:CANARY-key-AbCdEf", "placeholder"),
        ("sk-ant-oat01-CANARY-0123456789", "OAuth token"),
        ("ANTHROPIC_API_KEY=sk-ant-oat01-CANARY-0123456789", "API key for Anthropic"),
        ("sess-CANARY0123456789", "a session key"),
    ],
)
@pytest.mark.parametrize("spec", [ANTHROPIC, OPENAI], ids=lambda spec: spec.id)
def test_what_is_no_key_is_refused(text: str, said: str, spec: ProviderSpec) -> None:
    """Two keys, none, a placeholder and another kind of secret are refused with advice, and not repeated."""
    with pytest.raises(MalformedApiKeyError) as caught:
        read(text, spec)
    assert said.replace("Anthropic", spec.name) in str(caught.value)
    assert "CANARY" not in f"{caught.value!r}"


@pytest.mark.parametrize(
    "evil",
    ["a='", "sk-", "a_key ", '"', "```\n", "\\'", "=", "a:", "key is ", "Bearer ", " \n", "x-"],
)
def test_no_text_takes_long(evil: str) -> None:
    """No text takes long to read: none is tried in every division."""
    for text in (evil * (16_000 // len(evil)), f"KEY={evil * 4000}", f"sk-1\n{evil * 4000}!"):
        try:
            read(text)
        except MalformedApiKeyError:
            continue


def test_a_file_and_an_own_servers_word_stay() -> None:
    """A server of one's own takes any word, and a key with a name yields the key there too."""
    custom, settings = CATALOG.get("custom"), Settings(allow_custom_providers=True)
    for text, key in (
        ("pass{word}", "pass{word}"),
        ("sk-admin-1234", "sk-admin-1234"),
        (f"KEY={KEY}", KEY),
    ):
        fields = {"base_url": Secret("https://llm.example/v1"), "api_key": Secret(text)}
        assert read_typed(custom, fields, None, settings).fields["api_key"].reveal() == key


# whose key it is


@pytest.mark.parametrize(
    ("provider", "api_key", "variable", "whose"),
    [
        ("openai", OTHER, "", "anthropic"),
        ("xai", "gsk_0123456789", "", "groq"),
        ("openai", "sk-or-v1-0123", "", "openrouter"),
        ("openrouter", "sk-0123T3BlbkFJ0123", "", "openai"),
        ("openai", "sk-admin-0123", "", None),
        ("groq", "sk-admin-0123", "", "openai"),
        ("openai", PLAIN, "GROQ_API_KEY", "groq"),
        ("openai", PLAIN, "groq_api_key", "groq"),
        ("openai", KEY, "GROQ_API_KEY", None),
        ("google", PLAIN, "GOOGLE_API_KEY", None),
        ("openai", "acme_0123", "", "acme"),
        ("openai", "sk-0123456789", "", None),
        ("groq", "sk-0123456789", "", None),
        ("groq", PLAIN, "", None),
    ],
)
def test_whose_key_it_looks_like(
    provider: str, api_key: str, variable: str, whose: str | None
) -> None:
    """A key's beginning, shape and variable tell whose it is, in this order, if only one provider's are like that."""
    found = looks_like(api_key, CATALOG.get(provider), [ACME], variable)
    assert (found and found.id) == whose


def test_a_beginning_that_two_have_tells_nothing() -> None:
    """A registered provider whose keys begin as another's is not taken for it, nor the other way round."""
    twin = ProviderSpec(id="twin", name="Twin", base_url="https://t.example", prefixes=("gsk_",))
    assert looks_like("gsk_0123", twin) is None
    assert looks_like("gsk_0123", CATALOG.get("groq"), [twin]) is None
    assert looks_like("gsk_0123", OPENAI, [twin]) is None


# keys that do too much


ADMIN = ["sk-admin-CANARY-0123456789", "sk-ant-admin01-CANARY-0123456789", "xai-token-CANARY-01234"]


@pytest.mark.parametrize("admin_key", ADMIN)
@pytest.mark.parametrize("provider", ["openai", "groq", "anthropic"])
def test_admin_keys_are_sent_nowhere(make_world: MakeWorld, admin_key: str, provider: str) -> None:
    """An admin key, of another provider too and with a name before it, is neither stored nor sent."""
    world = make_world()
    ann, pasted = world.caller(), f"export SOME_KEY='{admin_key}'"
    with pytest.raises(KeyRefusedError) as caught:
        world.set(ann, pasted, provider, validate="off")
    assert caught.value.validation.verdict is Verdict.ADMIN_KEY_REFUSED
    checked = world.service.validate(ann, provider, {"api_key": Secret(pasted)})
    assert checked.verdict is Verdict.ADMIN_KEY_REFUSED
    with pytest.raises(KeyRefusedError):
        get_provider_with_api_key(provider, pasted)
    assert world.fake.calls == []
