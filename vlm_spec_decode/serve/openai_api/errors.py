"""What went wrong, in OpenAI's own words: status, body, and the headers that belong to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from vlm_spec_decode.core.errors import (
    ActionParseError,
    Cancelled,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudTimeout,
    EngineBusy,
    GrammarError,
    ImageError,
    InstructionError,
    ModelError,
    UsageError,
    VsdError,
)
from vlm_spec_decode.core.internal_error import describe_internal_error
from vlm_spec_decode.edge.client_protocol import OLD_CLOUD
from vlm_spec_decode.protocol.messages import TOO_MANY_ANSWERS
from vlm_spec_decode.serve.guard import FOREIGN, NO_KEY, STATUS, TOO_LARGE, TOO_SLOW

JSON = "application/json"
RETRY_S = 1.0
"""What a client that finds no room, or no cloud, is told to wait, where nothing better is known."""

INVALID, SERVER = "invalid_request_error", "server_error"

ASKED_WRONGLY = frozenset({"instruction", "image", "grammar", "no_draft", "unknown_strategy", OLD_CLOUD})
"""Reasons of a CloudRefused that another request can mend."""

GUARD_CODES = {
    NO_KEY: "invalid_api_key",
    FOREIGN: "foreign_origin",
    TOO_LARGE: "request_too_large",
    TOO_SLOW: "request_timeout",
}


RENAMED: Mapping[str, Mapping[str, str]] = {
    "/v1/responses": {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
        "image_url.url": "image_url",
    }
}
"""What fields of a chat are called in the bodies of other paths."""


class ApiError(Exception):
    """An answer that is an error. `code` is its stable name, `param` the field of the request at fault.

    `allow` names the methods that a path takes.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry_s: float | None = None,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_s = retry_s
        self.allow = allow

    def at(self, path: str) -> ApiError:
        """Return the error with the field's name in the bodies of a path."""
        for chats, own in RENAMED.get(path, {}).items():
            rest = (self.param or "").removeprefix(chats)
            if self.param != rest and rest[:1] in ("", ".", "["):
                text = str(self).replace(chats, own)
                renamed = ApiError(self.status, text, kind=self.kind, code=self.code, param=own + rest)
                renamed.retry_s, renamed.allow = self.retry_s, self.allow
                return renamed
        return self

    @property
    def body(self) -> dict[str, Any]:
        """The body, as OpenAI's clients read it."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return it as a response."""
        found = dict(headers or {})
        if self.retry_s is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_s)))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.allow:
            found["allow"] = self.allow
        return Response(msgspec.json.encode(self.body), self.status, found, JSON)


def refused(reason: str, text: str) -> Response:
    """Return the response to what `serve.guard.Guard` does not let through."""
    return ApiError(STATUS[reason], text, code=GUARD_CODES[reason]).response()


def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """Return the error of a field that cannot be used."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, why: str = "") -> ApiError:
    """Return the error of a parameter that would change the answer, and that nothing here obeys."""
    text = f"{param} is not supported by this server" + (f": {why}" if why else "")
    return ApiError(400, text, code="unsupported_parameter", param=param)


def busy(waiting: int, retry_s: float) -> ApiError:
    """Return the error of a request beyond those that may be under way."""
    text = f"{waiting} requests are under way, and no more may be; try again in {retry_s:.0f} s"
    return ApiError(429, text, kind="requests", code="rate_limit_exceeded", retry_s=retry_s)


def too_slow(seconds: float) -> ApiError:
    """Return the error of an answer that takes too long."""
    return ApiError(408, f"no whole answer within {seconds:g} s", kind="timeout", code="request_timeout")


def closing() -> ApiError:
    """Return the error of a request that the end of the server cuts off: its task is cancelled."""
    return _away("the server is shut down", "server_closing", RETRY_S)


def api_error(error: BaseException) -> ApiError:
    """Return what a client is told of an exception. What is not expected here is logged, and not shown."""
    match error:
        case ApiError():
            return error
        case CloudBusy():
            return _away(str(error), "cloud_busy", error.retry_after_s)
        case CloudRefused() if error.reason == TOO_MANY_ANSWERS:
            return ApiError(429, str(error), kind="requests", code="rate_limit_exceeded", retry_s=RETRY_S)
        case CloudRefused() if error.reason in ASKED_WRONGLY:
            return ApiError(400, f"the cloud refuses: {error.detail or error.reason}", code=error.reason)
        case CloudTimeout():
            return _away(str(error), "cloud_timeout", RETRY_S)
        case CloudError():
            return _away(str(error), "cloud_away", RETRY_S)
        case EngineBusy():
            return busy(1, RETRY_S)
        case Cancelled():
            return _away("the server ended the answer", "cancelled", RETRY_S)
        case ImageError():
            return wrong("messages", str(error), "invalid_image")
        case GrammarError():
            return wrong("response_format", str(error), "invalid_grammar")
        case InstructionError():
            return wrong("messages", str(error), "unsupported_messages")
        case UsageError() if not isinstance(error, ModelError):
            return ApiError(400, str(error), code="invalid_value")
        case ActionParseError():
            return ApiError(500, str(error), kind=SERVER, code="no_action")
    # Its text may name folders and settings, which are for who runs the server.
    told = error if isinstance(error, VsdError) else describe_internal_error(error)
    logging.getLogger(__name__).error("a request has failed: %s", told)
    return ApiError(500, "the server has failed at this request", kind=SERVER, code="internal_error")


def _away(text: str, code: str, retry_s: float) -> ApiError:
    return ApiError(503, text, kind=SERVER, code=code, retry_s=retry_s)
