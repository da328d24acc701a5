"""Text as it comes in: from a command line, a topic or a file, where a byte may be no character."""

from __future__ import annotations


def is_text(text: str) -> bool:
    """Return whether `text` can be written as UTF-8.

    A byte of a command line that is not UTF-8 becomes half a surrogate pair in Python, and JSON and YAML can
    name one: tokenizers, ROS and files then raise.
    """
    return not text_problem(text)


def text_problem(text: str) -> str:
    """Return what is wrong with `text` and where, "" if it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        return f"{what} at character {error.start + 1} is not UTF-8"
    return ""
