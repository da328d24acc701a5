"""Answers as OpenAI's clients read them: whole, or delta by delta. Builds documents; sends nothing.

`ReplyState` follows one answer: which text is new, where a stop sequence ends it, and what it has used.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vlm_spec_decode.actions.parser import actions_until_error
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.trace import LinkUsage
from vlm_spec_decode.edge.engine import AnswerUpdate
from vlm_spec_decode.serve.openai_api.requests import ACTIONS, CompletionRequest
from vlm_spec_decode.serve.openai_api.service import RunningAnswer


@dataclass(slots=True)
class StopSequences:
    """Finds stop sequences in a text that grows, and holds back what may become one."""

    stops: Sequence[str]
    told: int = 0
    is_stopped: bool = False

    def feed(self, text: str, *, is_last: bool) -> str:
        """Return what may be told now of the whole `text` so far; nothing after a stop sequence."""
        if self.is_stopped:
            return ""
        reach = max((len(stop) for stop in self.stops), default=1) - 1
        since = max(0, self.told - reach)
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop, since)) >= 0]
        if found:
            # The one that is complete first: so it does not matter how the text came in deltas.
            self.is_stopped, end = True, max(self.told, min(found)[1])
        else:
            end = len(text) if is_last else len(text) - self._held(text)
        new, self.told = text[self.told : end], max(self.told, end)
        return new

    def _held(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop sequence."""
        lengths = (n for stop in self.stops for n in range(min(len(stop) - 1, len(text)), 0, -1)
                   if text.endswith(stop[:n]))  # fmt: skip
        return max(lengths, default=0)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one commit adds to what is told; `finish` with the last one: "stop" or "length"."""

    text: str
    finish: str | None = None


@dataclass(slots=True)
class ReplyState:
    """One answer as far as it is told. `model` is who answers, `fingerprint` what decides its tokens."""

    request: CompletionRequest
    model: str
    fingerprint: str
    number: str = field(default_factory=lambda: secrets.token_hex(12))
    created_s: int = field(default_factory=lambda: int(time.time()))
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    link: LinkUsage = field(default_factory=LinkUsage)
    _stop: StopSequences = field(init=False)

    def __post_init__(self) -> None:
        self._stop = StopSequences(self.request.stops)

    def add(self, update: AnswerUpdate, stop_ids: Sequence[int]) -> Delta:
        """Take one update; return what is new of the answer."""
        self.tokens += update.tokens
        self.link = update.usage
        new = self._stop.feed(update.text, is_last=update.result is not None)
        self.text += new
        finish = None
        if self._stop.is_stopped:
            finish = "stop"
        elif update.result is not None:
            tokens = update.result.tokens
            finish = "stop" if tokens and tokens[-1] in stop_ids else "length"
        return Delta(new, finish)

    def own(self, answer: RunningAnswer) -> dict[str, Any]:
        """Return our own fields of an answer."""
        assert answer.prepared is not None
        config = answer.prepared.config
        found: dict[str, Any] = {
            "verified": answer.is_verified,
            "strategy": config.strategy,
            "rule": config.params.rule,
            "seed": config.params.seed,
            "lossless": answer.is_verified and config.params.lossless,
        }
        if self.request.token_ids:
            found["token_ids"] = self.tokens
        if self.request.form == ACTIONS:
            actions, problem = actions_until_error(self.text)
            found |= {
                "actions": [format_action(action) for action in actions],
                "actions_error": problem or None,
            }
        return found

    def usage(self, answer: RunningAnswer) -> dict[str, Any]:
        """Return what a chat's answer has used, drafted and accepted tokens among it."""
        assert answer.prepared is not None
        drafted, accepted = self._drafts(answer)
        return {
            "prompt_tokens": answer.prepared.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": answer.prepared.prompt_tokens + len(self.tokens),
            "completion_tokens_details": {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": max(0, drafted - accepted),
                "reasoning_tokens": 0,
            },
            "vsd": self._counts(answer),
        }

    def usage_of_response(self, answer: RunningAnswer) -> dict[str, Any]:
        """Return the same under the names of /v1/responses."""
        assert answer.prepared is not None
        return {
            "input_tokens": answer.prepared.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": len(self.tokens),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prepared.prompt_tokens + len(self.tokens),
            "vsd": self._counts(answer),
        }

    def _counts(self, answer: RunningAnswer) -> dict[str, int]:
        drafted, accepted = self._drafts(answer)
        return {
            "drafted_tokens": drafted,
            "accepted_tokens": accepted,
            "target_passes": len(answer.rounds),
            "uplink_bytes": self.link.uplink_bytes,
            "downlink_bytes": self.link.downlink_bytes,
            "image_bytes": self.link.image_bytes,
        }

    @staticmethod
    def _drafts(answer: RunningAnswer) -> tuple[int, int]:
        rounds = answer.rounds
        return sum(each.drafted for each in rounds), sum(each.accepted for each in rounds)


# /v1/chat/completions --------------------------------------------------------------------------------


def completion(state: ReplyState, answer: RunningAnswer, finish: str) -> dict[str, Any]:
    """Return a whole answer."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": state.text,
        "refusal": None,
        "annotations": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {
        **_head(state, "chat.completion"),
        "choices": [choice],
        "usage": state.usage(answer),
        "vsd": state.own(answer),
    }


def chunk(state: ReplyState, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """Return one delta of a stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    found = {**_head(state, "chat.completion.chunk"), "choices": [choice]}
    return found | {"usage": None} if state.request.include_usage else found


def last_chunk(state: ReplyState, answer: RunningAnswer) -> dict[str, Any]:
    """Return the delta with what was used, which has no choice."""
    return {**_head(state, "chat.completion.chunk"), "choices": [], "usage": state.usage(answer)}


def _head(state: ReplyState, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{state.number}",
        "object": kind,
        "created": state.created_s,
        "model": state.model,
        "system_fingerprint": state.fingerprint,
    }


def chat_events(state: ReplyState, answer: RunningAnswer, delta: Delta, *, is_first: bool) -> Iterator[bytes]:
    """Yield the events of one delta; those of the first and the last one have more."""
    if is_first:
        yield _event(chunk(state, {"role": "assistant", "content": delta.text, "refusal": None}))
    elif delta.text:
        yield _event(chunk(state, {"content": delta.text}))
    if delta.finish is None:
        return
    yield _event({**chunk(state, {}, delta.finish), "vsd": state.own(answer)})
    if state.request.include_usage:
        yield _event(last_chunk(state, answer))
    yield b"data: [DONE]\n\n"


def _event(document: dict[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return b"%sdata: %s\n\n" % (head, msgspec.json.encode(document))


def error_event(body: dict[str, Any]) -> bytes:
    """Return the event of an error in the middle of a stream."""
    return _event(body)


# /v1/responses ---------------------------------------------------------------------------------------


def response(state: ReplyState, answer: RunningAnswer, finish: str | None) -> dict[str, Any]:
    """Return a response that is whole (`finish` says how it ended), or is only begun."""
    request, echo = state.request, state.request.echo
    config = answer.prepared.config if answer.prepared else None
    is_cut = finish == "length"
    status = "in_progress" if finish is None else "incomplete" if is_cut else "completed"
    return {
        "id": f"resp_{state.number}",
        "object": "response",
        "created_at": state.created_s,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": echo.instructions,
        "max_output_tokens": request.max_tokens,
        "max_tool_calls": None,
        "model": state.model,
        "output": [] if finish is None else [_message(state, "incomplete" if is_cut else "completed")],
        "parallel_tool_calls": echo.parallel_tool_calls,
        "previous_response_id": None,
        "prompt_cache_key": echo.prompt_cache_key,
        "prompt_cache_retention": echo.prompt_cache_retention,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": echo.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": config.params.temperature if config else None,
        "top_logprobs": 0,
        "top_p": request.top_p,
        "text": {"format": echo.format, "verbosity": "medium"},
        "tool_choice": echo.tool_choice,
        "tools": [],
        "truncation": "disabled",
        "user": echo.user,
        "metadata": echo.metadata,
        "usage": None if finish is None else state.usage_of_response(answer),
        "vsd": state.own(answer),
    }


def _message(state: ReplyState, status: str) -> dict[str, Any]:
    content = [] if status == "in_progress" else [_text_part(state.text)]
    return {
        "id": f"msg_{state.number}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@dataclass(slots=True)
class ResponseEvents:
    """Writes the events of one streamed response, numbered in order."""

    state: ReplyState
    answer: RunningAnswer
    _number: int = 0

    def of(self, delta: Delta, *, is_first: bool) -> Iterator[bytes]:
        """Yield the events of one delta; those of the first and the last one have more."""
        state, place = self.state, {"output_index": 0, "content_index": 0}
        item = {"item_id": f"msg_{state.number}"}
        if is_first:
            begun = response(state, self.answer, None)
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)
            message = _message(state, "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=message)
            yield self._event("response.content_part.added", **item, **place, part=_text_part(""))
        if delta.text:
            yield self._event("response.output_text.delta", **item, **place, delta=delta.text, logprobs=[])
        if delta.finish is None:
            return
        done = response(state, self.answer, delta.finish)
        yield self._event("response.output_text.done", **item, **place, text=state.text, logprobs=[])
        yield self._event("response.content_part.done", **item, **place, part=_text_part(state.text))
        yield self._event("response.output_item.done", output_index=0, item=done["output"][0])
        yield self._event(f"response.{done['status']}", response=done)

    def failed(self, body: dict[str, Any]) -> bytes:
        """Return the event of an error in the middle."""
        error = body["error"]
        return self._event("error", code=error["code"], message=error["message"], param=error["param"])

    def _event(self, kind: str, **fields: Any) -> bytes:
        found = _event({"type": kind, "sequence_number": self._number, **fields}, kind)
        self._number += 1
        return found
