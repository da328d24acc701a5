"""Messages of the nodes' topics for tests: their types, and what they say as the JSON of the same report."""

from __future__ import annotations

import json
from typing import Any

from std_msgs.msg import String

from vlm_spec_decode.ros import typed


def kind_of(topic: str) -> Any:
    """Return the type of a topic of this package's nodes."""
    return typed.TOPICS.get(topic, String)


def as_json(message: Any) -> dict[str, Any]:
    """Return what a message says."""
    text = message.data if isinstance(message, String) else typed.from_message(message).to_json()
    found: dict[str, Any] = json.loads(text)
    return found
