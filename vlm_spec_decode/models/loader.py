"""Checkpoints from a folder or the Hub, checked before they are trusted, and run by an engine.

What can be loaded is what `models.registry` has families for. Whatever is wrong with a checkpoint becomes a
ModelError of one line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.core.errors import ModelError, VocabularyMismatch
from vlm_spec_decode.core.load_progress import Load, beside, current_load, reported
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.models.checkpoint import TENSORS, named
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
    with named(name), reported(name), _bars_replaced():
        return ENGINES.find(spec.options.engine).load(name, place, spec.options)


def load_models(sources: Seq[str | Path], threads: int = 1) -> list[LoadedModel]:
    """Load several checkpoints at once, each as `load_model` does; the last of them in this thread.

    What reads, hashes and converts numbers runs beside the rest; what Transformers can do only once at a time
    waits (`engines.torch_loop.load_network`). An engine of others may call Transformers without waiting,
    which leaves its classes changed for good: beside such an engine loads follow each other. Raises the
    error of one of them; the others have ended then.
    """
    if any(parse_spec(source, LoadOptions()).options.engine != DEFAULT_ENGINE for source in sources):
        return [load_model(source, threads=threads) for source in sources]
    # Two threads that import the libraries at once would see them half made.
    ENGINES.find(DEFAULT_ENGINE)
    *others, last = sources
    with beside([partial(load_model, source, threads=threads) for source in others]) as loads:
        final = load_model(last, threads=threads)
        return [*(load.result() for load in loads), final]


class _Counted:
    """A progress bar of Transformers' that counts what it iterates over as part of a load."""

    def __init__(self, bar: Any, items: Collection[Any], load: Load) -> None:
        self._bar, self._items, self._load = bar, items, load

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._items, start=1):
            yield item
            self._load.advance(TENSORS, number / len(self._items))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _counted(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return a bar in place of `factory`'s: the one over a checkpoint's tensors counts for the load."""
    bar, load = factory(*args, **options), current_load()
    if TENSORS not in load.shares or not args or not isinstance(args[0], Collection):
        return bar
    return _Counted(bar, args[0], load)


_BARS_LOCK = threading.Lock()
_bars_before: list[tuple[bool, Any]] = []


@contextmanager
def _bars_replaced() -> Iterator[None]:
    """Keep Transformers' bars out of a robot's log and count what they count.

    Both settings are the whole process's: the first load sets them and the last one puts them back.
    """
    with _BARS_LOCK:
        was_shown = transformers_logging.is_progress_bar_enabled()
        _bars_before.append((was_shown, transformers_logging.set_tqdm_hook(_counted)))
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        with _BARS_LOCK:
            # Loads may end in any order: whatever was set before the first of them comes back at the last.
            was_shown, hook = _bars_before.pop() if len(_bars_before) > 1 else _bars_before.pop(0)
            if not _bars_before:
                transformers_logging.set_tqdm_hook(hook)
                if was_shown:
                    transformers_logging.enable_progress_bar()
