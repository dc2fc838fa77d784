"""Messages and parameters in OpenAI's words, read once for all three wires.

Shapes: https://platform.openai.com/docs/api-reference/chat/create. What is wrong is refused with a sentence that says
where, and repeats nothing of the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..errors import InvalidFieldError

_Name = Annotated[str, Meta(min_length=1)]
_Model = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,256}\Z")]
_WHERE = re.compile(r"`\$(.*)`$")
#: Between a call's id and its thought signature. Gemini 3 demands it back; OpenAI's messages have no field for it.
SIGNED = "~thought~"
_SYSTEMS = "system", "developer"
#: What a field should be, by its name.
_FORMS = {
    "model": "is a name of up to 256 printable characters.",
    "messages": "is a list of messages, each with a role and content.",
    "role": "is system, developer, user, assistant or tool.",
    "content": "is text or a list of parts.",
    "type": "is text, image_url or input_audio (a part), function (a tool), json_object or json_schema (a format).",
    "url": "begins with https:// or data:image/png;base64, (or another type of image).",
    "tool_choice": 'is auto, none, required or {"type": "function", "function": {"name": …}}.',
    "reasoning_effort": "is none, minimal, low, medium, high, xhigh or max.",
    "max_tokens": "is a number of tokens, 1 or more.",
}


class Facts(Struct, frozen=True):
    """What a wire needs to know of provider and model.

    :param limit_name: name of the limit in OpenAI's wire.
    :param asks_usage: whether the server understands ``stream_options.include_usage``.
    :param max_output: the model's longest answer in tokens, if it is known.
    """

    limit_name: str = "max_tokens"
    asks_usage: bool = True
    max_output: int | None = None


class Text(Struct, tag_field="type", tag="text"):
    """A part of a message that is text."""

    text: str


class ImageUrl(Struct):
    """Where an image is."""

    url: Annotated[str, Meta(pattern=r"^(https://|data:image/[\w.+-]+;base64,.)")]


class Image(Struct, tag_field="type", tag="image_url"):
    """A part of a message that is an image."""

    image_url: ImageUrl

    @property
    def inline(self) -> tuple[str, str] | None:
        """The media type and the base64 data, unless the image is elsewhere."""
        head, _, data = self.image_url.url.partition(";base64,")
        return (head.removeprefix("data:"), data) if head.startswith("data:") else None


class AudioData(Struct):
    """Sound in base64; the format is ``wav`` or ``mp3``."""

    data: str
    format: Annotated[str, Meta(pattern=r"^\w+$")]


class Audio(Struct, tag_field="type", tag="input_audio"):
    """A part of a message that is sound."""

    input_audio: AudioData


Part = Text | Image | Audio


class CalledFunction(Struct):
    """A function and the text of a JSON object."""

    name: _Name
    arguments: str


class Call(Struct):
    """A tool call of an assistant's message."""

    id: _Name
    function: CalledFunction

    def read_arguments(self) -> dict[str, Any]:
        """Return the arguments as an object.

        :raises InvalidFieldError: they are none.
        """
        try:
            return msgspec.json.decode(self.function.arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            pass
        raise InvalidFieldError("A tool call's arguments are the text of a JSON object.")


class Message(Struct):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Text | Image | Audio] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str = ""

    @property
    def parts(self) -> list[Part]:
        """The content as parts, without empty texts: Anthropic and Google refuse them."""
        content = [Text(self.content)] if isinstance(self.content, str) else self.content or []
        return [part for part in content if not isinstance(part, Text) or part.text]

    @property
    def text(self) -> str:
        """The content as one text.

        :raises InvalidFieldError: it has other parts.
        """
        texts = [part.text for part in self.parts if isinstance(part, Text)]
        if len(texts) < len(self.parts):
            raise refuse(next(part for part in self.parts if not isinstance(part, Text)))
        return "".join(texts)


class Function(Struct):
    """What a model is told about a function."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A tool that the caller runs, or the name of one."""

    function: Function
    type: Literal["function"] = "function"


class JsonSchema(Struct):
    """The schema of an answer."""

    schema: dict[str, Any]


class Format(Struct):
    """A ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Params(Struct, forbid_unknown_fields=True):
    """The parameters of a chat."""

    max_tokens: Annotated[int, Meta(gt=0)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | Tool | None = None
    response_format: Format | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    extra: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def functions(self) -> list[Function]:
        """The functions that a model may call."""
        return [tool.function for tool in self.tools or ()]

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer: {} for any JSON, None for text."""
        if self.response_format is None or self.response_format.type == "text":
            return None
        described = self.response_format.json_schema
        return described.schema if described else {}


class Chat:
    """A conversation and how it goes on, as it was given and as it was read.

    :raises InvalidFieldError: something is wrong.
    """

    def __init__(
        self, messages: Sequence[Mapping[str, Any]], model: str, params: Mapping[str, Any]
    ) -> None:
        self.model = _convert(model, _Model, "model")
        self.given = {name: value for name, value in params.items() if value is not None}
        self.params = _convert(self.given, Params, "")
        self._read = _convert(messages, Annotated[list[Message], Meta(min_length=1)], "messages")
        self.messages = list(messages)
        self.system = "\n\n".join(m.text for m in self._read if m.role in _SYSTEMS)

    @property
    def turns(self) -> list[Message]:
        """The conversation, without the system's instructions and empty messages.

        :raises InvalidFieldError: nothing is left, which Anthropic and Google refuse.
        """
        spoken = (m for m in self._read if m.role not in _SYSTEMS)
        turns = [m for m in spoken if m.parts or m.tool_calls or m.tool_call_id]
        if not turns:
            raise InvalidFieldError("messages needs one beside the system's with this provider.")
        return turns


def plain_id(id: str) -> str:
    """Return a call's id without a signature, which other providers than Google refuse as too long."""
    return id.partition(SIGNED)[0]


def refuse(part: Part) -> InvalidFieldError:
    """Return the error about a part that a wire has no form for."""
    kind = "images" if isinstance(part, Image) else "audio"
    return InvalidFieldError(f"This provider takes no {kind} here: send text.")


def _convert(value: Any, kind: Any, name: str) -> Any:
    """Read a value. msgspec's own message may repeat it, so only the place is taken from there."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = _WHERE.search(str(error))
    where = name + found[1] if found else name
    if not where:
        known = ", ".join(Params.__struct_fields__)
        raise InvalidFieldError(f"A parameter is unknown: beside model there are {known}.")
    form = _FORMS.get(where.rpartition(".")[2], "has another form in OpenAI's chat completions.")
    raise InvalidFieldError(f"{where.removeprefix('.')} {form}")
