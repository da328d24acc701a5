"""What the real `openai` client is told, request by request: streams, pictures, forms, errors, cancels.

For a server with `chat_pair`, the key `KEY`, at most 1 MiB of body and half a megapixel of picture.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import openai
from PIL import Image as PilImage

KEY = "a-key-of-the-tests-0123456789"
MODEL = "target"
Call = Callable[["Asker"], None]


def data_url(kind: str = "JPEG", size: tuple[int, int] = (64, 48)) -> str:
    """Return a picture as a data URL."""
    out = io.BytesIO()
    picture = PilImage.linear_gradient("L") if max(size) > 500 else PilImage.effect_noise(size, 60)
    picture.resize(size).convert("RGB").save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


@dataclass(frozen=True)
class Asker:
    """A client, and requests with what most of them share."""

    client: openai.OpenAI

    def chat(self, text: str = "what is it", picture: str = "", **more: Any) -> Any:
        fields = {"model": MODEL, "messages": [user(text, picture)], "max_tokens": 12, **more}
        return self.client.chat.completions.create(**fields)

    def told(self, **more: Any) -> str:
        return str(self.chat(**more).choices[0].message.content)

    def stream(self, **more: Any) -> list[Any]:
        return list(self.chat(stream=True, **more))

    def respond(self, **more: Any) -> Any:
        fields = {"model": MODEL, "input": "what is it", "max_output_tokens": 12, **more}
        return self.client.responses.create(**fields)


def user(text: str, picture: str = "", **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture:
        parts.insert(0, {"type": "image_url", "image_url": {"url": picture, **more}})
    return {"role": "user", "content": parts if picture else text}


def text_of(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "metres": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["colour", "metres"],
    "additionalProperties": False,
}


def form(kind: str, **more: Any) -> dict[str, Any]:
    return {"extra_body": {"response_format": {"type": kind, **more}}}


def _plain(ask: Asker) -> None:
    found = ask.chat()
    (choice,) = found.choices
    assert (found.object, choice.finish_reason, choice.message.role) == (
        "chat.completion",
        "length",
        "assistant",
    )
    assert found.usage.completion_tokens == 12
    assert found.usage.total_tokens == 12 + found.usage.prompt_tokens
    assert found.vsd["verified"] is True


def _usage(ask: Asker) -> None:
    used = ask.chat(extra_body={"vsd": {"strategy": "speculative"}}).usage
    details = used.completion_tokens_details
    drafted = details.accepted_prediction_tokens + details.rejected_prediction_tokens
    assert drafted == used.vsd["drafted_tokens"] > 0


def _greedy_is_stable(ask: Asker) -> None:
    assert ask.told(temperature=0) == ask.told(temperature=0, seed=9)


def _seeds(ask: Asker) -> None:
    one, again, other = (ask.told(temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def _no_seed(ask: Asker) -> None:
    found = [ask.chat(temperature=1.5) for _ in range(3)]
    assert len({each.vsd["seed"] for each in found}) == 3


def _top_p(ask: Asker) -> None:
    assert ask.told(temperature=1.0, top_p=1e-9, seed=5) == ask.told(temperature=0), (
        "the best token alone is left"
    )


def _top_k(ask: Asker) -> None:
    assert ask.told(temperature=1.0, seed=5, extra_body={"top_k": 1}) == ask.told(temperature=0)


def _lengths(ask: Asker) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        fields = {"model": MODEL, "messages": [user("hello")], name: 5}
        assert ask.client.chat.completions.create(**fields).usage.completion_tokens == 5  # type: ignore[call-overload]


def _stop(ask: Asker) -> None:
    whole = ask.told(max_tokens=30)
    mark = whole[8:10]
    found = ask.chat(max_tokens=30, stop=[mark, "never said"]).choices[0]
    assert (found.message.content, found.finish_reason) == (whole[: whole.index(mark)], "stop")


def _stop_in_a_stream(ask: Asker) -> None:
    whole = ask.told(max_tokens=30)
    mark = whole[8:11]
    chunks = ask.stream(max_tokens=30, stop=mark)
    assert text_of(chunks) == whole[: whole.index(mark)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def _stream(ask: Asker) -> None:
    chunks = ask.stream(max_tokens=30)
    assert text_of(chunks) == ask.told(max_tokens=30)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {c.id for c in chunks} == {chunks[0].id}
    assert all(c.object == "chat.completion.chunk" for c in chunks)


def _stream_usage(ask: Asker) -> None:
    *chunks, last = ask.stream(stream_options={"include_usage": True})
    assert (last.choices, last.usage.completion_tokens) == ([], 12)
    assert all(c.usage is None for c in chunks)
    assert all(c.usage is None for c in ask.stream(stream_options={"include_usage": False}))


def _stream_helper(ask: Asker) -> None:
    fields: Any = {"model": MODEL, "messages": [user("what is it")], **form("regex", regex="(yes|no), sir")}
    with ask.client.chat.completions.stream(**fields) as stream:
        for _event in stream:
            pass
        assert re.fullmatch("(yes|no), sir", str(stream.get_final_completion().choices[0].message.content))


def _leaves(ask: Asker) -> None:
    """A client that leaves in the middle: the next request is served."""
    stream = ask.chat(stream=True, max_tokens=400)
    next(iter(stream))
    stream.close()
    assert ask.chat().usage.completion_tokens == 12


def _picture(kind: str) -> Call:
    def check(ask: Asker) -> None:
        assert ask.chat(picture=data_url(kind)).usage.completion_tokens == 12

    return check


def _picture_counts(ask: Asker) -> None:
    assert ask.told(picture=data_url(size=(64, 48))) != ask.told()


def _picture_before(ask: Asker) -> None:
    """A picture of an earlier turn stays part of the chat."""
    later = [{"role": "assistant", "content": "a box"}, user("red?")]
    seen, blind = ([user("what is it", url), *later] for url in (data_url(), ""))
    assert ask.told(messages=seen) != ask.told(messages=blind)


def _picture_alone(ask: Asker) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_url()}}]
    found = ask.chat(messages=[{"role": "user", "content": parts}])
    assert found.usage.completion_tokens == 12
    items: Any = [
        {"role": "user", "content": [{"type": "input_image", "image_url": data_url(), "detail": "auto"}]}
    ]
    assert ask.respond(input=items).output_text


def _refusal(ask: Asker) -> None:
    """What the assistant has refused before is part of the chat, as any answer of it."""
    chats = [
        [user("what is it"), {"role": "assistant", "content": None, "refusal": "not now"}, user("red?")],
        [user("what is it"), {"role": "assistant", "content": "not now"}, user("red?")],
        [user("what is it"), {"role": "assistant", "content": "a box"}, user("red?")],
    ]
    refused, said, other = (ask.told(messages=chat) for chat in chats)
    assert refused == said != other


def _description(ask: Asker) -> None:
    """The description of a schema is told to the model: the prompt is longer, the answer perhaps another."""
    wanted = {"name": "seen", "schema": SCHEMA}
    plain, told = (
        ask.chat(response_format={"type": "json_schema", "json_schema": wanted | more}, max_tokens=100)
        for more in ({}, {"description": "the colour of the box and how far it is"})
    )
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens
    told_so = ask.chat(
        text="what is it\nthe colour of the box and how far it is",
        response_format={"type": "json_schema", "json_schema": wanted},
        max_tokens=100,
    )
    assert told.choices[0].message.content == told_so.choices[0].message.content


def _detail(ask: Asker) -> None:
    url = data_url()
    assert ask.told(messages=[user("a", url, detail="high")]) == ask.told(
        messages=[user("a", url, detail="auto")]
    )


def _system(ask: Asker) -> None:
    with_system = [{"role": "system", "content": "answer in one word"}, user("what is it")]
    assert ask.told(messages=with_system) != ask.told()
    as_developer = [{"role": "developer", "content": "answer in one word"}, user("what is it")]
    assert ask.told(messages=as_developer) == ask.told(messages=with_system)


def _turns(ask: Asker) -> None:
    turns = [user("what is it"), {"role": "assistant", "content": "a box"}, user("red?")]
    assert ask.told(messages=turns) not in {ask.told(), ask.told(text="red?")}


def _schema(ask: Asker) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA, "strict": True}}
    for temperature in (0, 1):
        found = ask.chat(response_format=wanted, max_tokens=100, temperature=temperature, seed=3).choices[0]
        read = json.loads(str(found.message.content))
        assert found.finish_reason == "stop"
        assert set(read) == {"colour", "metres"}
        assert read["colour"] in ("red", "blue")
        assert 0 <= read["metres"] < 100


def _schema_stream(ask: Asker) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA}}
    assert set(json.loads(text_of(ask.stream(response_format=wanted, max_tokens=100)))) == {
        "colour",
        "metres",
    }


def _object(ask: Asker) -> None:
    assert ask.told(response_format={"type": "json_object"}, max_tokens=40).startswith("{")


def _regex(ask: Asker) -> None:
    for seed in range(3):
        found = ask.told(temperature=1, seed=seed, **form("regex", regex="(yes|no), [0-9]{2} m"))
        assert re.fullmatch("(yes|no), [0-9]{2} m", found)


def _actions(ask: Asker) -> None:
    found = ask.chat(picture=data_url(), **form("robot_actions"))
    assert isinstance(found.vsd["actions"], list)


def _strategies(name: str) -> Call:
    def check(ask: Asker) -> None:
        found = ask.chat(max_tokens=10, temperature=1, seed=3, extra_body={"vsd": {"strategy": name}})
        plain = ask.chat(
            max_tokens=10, temperature=1, seed=3, extra_body={"vsd": {"strategy": "autoregressive"}}
        )
        assert found.vsd["strategy"] == name
        assert found.choices[0].message.content == plain.choices[0].message.content

    return check


def _rejection(ask: Asker) -> None:
    assert (
        ask.chat(temperature=1, seed=3, extra_body={"vsd": {"rule": "rejection"}}).vsd["rule"] == "rejection"
    )


def _models(ask: Asker) -> None:
    assert [model.id for model in ask.client.models.list()] == [MODEL, "robot-vlm"]
    assert ask.client.models.retrieve(MODEL).owned_by == "vlm_spec_decode"
    assert ask.chat(model="robot-vlm").model == MODEL


def _harmless(ask: Asker) -> None:
    more: dict[str, Any] = {
        "user": "me",
        "metadata": {"a": "b"},
        "n": 1,
        "presence_penalty": 0,
        "logprobs": False,
    }
    assert ask.told(**more, tools=[], logit_bias={}, store=False) == ask.told()


def _responses(ask: Asker) -> None:
    found = ask.respond()
    assert (found.object, found.status, found.incomplete_details.reason) == (
        "response", "incomplete", "max_output_tokens",
    )  # fmt: skip
    assert found.output_text == ask.told()
    assert found.usage.output_tokens == 12


def _responses_stream(ask: Asker) -> None:
    events = list(ask.respond(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.incomplete"]
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert told == ask.told() == events[-1].response.output_text


def _responses_helper(ask: Asker) -> None:
    own = {"text": {"format": {"type": "regex", "regex": "(yes|no), sir"}}}
    with ask.client.responses.stream(model=MODEL, input="what is it", extra_body=own) as stream:
        for _event in stream:
            pass
        assert re.fullmatch("(yes|no), sir", stream.get_final_response().output_text)


def _responses_turns(ask: Asker) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "what is it"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a box"}]},
        {"role": "user", "content": "red?"},
    ]
    chat = [
        {"role": "system", "content": "short"},
        user("what is it"),
        {"role": "assistant", "content": "a box"},
    ]
    found = ask.respond(input=items, instructions="short")
    assert found.output_text == ask.told(messages=[*chat, user("red?")])


def _responses_picture(ask: Asker) -> None:
    url = data_url("PNG")
    parts: Any = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": "it"},
    ]
    assert ask.respond(input=[{"role": "user", "content": parts}]).output_text == ask.told(
        text="it", picture=url
    )


def _responses_echo(ask: Asker) -> None:
    form: Any = {"type": "json_schema", "name": "seen", "schema": SCHEMA, "strict": False}
    form["description"] = "the box"
    given: dict[str, Any] = {"instructions": "short", "temperature": 0.5, "top_p": 0.9, "user": "me"}
    given |= {"metadata": {"robot": "a"}, "prompt_cache_key": "k", "max_output_tokens": 100}
    given |= {"parallel_tool_calls": False, "tool_choice": "none"}
    found = ask.respond(**given, text={"format": form}, extra_body={"seed": 1})
    assert {name: getattr(found, name) for name in given} == given
    assert found.text.format.to_dict() == form
    plain = ask.respond(input=[{"role": "system", "content": "short"}, {"role": "user", "content": "a"}])
    assert (plain.instructions, plain.metadata, plain.tool_choice) == (None, {}, "auto")
    assert (plain.text.format.type, plain.parallel_tool_calls, plain.top_p) == ("text", True, 1.0)


def _responses_schema(ask: Asker) -> None:
    wanted: Any = {"format": {"type": "json_schema", "name": "seen", "schema": SCHEMA, "strict": True}}
    found = ask.respond(text=wanted, max_output_tokens=100)
    assert found.status == "completed"
    assert set(json.loads(found.output_text)) == {"colour", "metres"}


GOOD: Mapping[str, Call] = {
    "a plain answer": _plain,
    "drafted and accepted tokens": _usage,
    "greedy ignores the seed": _greedy_is_stable,
    "seeds": _seeds,
    "no seed": _no_seed,
    "top_p": _top_p,
    "top_k": _top_k,
    "both names of the length": _lengths,
    "stop": _stop,
    "stop in a stream": _stop_in_a_stream,
    "stream": _stream,
    "usage of a stream": _stream_usage,
    "the client's own stream": _stream_helper,
    "a client that leaves": _leaves,
    "a JPEG": _picture("JPEG"),
    "a PNG": _picture("PNG"),
    "a WebP": _picture("WEBP"),
    "a picture counts": _picture_counts,
    "a picture of an earlier turn": _picture_before,
    "a picture alone": _picture_alone,
    "detail": _detail,
    "a refusal before": _refusal,
    "a schema's description": _description,
    "system and developer": _system,
    "several turns": _turns,
    "a JSON schema": _schema,
    "a JSON schema in a stream": _schema_stream,
    "a JSON object": _object,
    "a regular expression": _regex,
    "robot actions": _actions,
    "speculative": _strategies("speculative"),
    "pipelined": _strategies("pipelined"),
    "hybrid": _strategies("hybrid"),
    "rejection": _rejection,
    "models": _models,
    "what asks for nothing": _harmless,
    "responses": _responses,
    "responses, streamed": _responses_stream,
    "responses, the client's own stream": _responses_helper,
    "responses of several turns": _responses_turns,
    "responses with a picture": _responses_picture,
    "responses with a schema": _responses_schema,
    "settings that a response repeats": _responses_echo,
}

TOOL = {"type": "function", "function": {"name": "walk", "parameters": {"type": "object"}}}
UNSUPPORTED = "unsupported_parameter"

BAD: Mapping[str, tuple[dict[str, Any], int, str | None, str | None]] = {
    "n": ({"n": 2}, 400, UNSUPPORTED, "n"),
    "tools": ({"tools": [TOOL]}, 400, UNSUPPORTED, "tools"),
    "tool_choice": ({"tools": [], "tool_choice": "required"}, 400, UNSUPPORTED, "tool_choice"),
    "logprobs": ({"logprobs": True}, 400, UNSUPPORTED, "logprobs"),
    "penalty": ({"presence_penalty": 0.5}, 400, UNSUPPORTED, "presence_penalty"),
    "logit_bias": ({"logit_bias": {"5": 1}}, 400, UNSUPPORTED, "logit_bias"),
    "effort": ({"reasoning_effort": "high"}, 400, UNSUPPORTED, "reasoning_effort"),
    "audio": ({"modalities": ["text", "audio"]}, 400, UNSUPPORTED, "modalities"),
    "prediction": ({"prediction": {"type": "content", "content": "x"}}, 400, UNSUPPORTED, "prediction"),
    "store": ({"store": True}, 400, UNSUPPORTED, "store"),
    "unknown field": ({"extra_body": {"temperatur": 1}}, 400, "unknown_parameter", "temperatur"),
    "hot": ({"temperature": 2.5}, 400, "invalid_value", "temperature"),
    "top_p 0": ({"top_p": 0}, 400, "invalid_value", "top_p"),
    "a text for a number": ({"extra_body": {"seed": "one"}}, 400, "invalid_type", "seed"),
    "no tokens": ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    "too many tokens": ({"max_tokens": 100_000}, 400, "invalid_value", "max_tokens"),
    "two lengths": ({"max_completion_tokens": 3}, 400, "invalid_value", "max_tokens"),
    "five stops": ({"stop": list("abcde")}, 400, "invalid_value", "stop"),
    "an empty stop": ({"stop": ""}, 400, "invalid_value", "stop"),
    "options without a stream": (
        {"stream_options": {"include_usage": True}},
        400,
        "invalid_value",
        "stream_options",
    ),
    "another model": ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
    "no messages": ({"messages": []}, 400, "invalid_value", "messages"),
    "the last word": (
        {"messages": [{"role": "assistant", "content": "a"}]},
        400,
        "invalid_value",
        "messages",
    ),
    "a tool's message": (
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]},
        400,
        UNSUPPORTED,
        "messages[0].tool_call_id",
    ),
    "an empty text": ({"messages": [user(" ")]}, 400, "invalid_value", "messages[0].content"),
    "a long chat": ({"messages": [user("a" * 60_000)]}, 400, "string_above_max_length", "messages"),
    "two pictures": (
        {"messages": [user("a", data_url()), {"role": "assistant", "content": "b"}, user("c", data_url())]},
        400,
        UNSUPPORTED,
        "messages",
    ),
    "low detail": (
        {"messages": [user("a", data_url(), detail="low")]},
        400,
        UNSUPPORTED,
        "messages[0].content",
    ),
    "a GIF": ({"picture": data_url("GIF")}, 400, "invalid_image_format", "image_url.url"),
    "no picture": ({"picture": "data:image/png;base64,AAAA"}, 400, "invalid_image", "image_url.url"),
    "no base64": ({"picture": "data:image/png;base64,!"}, 400, "invalid_image_url", "image_url.url"),
    "a file": ({"picture": "file:///etc/passwd"}, 400, "invalid_image_url", "image_url.url"),
    "a remote URL": ({"picture": "http://127.0.0.1:1/a.png"}, 400, "url_not_allowed", "image_url.url"),
    "many pixels": ({"picture": data_url("PNG", (1000, 900))}, 413, "image_too_large", "image_url.url"),
    "a large body": ({"messages": [user("a" * 1_200_000)]}, 413, "request_too_large", None),
    "an unknown form": (form("grammar"), 400, UNSUPPORTED, "response_format.type"),
    "a schema that is none": (
        form("json_schema", json_schema={"name": "x", "schema": {"type": "nonsense"}}),
        400,
        "invalid_grammar",
        "response_format",
    ),
    "no schema": (form("json_schema"), 400, "invalid_value", "response_format.json_schema"),
    "a regex that is none": (form("regex", regex="(("), 400, "invalid_grammar", "response_format"),
    "actions of a chat": (
        {"messages": [{"role": "system", "content": "a"}, user("go")], **form("robot_actions")},
        400,
        UNSUPPORTED,
        "messages",
    ),
    "actions without a picture": (form("robot_actions"), 400, "invalid_value", "messages"),
    "a history of a chat": (
        {"extra_body": {"vsd": {"history": ["sit()"]}}},
        400,
        "invalid_value",
        "vsd.history",
    ),
    "a refusal beside a content": (
        {"messages": [{"role": "assistant", "content": "a", "refusal": "b"}, user("a")]},
        400,
        UNSUPPORTED,
        "messages[0].refusal",
    ),
    "the user's refusal": (
        {"messages": [{"role": "user", "content": None, "refusal": "b"}]},
        400,
        UNSUPPORTED,
        "messages[0].refusal",
    ),
    "a schema for a text": (
        form("text", json_schema={"name": "a", "schema": {}}),
        400,
        "invalid_value",
        "response_format.json_schema",
    ),
    "a regex for a schema": (
        form("json_schema", json_schema={"name": "a", "schema": {}}, regex="a"),
        400,
        "invalid_value",
        "response_format.regex",
    ),
    "actions of a picture alone": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url()}}]}
            ],
            **form("robot_actions"),
        },
        400,
        "unsupported_messages",
        "messages",
    ),
    "an unknown strategy": (
        {"extra_body": {"vsd": {"strategy": "luck"}}},
        400,
        "invalid_value",
        "vsd.strategy",
    ),
}
"""Arguments of a chat, and the status, code and param of the error."""

BAD_RESPONSES: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "responses after another": ({"previous_response_id": "resp_1"}, UNSUPPORTED, "previous_response_id"),
    "responses in the background": ({"background": True}, UNSUPPORTED, "background"),
    "responses with tools": ({"tools": [{"type": "web_search"}]}, UNSUPPORTED, "tools"),
    "responses with reasoning": ({"reasoning": {"effort": "high"}}, UNSUPPORTED, "reasoning"),
    "responses: too many tokens": ({"max_output_tokens": 100_000}, "invalid_value", "max_output_tokens"),
    "responses: the last word": (
        {"input": [{"role": "assistant", "content": "a"}]},
        "invalid_value",
        "input",
    ),
    "responses: an empty input": ({"input": " "}, "invalid_value", "input"),
    "responses: empty instructions": ({"instructions": ""}, "invalid_value", "instructions"),
    "responses: an empty message": (
        {"input": [{"role": "user", "content": ""}]},
        "invalid_value",
        "input[0].content",
    ),
    "responses: a schema that is none": (
        {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nonsense"}}}},
        "invalid_grammar",
        "text.format",
    ),
    "responses: an unknown form": ({"text": {"format": {"type": "poem"}}}, UNSUPPORTED, "text.format.type"),
    "responses: a schema for a text": (
        {"text": {"format": {"type": "text", "schema": {}}}},
        "invalid_value",
        "text.format.schema",
    ),
    "responses: a remote URL": (
        {
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:1/a"}]}
            ]
        },
        "url_not_allowed",
        "image_url",
    ),
    "responses: long metadata": ({"metadata": {"a": "b" * 513}}, "invalid_value", "metadata"),
}


def error_of(call: Callable[[], Any]) -> openai.APIStatusError:
    """Return the error with which a call is refused."""
    try:
        call()
    except openai.APIStatusError as error:
        return error
    raise AssertionError("this was answered")


def _refused(ask: Asker, given: dict[str, Any], status: int, code: str | None, param: str | None) -> None:
    for streams in (False, True) if "stream_options" not in given else (False,):
        error = error_of(lambda streams=streams: ask.chat(**given, stream=streams))  # type: ignore[misc]
        body: Any = error.body
        assert (error.status_code, body["code"], body["param"]) == (status, code, param), body
        assert body["message"]


def _refused_response(ask: Asker, given: dict[str, Any], code: str, param: str) -> None:
    error = error_of(lambda: ask.respond(**given))
    assert (error.status_code, error.code, error.param) == (400, code, param)


def _wrong_key(ask: Asker) -> None:
    for key in ("wrong-key-0123456789", KEY[:-1], KEY + "0"):
        other = Asker(ask.client.with_options(api_key=key))
        for call in (other.chat, other.respond, other.client.models.list):
            error = error_of(call)
            assert (error.status_code, error.code) == (401, "invalid_api_key")


def cases() -> Iterator[tuple[str, Call]]:
    """Yield every request's name, and what makes and checks it."""
    yield from GOOD.items()
    for name, bad in BAD.items():
        yield f"refused: {name}", lambda ask, bad=bad: _refused(ask, *bad)
    for name, given in BAD_RESPONSES.items():
        yield f"refused: {name}", lambda ask, given=given: _refused_response(ask, *given)
    yield "refused: a wrong key", _wrong_key
