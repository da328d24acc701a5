"""The one prompt template, for draft and target, tiny and real models alike.

One user turn: the image, then the instruction and the actions already carried out for it. A checkpoint's
own chat template renders it. What an operator types can never become part of the template: characters
that templates are made of are replaced.
"""

from __future__ import annotations

import hashlib
from typing import Any

from vlm_spec_decode.core.types import Observation

MAX_HISTORY = 8
"""Actions told; older ones are dropped so that a long mission's prompt stays short."""

DONE_MARK = " . done : "

_ESCAPES = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "{": "(", "}": ")", ":": ","})


def escape(instruction: str) -> str:
    """Return the instruction on one line, without characters that could open a template's marks."""
    return " ".join(instruction.translate(_ESCAPES).split())


def prompt_text(observation: Observation) -> str:
    """Return what the user says: the instruction, and what has been done for it."""
    history = observation.history[-MAX_HISTORY:]
    return escape(observation.instruction) + (DONE_MARK + " ".join(history) if history else "")


def messages(observation: Observation) -> list[dict[str, Any]]:
    """Return chat messages for `apply_chat_template`: one user turn, the image (if any) first."""
    image = [{"type": "image"}] if observation.image is not None else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": prompt_text(observation)}]}]


def prompt_digest(chat_template: str) -> str:
    """Return a short hash of everything that shapes a prompt; compared in the handshake."""
    spec = repr((MAX_HISTORY, DONE_MARK, sorted(_ESCAPES.items()), chat_template))
    return hashlib.sha256(spec.encode()).hexdigest()[:16]
