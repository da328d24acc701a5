"""The one prompt template, for draft and target, tiny and real models alike.

One user turn: the image, then the instruction and the actions already carried out for it. A model that was
not trained on the action language gets it explained first, with examples. A checkpoint's own chat template
renders the turns. What an operator types can never become part of the template: characters that templates
are made of are replaced.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import Any

from vlm_spec_decode.core.types import Chat, Image, Observation
from vlm_spec_decode.models.amounts import with_amounts

MAX_HISTORY = 8
"""Actions told; older ones are dropped so that a long mission's prompt stays short."""

DONE_MARK = " . done : "

CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} user : {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} robot :{% endif %}"
)
"""Image first, so that its part of the KV cache can be shared by everything said about one frame.
Of the tiny models, written beside their weights."""

TEXT_TEMPLATE = (
    "{% for message in messages %} user : {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} robot :{% endif %}"
)
"""The same for the tiny language-only models."""

EXAMPLES = (
    ("go to the red chair", (), "i see a red chair left . turn(25) forward(1.5)"),
    ("wave at me", ("hello()",), "i have waved . done()"),
)
"""Instruction, actions carried out before, answer."""

RULES = """\
You steer a four-legged robot by its front camera. Answer with one short sentence about what you see, \
then with actions, each written as a call. The actions:
forward(m) walk straight, negative is backwards
strafe(m) step sideways, left is positive
turn(deg) turn on the spot, left is positive
look(pitch_deg, yaw_deg) tilt the body, down and left are positive
wait(s) stand still
stop() stand_up() stand_down() sit() rise() hello() stretch()
done() the instruction is carried out, or it is a question, impossible or unsafe
ask() alone, after a question to the operator: what is meant is not clear
Rules: use plain numbers. At most 3 m and 180 degrees a call. Write nothing after the actions. Walk only \
part of a long way: you will be asked again with a new picture. If what is wanted is not in view, turn(60). \
If you must not or cannot do it, say so and end in done(). When what has been done carries the instruction \
out, end in done()."""
"""What an untrained model is told; a test holds it to the table of actions."""

_ESCAPES = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "{": "(", "}": ")", ":": ","})


class PromptStyle(str, Enum):
    """How a model is told an instruction.

    One trained on the action language is told it as it is (`BARE`), or with the amounts that it names read
    first (`AMOUNTS`, see `models.amounts`); another one has the language explained (`ACTIONS`).
    """

    BARE = "bare"
    AMOUNTS = "amounts"
    ACTIONS = "actions"


def escape(instruction: str) -> str:
    """Return the instruction on one line, without characters that could open a template's marks."""
    return " ".join(instruction.translate(_ESCAPES).split())


def with_scene(scene: str, instruction: str) -> str:
    """Return the instruction of a language-only pair: what there is to see, in words, then what to do.

    `scene` lists things, such as "a red chair 25 degrees left at 2.0 m , a blue box ahead at 1.4 m".
    """
    return f"you see {scene.strip()} . {instruction.strip()}"


def prompt_text(observation: Observation, style: PromptStyle = PromptStyle.BARE) -> str:
    """Return what the user says: the instruction, and what has been done for it."""
    history, said = observation.history[-MAX_HISTORY:], escape(observation.instruction)
    if style is PromptStyle.AMOUNTS:
        said = with_amounts(said)
    return said + (DONE_MARK + " ".join(history) if history else "")


def system_text() -> str:
    """Return the rules and the examples, for a model that was not trained on them."""
    lines = [RULES]
    for instruction, history, answer in EXAMPLES:
        lines.append(f"Example: {prompt_text(Observation(None, instruction, history))}\nAnswer: {answer}")
    return "\n".join(lines)


def messages(
    observation: Observation, style: PromptStyle = PromptStyle.BARE, *, system_turn: bool = True
) -> list[dict[str, Any]]:
    """Return chat messages for `apply_chat_template`: the user's turn, the image (if any) first.

    With `PromptStyle.ACTIONS` the system's turn comes before it, or its text before the instruction for a
    chat template that knows no system. A chat is told as it is, in any style.
    """
    if observation.chat is not None:
        return chat_messages(observation.chat)
    content: list[dict[str, Any]] = [{"type": "image"}] if observation.image is not None else []
    text, turns = prompt_text(observation, style), []
    if style is PromptStyle.ACTIONS and system_turn:
        turns.append({"role": "system", "content": [{"type": "text", "text": system_text()}]})
    elif style is PromptStyle.ACTIONS:
        text = f"{system_text()}\nInstruction: {text}"
    return [*turns, {"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def chat_messages(chat: Chat) -> list[dict[str, Any]]:
    """Return the turns of a chat for `apply_chat_template`; the picture stands before its turn's text."""
    found = []
    for turn in chat.turns:
        picture = [{"type": "image"}] if turn.sees else []
        found.append({"role": turn.role, "content": [*picture, {"type": "text", "text": escape(turn.text)}]})
    return found


def prompt_digest(style: PromptStyle) -> str:
    """Return a short hash of what a prompt says; compared in the handshake.

    The marks around it are each checkpoint's own: a draft may be of another family than its target, see
    more coarsely, or not at all.
    """
    done = tuple(f"forward(0.{i})" for i in range(1, 13))
    sample = Observation(Image(b"", 1, 1), "go 2 feet to the <red> [chair] {now}: slowly\n", done)
    return hashlib.sha256(repr(messages(sample, style)).encode()).hexdigest()[:16]
