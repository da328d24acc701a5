"""Checkpoints from a folder or the Hub, checked before they are trusted, and run by an engine.

What can be loaded is what `models.registry` has families for. Whatever is wrong with a checkpoint becomes a
ModelError of one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.core.errors import ModelError, VocabularyMismatch
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.models.checkpoint import named
from vlm_spec_decode.models.engines.base import DEFAULT_ENGINE, LoadedModel, LoadOptions
from vlm_spec_decode.models.hardware import check_device
from vlm_spec_decode.models.registry import ENGINES
from vlm_spec_decode.models.spec import ModelSpec, parse_spec

_SHIPPED_MARK = "shipped:"


def shipped(name: str) -> Path:
    """Return the folder of a checkpoint that comes with the package, such as "target". Raises ModelError."""
    known = sorted(folder.name for folder in ASSETS.iterdir() if (folder / "config.json").is_file())
    if name not in known:
        raise ModelError(f"no checkpoint {name!r} comes with this package (known: {', '.join(known)})")
    return ASSETS / name


def assert_same_vocabulary(draft: ModelCard, target: ModelCard) -> None:
    """Raise VocabularyMismatch unless token ids mean the same to both models."""
    ours, theirs = (draft.tokenizer_digest, draft.vocab_size), (target.tokenizer_digest, target.vocab_size)
    if ours != theirs:
        raise VocabularyMismatch(
            f"draft {draft.model_id} ({draft.vocab_size} tokens, {draft.tokenizer_digest}) and target "
            f"{target.model_id} ({target.vocab_size} tokens, {target.tokenizer_digest}) differ in vocabulary"
        )


def load_model(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int = 1,
    model_id: str | None = None,
    engine: str = DEFAULT_ENGINE,
) -> LoadedModel:
    """Load a checkpoint from a folder or, if there is no such folder, by its Hub id.

    A string may carry options (`models.spec`), which win over the arguments, and `shipped:NAME` names a
    checkpoint that comes with the package. `threads` sets torch's threads for the whole process. Raises
    ModelError in one line if the checkpoint is missing, truncated, incomplete, of an architecture that is not
    supported, or too large for the memory; ConfigError if a family or an engine of another package is broken.
    """
    spec = parse_spec(path_or_id, LoadOptions(revision=revision, dtype=dtype, device=device, engine=engine))
    if spec.source.startswith(_SHIPPED_MARK):
        path_or_id = shipped(spec.source.removeprefix(_SHIPPED_MARK))
        spec = ModelSpec(str(path_or_id), spec.options)
    check_device(spec.options.device)
    torch.set_num_threads(threads)
    is_folder = Path(spec.source).is_dir()
    name = model_id or (Path(spec.source).resolve().name if is_folder else spec.source)
    place = Path(spec.source) if isinstance(path_or_id, Path) else spec.source
    with named(name), _no_progress_bars():
        return ENGINES.find(spec.options.engine).load(name, place, spec.options)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep Transformers' bars out of a robot's log; its setting is put back afterwards."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
