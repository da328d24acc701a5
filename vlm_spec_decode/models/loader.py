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
from typing import Any, TypeAlias

import torch
from transformers.utils import logging as transformers_logging

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.load_progress import Load, beside, current_load, reported
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.models.checkpoint import TENSORS, named
from vlm_spec_decode.models.engines.base import DEFAULT_ENGINE, LoadedModel, LoadOptions
from vlm_spec_decode.models.hardware import check_device
from vlm_spec_decode.models.places import SHIPPED_MARK
from vlm_spec_decode.models.places import shipped as shipped  # noqa: PLC0414
from vlm_spec_decode.models.registry import ENGINES
from vlm_spec_decode.models.spec import ModelSpec, parse_spec
from vlm_spec_decode.models.vocabulary import Agreement, assert_same_vocabulary

Source: TypeAlias = str | Path | ModelSpec
"""What names a checkpoint, with or without the options that it is loaded with."""


def load_model(
    path_or_id: Source,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int = 1,
    model_id: str | None = None,
    engine: str = DEFAULT_ENGINE,
    role: str = "",
) -> LoadedModel:
    """Load a checkpoint from a folder or, if there is no such folder, by its Hub id.

    A string may carry options (`models.spec`), which win over the arguments, as those of a `ModelSpec` do,
    and `shipped:NAME` names a checkpoint that comes with the package. `threads` sets torch's threads for the
    whole process. `role` is "draft" or "target" in the lines that say how far the load is.

    Raises ModelNotFound if there is no such checkpoint, ModelError in one line if it is truncated,
    incomplete, of an architecture that is not supported, or too large for the memory; ConfigError if a family
    or an engine of another package is broken.
    """
    defaults = LoadOptions(revision=revision, dtype=dtype, device=device, engine=engine)
    place, spec = _placed(path_or_id, defaults)
    check_device(spec.options.device)
    torch.set_num_threads(threads)
    name = model_id or _name(spec)
    with named(name), reported(name, role=role), _bars_replaced():
        return ENGINES.find(spec.options.engine).load(name, place, spec.options)


def import_engines(*sources: Source) -> None:
    """Import what will load these checkpoints: seconds, the first time. Raises as `load_model` does."""
    for source in sources:
        ENGINES.find(_spec(source, LoadOptions()).options.engine)


def load_models(sources: Seq[Source], threads: int = 1) -> list[LoadedModel]:
    """Load several checkpoints at once, each as `load_model` does; the last of them in this thread.

    What reads, hashes and converts numbers runs beside the rest; what Transformers can do only once at a time
    waits (`engines.torch_loop.load_network`). An engine of others may call Transformers without waiting,
    which leaves its classes changed for good: beside such an engine loads follow each other. Raises the
    error of one of them; the others have ended then.
    """
    loads = [partial(load_model, source, threads=threads) for source in sources]
    return _at_once(loads) if _wait_for_each_other(sources) else [load() for load in loads]


def load_draft_and_target(draft: Source, target: Source, threads: int = 1) -> tuple[LoadedModel, LoadedModel]:
    """Load a pair as `load_models` does. Raises VocabularyMismatch, before our engine reads any weights."""
    at_once = _wait_for_each_other((draft, target))
    agreement = Agreement(beside=at_once)
    loads = [
        partial(agreement.load, "draft", partial(load_model, draft, threads=threads, role="draft")),
        partial(agreement.load, "target", partial(load_model, target, threads=threads, role="target")),
    ]
    try:
        models = _at_once(loads) if at_once else [load() for load in loads]
    except ModelError as error:
        # The one that has failed says why; the one that was stopped for it does not.
        raise agreement.error or error from None
    return models[0], models[1]


def check_pair(draft: Source, target: Source) -> None:
    """Read configs and tokenizers of two checkpoints as loading them does, but no weights.

    Raises ModelError or VocabularyMismatch. Says nothing of one that is no folder here or has another engine.
    """
    places = [_placed(source, LoadOptions()) for source in (draft, target)]
    if not all(Path(spec.source).is_dir() for _, spec in places) or not _wait_for_each_other((draft, target)):
        return
    from vlm_spec_decode.models.engines.torch_loop import read_vocabulary

    found = []
    for place, spec in places:
        with named(_name(spec)):
            found.append(read_vocabulary(_name(spec), place, spec.options)[-1])
    assert_same_vocabulary(*found)


def load_draft_for(target: ModelCard, draft: Source, threads: int = 1) -> LoadedModel:
    """Load a draft for a target that is loaded. Raises VocabularyMismatch, likewise before the weights."""
    agreement = Agreement()
    agreement.tell("target", target)
    return agreement.load("draft", partial(load_model, draft, threads=threads, role="draft"))


def _placed(source: Source, defaults: LoadOptions) -> tuple[str | Path, ModelSpec]:
    """Return where a checkpoint is, and how to load it. Raises ModelError."""
    spec = _spec(source, defaults)
    if spec.source.startswith(SHIPPED_MARK):
        folder = shipped(spec.source.removeprefix(SHIPPED_MARK))
        return folder, ModelSpec(str(folder), spec.options)
    return Path(spec.source) if isinstance(source, Path) else spec.source, spec


def _name(spec: ModelSpec) -> str:
    return Path(spec.source).resolve().name if Path(spec.source).is_dir() else spec.source


def _spec(source: Source, defaults: LoadOptions) -> ModelSpec:
    return source if isinstance(source, ModelSpec) else parse_spec(source, defaults)


def _wait_for_each_other(sources: Seq[Source]) -> bool:
    """Tell whether all are loaded by our own engine."""
    return all(_spec(source, LoadOptions()).options.engine == DEFAULT_ENGINE for source in sources)


def _at_once(loads: Seq[Callable[[], LoadedModel]]) -> list[LoadedModel]:
    # Two threads that import the libraries at once would see them half made.
    ENGINES.find(DEFAULT_ENGINE)
    *others, last = loads
    with beside(others) as running:
        final = last()
        return [*(load.result() for load in running), final]


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
