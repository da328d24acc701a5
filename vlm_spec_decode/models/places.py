"""Where a checkpoint is: in this package, in a folder, or on the Hub.

What cannot be there is told by its name alone, before any library is imported. A Hub id is `NAME` or
`OWNER/NAME`; whatever else is no folder here is none. Knows no options and no weights.
"""

from __future__ import annotations

from pathlib import Path

from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.core.errors import ModelNotFound

SHIPPED_MARK = "shipped:"
"""In front of the name of a checkpoint that comes with this package, where a folder could be meant."""


def shipped(name: str) -> Path:
    """Return the folder of a checkpoint that comes with the package, such as "target".

    Raises ModelNotFound.
    """
    known = sorted(folder.name for folder in ASSETS.iterdir() if (folder / "config.json").is_file())
    if name not in known:
        raise ModelNotFound(f"no checkpoint {name!r} comes with this package (known: {', '.join(known)})")
    return ASSETS / name


def folder_of(path_or_id: str | Path) -> Path | None:
    """Return a checkpoint's folder, None for a Hub id. Raises ModelNotFound for one that is not there."""
    folder, name = Path(path_or_id).expanduser(), str(path_or_id)
    if folder.is_dir():
        return folder
    if isinstance(path_or_id, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelNotFound(f"there is no folder {path_or_id}")
    return None
