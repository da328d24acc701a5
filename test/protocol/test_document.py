"""docs/protocol.md says what the messages are."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from vlm_spec_decode.protocol import messages

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_documents_table_is_the_messages() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (?:up|down) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    documented = {int(tag): (name, tuple(fields.split(", "))) for tag, name, fields in rows}
    defined = {}
    for kind in messages.AnyMessage.__args__:  # type: ignore[attr-defined]
        config = kind.__struct_config__
        defined[config.tag] = (kind.__name__, tuple(f.name for f in msgspec.structs.fields(kind)))
    assert documented == defined
