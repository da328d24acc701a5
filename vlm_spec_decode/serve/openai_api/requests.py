"""The bodies that clients send, read strictly: a field that would change the answer is obeyed or refused.

`read_chat_request` reads the body of /v1/chat/completions into a `CompletionRequest`, `responses_body` that
of /v1/responses. Raises ApiError with the field's name; nothing else, whatever the bytes are.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import RULES, text_problem
from vlm_spec_decode.serve.openai_api.errors import ApiError, unsupported, wrong
from vlm_spec_decode.strategies.registry import strategy

Kind = TypeVar("Kind", bound=Struct)

MAX_STOPS, MAX_STOP_CHARS = 4, 200
MAX_SEED = 2**63
MAX_NAME_CHARS = 512
"""Of what a reply repeats, such as `user`."""

MAX_HISTORY_CHARS = 16_000
"""Of all actions of `vsd.history`: a question has to fit into one message to the cloud."""

TEXT, OBJECT, SCHEMA, REGEX, ACTIONS = "text", "json_object", "json_schema", "regex", "robot_actions"
"""Types of `response_format`. The last two are our own."""

HARMLESS = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "stream_options"}
)
"""Fields that change nothing of an answer; the last one is read where there is a stream."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""Fields that nothing here obeys, and the values with which they ask for nothing. null always does."""


class ImageUrl(Struct, forbid_unknown_fields=True):
    """A picture: a data URL, or a URL of a host that is allowed."""

    url: str
    detail: str = "auto"


class TextPart(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A piece of a message's text."""

    text: str


class ImagePart(Struct, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    """A message's picture."""

    image_url: ImageUrl


class ChatMessage(Struct, forbid_unknown_fields=True):
    """One message of a chat."""

    role: str
    content: str | list[TextPart | ImagePart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None


class SchemaFormat(Struct, forbid_unknown_fields=True):
    """A schema by its name; `strict` or not, an answer is held to it."""

    name: str
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """What the answer is held to; of the other fields the one of its type is read."""

    type: str
    json_schema: SchemaFormat | None = None
    regex: str | None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class OwnOptions(Struct, forbid_unknown_fields=True):
    """What only this server knows, in the field `vsd`."""

    strategy: str | None = None
    rule: str | None = None
    history: list[str] = []
    token_ids: bool = False


class ChatBody(Struct, forbid_unknown_fields=True):
    """The body of /v1/chat/completions, without the fields of `NEUTRAL`."""

    model: str
    messages: list[ChatMessage]
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    response_format: ResponseFormat | None = None
    vsd: OwnOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseEcho:
    """What a reply of /v1/responses repeats of its request; `format` is its `text.format`."""

    instructions: str | None = None
    format: Mapping[str, Any] = field(default_factory=lambda: {"type": TEXT})
    metadata: Mapping[str, str] = field(default_factory=dict)
    parallel_tool_calls: bool = True
    tool_choice: str = "auto"
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


@dataclass(frozen=True, slots=True)
class RequestTurn:
    """One turn as it was asked; `picture` is the URL of what its user shows, "" for nothing."""

    role: str
    text: str
    picture: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One request, checked as far as that needs no model. What is None is left to the server's settings.

    `form` is a type of `response_format`, `pattern` its expression, or its schema as JSON, `description` what
    the answer is to be, in words. `history` holds actions already carried out, for `robot_actions`. With
    `token_ids` the reply has those of the answer. `echo` is for /v1/responses.
    """

    model: str
    turns: tuple[RequestTurn, ...]
    form: str = TEXT
    pattern: str = ""
    description: str = ""
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    strategy: str | None = None
    rule: str | None = None
    history: tuple[str, ...] = ()
    token_ids: bool = False
    echo: ResponseEcho = field(default_factory=ResponseEcho)


def read_chat_request(data: bytes) -> CompletionRequest:
    """Return the question in a body of /v1/chat/completions. Raises ApiError."""
    raw = read_object(data)
    options = read_stream_options(raw)
    body = read_body(raw, ChatBody, NEUTRAL)
    longest = [n for n in (body.max_completion_tokens, body.max_tokens) if n is not None]
    if len(set(longest)) > 1:
        raise wrong("max_tokens", "max_tokens and max_completion_tokens name two lengths")
    found = body.response_format or ResponseFormat(TEXT)
    named = found.json_schema or SchemaFormat("")
    check_form_fields("response_format", found.type, {"json_schema": found.json_schema}, found.regex)
    form, pattern = answer_form("response_format", found.type, named.schema, found.regex)
    return CompletionRequest(
        model=body.model,
        turns=tuple(_turn(message, at) for at, message in enumerate(body.messages)),
        form=form,
        pattern=pattern,
        description=answer_description("response_format.json_schema", named.description),
        stops=_stops(body.stop),
        include_usage=bool(options.include_usage),
        **common_fields(body, longest[0] if longest else None),
    )


def common_fields(body: Any, longest: int | None) -> dict[str, Any]:
    """Return the fields that both kinds of bodies have, within their bounds."""
    own = body.vsd or OwnOptions()
    if own.rule is not None and own.rule not in RULES:
        raise wrong("vsd.rule", f"unknown rule; known: {', '.join(RULES)}")
    if own.strategy is not None:
        try:
            strategy(own.strategy)
        except ConfigError as error:
            raise wrong("vsd.strategy", str(error)) from error
    for action in own.history:
        _check_text("vsd.history", action)
    if sum(map(len, own.history)) > MAX_HISTORY_CHARS:
        raise wrong("vsd.history", f"more than {MAX_HISTORY_CHARS} characters", "string_above_max_length")
    return {
        "temperature": _within("temperature", body.temperature, 0, 2),
        "top_p": _within("top_p", body.top_p, 0, 1, above_low=True) or 1.0,
        "top_k": _within("top_k", body.top_k, 0, 1 << 20) or 0,
        "seed": _within("seed", body.seed, -MAX_SEED, MAX_SEED - 1),
        "max_tokens": longest,
        "stream": bool(body.stream),
        "strategy": own.strategy,
        "rule": own.rule,
        "history": tuple(own.history),
        "token_ids": own.token_ids,
    }


def read_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises ApiError."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no JSON object", code="invalid_json")
    return found


def read_body(raw: Mapping[str, Any], kind: type[Kind], neutral: Mapping[str, tuple[Any, ...]]) -> Kind:
    """Return the body without what is neutral or harmless. Raises ApiError for what is neither."""
    known = kind.__struct_encode_fields__  # `msgspec.structs.fields` evaluates all annotations at each call
    rest = {}
    for name, value in raw.items():
        if name in known:
            rest[name] = value
        elif name in neutral:
            if value is not None and not _asks_nothing(value, neutral[name]):
                raise unsupported(name)
        elif name not in HARMLESS:
            raise ApiError(
                400, f"unknown parameter: {name[:80]!r}", code="unknown_parameter", param=name[:80]
            )
    return _converted(rest, kind)


def _asks_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def _converted(value: Any, kind: type[Kind], under: str = "") -> Kind:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        text, _, where = str(error).partition(" - at `$")
        param = f"{under}{where.rstrip('`')}".strip(".") or under or None
        raise ApiError(400, f"{param or 'the body'}: {text}", code="invalid_type", param=param) from error


def read_stream_options(raw: Mapping[str, Any]) -> StreamOptions:
    """Return the field `stream_options`. Raises ApiError for what is not obeyed."""
    value = raw.get("stream_options")
    if value is None:
        return StreamOptions()
    if not raw.get("stream"):
        raise wrong("stream_options", "stream_options is for a stream only")
    found = _converted(value, StreamOptions, "stream_options")
    if found.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation")
    return found


def _turn(message: ChatMessage, at: int) -> RequestTurn:
    where = f"messages[{at}]"
    for name in ("tool_calls", "tool_call_id", "function_call", "audio", "name"):
        if getattr(message, name):
            raise unsupported(f"{where}.{name}")
    parts = message.content
    if message.refusal:
        if parts or message.role != "assistant":
            raise unsupported(f"{where}.refusal", "beside a content, or of another role than the assistant's")
        parts = message.refusal  # it is what the assistant has said
    if parts is None:
        raise wrong(f"{where}.content", "a message without content")
    if isinstance(parts, str):
        return request_turn(where, message.role, parts)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    pictures = [part.image_url for part in parts if isinstance(part, ImagePart)]
    for picture in pictures:
        check_detail(f"{where}.content", picture.detail)
    return request_turn(where, message.role, "\n".join(texts), [picture.url for picture in pictures])


def check_detail(where: str, detail: str) -> None:
    """Refuse what a picture's size cannot follow: it follows from the target and the uplink."""
    if detail not in ("auto", "high"):
        raise unsupported(where, f"detail {detail[:20]!r}; a picture's size follows from target and uplink")


def request_turn(
    where: str, role: str, text: str, pictures: list[str] | None = None, *, content: str = ""
) -> RequestTurn:
    """Return one turn; errors name the field `where`, and `content` for its text. Raises ApiError.

    A picture may stand alone; without one there must be a text.
    """
    found, content = pictures or [], content or f"{where}.content"
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise unsupported(f"{where}.role", f"{role[:40]!r}; known: system, developer, user, assistant")
    if found and role != "user":
        raise wrong(content, "only the user shows pictures")
    if len(found) > 1:
        raise unsupported(content, "more than one picture in a request")
    _check_text(content, text, is_needed=not found)
    return RequestTurn(role, text, found[0] if found else "")


def _check_text(where: str, text: str, *, is_needed: bool = True) -> None:
    if problem := text_problem(text):
        raise wrong(where, f"no text: {problem}")
    if is_needed and not text.strip():
        raise wrong(where, "an empty text")


def answer_description(where: str, text: str | None) -> str:
    """Return what the answer is to be, which the model is told. Raises ApiError."""
    _check_text(f"{where}.description", text or "", is_needed=False)
    return (text or "").strip()


def check_form_fields(where: str, kind: str, of_schema: Mapping[str, Any], regex: str | None) -> None:
    """Refuse fields of another form than the one that is asked for: they would not be read."""
    given = {**dict.fromkeys(of_schema, SCHEMA), "regex": REGEX}
    for name, value in {**of_schema, "regex": regex}.items():
        if value is not None and given[name] != kind:
            raise wrong(f"{where}.{name}", f"{name} is for the type {given[name]}, not for {kind[:40]!r}")


def answer_form(where: str, kind: str, schema: dict[str, Any] | None, regex: str | None) -> tuple[str, str]:
    """Return type and pattern of the answer's form."""
    if kind in (TEXT, ACTIONS):
        return kind, ""
    if kind == OBJECT:
        return SCHEMA, '{"type":"object"}'
    if kind == REGEX:
        if not regex:
            raise wrong(f"{where}.regex", "a form of type regex needs its regex")
        return REGEX, regex
    if kind == SCHEMA:
        if schema is None:
            raise wrong(f"{where}.json_schema", "a form of type json_schema needs its schema")
        return SCHEMA, msgspec.json.encode(schema).decode()
    known = ", ".join((TEXT, OBJECT, SCHEMA, REGEX, ACTIONS))
    raise unsupported(f"{where}.type", f"{kind[:40]!r}; known: {known}")


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MAX_STOPS or not all(0 < len(each) <= MAX_STOP_CHARS for each in found):
        raise wrong("stop", f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters are wanted")
    return found


Number = TypeVar("Number", int, float)


def _within(
    name: str, value: Number | None, low: float, high: float, *, above_low: bool = False
) -> Number | None:
    if value is not None and not (low < value <= high or (value == low and not above_low)):
        raise wrong(name, f"{name} {value}: {'above ' if above_low else ''}{low} to {high} is wanted")
    return value


def new_seed() -> int:
    """Return a seed for a request that samples and names none."""
    return secrets.randbelow(2**31)
