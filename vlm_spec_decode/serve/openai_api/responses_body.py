"""The body of /v1/responses, in its basic form: one answer, of which nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from vlm_spec_decode.serve.openai_api.errors import unsupported, wrong
from vlm_spec_decode.serve.openai_api.requests import (
    MAX_NAME_CHARS,
    NEUTRAL,
    OBJECT,
    SCHEMA,
    TEXT,
    CompletionRequest,
    OwnOptions,
    RequestTurn,
    ResponseEcho,
    answer_description,
    answer_form,
    check_detail,
    check_form_fields,
    common_fields,
    read_body,
    read_object,
    read_stream_options,
    request_turn,
)

NEUTRAL_OF_RESPONSES: Mapping[str, tuple[Any, ...]] = {
    **{name: NEUTRAL[name] for name in ("tools", "tool_choice", "parallel_tool_calls", "top_logprobs")},
    "service_tier": NEUTRAL["service_tier"],
    # True is what OpenAI takes it for without the field; here nothing is ever kept, as the reply says.
    "store": (False,),
    "background": (False,),
    "include": ([],),
    "truncation": ("disabled",),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "reasoning": ({}, {"effort": "none"}),
    "max_tool_calls": (),
}


OPENAI_FORMS = frozenset({TEXT, OBJECT, SCHEMA})


class InputText(Struct, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    """A piece of what the user says."""

    text: str


class OutputText(Struct, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    """A piece of what was answered before."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] | None = None


class InputImage(Struct, forbid_unknown_fields=True, tag_field="type", tag="input_image"):
    """A picture."""

    image_url: str
    detail: str = "auto"
    file_id: str | None = None


class InputItem(Struct, forbid_unknown_fields=True):
    """One message of an input."""

    role: str
    content: str | list[InputText | OutputText | InputImage]
    type: str = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FlatFormat(Struct, forbid_unknown_fields=True):
    """`text.format`: as `ResponseFormat`, with the schema's fields beside its type."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None
    regex: str | None = None


class TextOptions(Struct, forbid_unknown_fields=True):
    """The field `text`."""

    format: FlatFormat | None = None
    verbosity: str | None = None


class ResponsesBody(Struct, forbid_unknown_fields=True):
    """The body of /v1/responses, without what is neutral."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    vsd: OwnOptions | None = None


def read_responses_request(data: bytes) -> CompletionRequest:
    """Return the question in a body of /v1/responses. Raises ApiError."""
    raw = read_object(data)
    read_stream_options(raw)
    body = read_body(raw, ResponsesBody, NEUTRAL_OF_RESPONSES)
    turns = []
    if body.instructions is not None:
        turns.append(request_turn("", "system", body.instructions, content="instructions"))
    if isinstance(body.input, str):
        turns.append(request_turn("", "user", body.input, content="input"))
    else:
        turns += [_item_turn(item, f"input[{at}]") for at, item in enumerate(body.input)]
    text = body.text or TextOptions()
    if text.verbosity not in (None, "medium"):
        raise unsupported("text.verbosity")
    found = text.format or FlatFormat(TEXT)
    of_schema = {name: getattr(found, name) for name in ("name", "schema", "strict", "description")}
    check_form_fields("text.format", found.type, of_schema, found.regex)
    form, pattern = answer_form("text.format", found.type, found.schema, found.regex)
    return CompletionRequest(
        model=body.model,
        turns=tuple(turns),
        form=form,
        pattern=pattern,
        description=answer_description("text.format", found.description),
        include_usage=True,
        echo=_echo(raw, body, found),
        **common_fields(body, body.max_output_tokens),
    )


def _echo(raw: Mapping[str, Any], body: ResponsesBody, form: FlatFormat) -> ResponseEcho:
    """Return what the reply repeats. Raises ApiError for metadata beyond OpenAI's own bounds."""
    metadata = body.metadata or {}
    if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise wrong("metadata", "at most 16 pairs of 64 and 512 characters are wanted")
    for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        if len(getattr(body, name) or "") > MAX_NAME_CHARS:
            raise wrong(name, f"more than {MAX_NAME_CHARS} characters", "string_above_max_length")
    is_parallel, told = raw.get("parallel_tool_calls"), msgspec.to_builtins(form)
    return ResponseEcho(
        instructions=body.instructions,
        # Our own forms have no name in OpenAI's terms, and typed clients would stumble over one.
        format={k: v for k, v in told.items() if v is not None}
        if form.type in OPENAI_FORMS
        else {"type": TEXT},
        metadata=metadata,
        parallel_tool_calls=True if is_parallel is None else is_parallel,
        tool_choice=raw.get("tool_choice") or "auto",
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        prompt_cache_retention=body.prompt_cache_retention,
    )


def _item_turn(item: InputItem, where: str) -> RequestTurn:
    if item.type != "message":
        raise unsupported(f"{where}.type", f"{item.type[:40]!r}; known: message")
    if isinstance(item.content, str):
        return request_turn(where, item.role, item.content)
    texts = [part.text for part in item.content if not isinstance(part, InputImage)]
    pictures = [part for part in item.content if isinstance(part, InputImage)]
    for picture in pictures:
        if picture.file_id:
            raise unsupported(f"{where}.file_id")
        check_detail(f"{where}.content", picture.detail)
    return request_turn(where, item.role, "\n".join(texts), [picture.image_url for picture in pictures])
