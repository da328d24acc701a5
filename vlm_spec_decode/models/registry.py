"""The VLM families and the engines by name. A new one is one new file and one line at the end of this one.

A family is named by the `model_type` of its Transformers config; several names may share a class. An engine
is what runs a checkpoint. Others add theirs without touching this package: by a call of `register_family` or
`register_engine`, or by an entry point, which every program of ours finds:

    [project.entry-points."vlm_spec_decode.families"]
    mistral3 = "my_package.mistral3:FAMILY"

    [project.entry-points."vlm_spec_decode.engines"]
    my_engine = "my_package.my_engine:ENGINE"

Imports no torch: command lines and settings show these names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.registry import Registry

if TYPE_CHECKING:
    from vlm_spec_decode.models.engines.base import Engine
    from vlm_spec_decode.models.families.base import Family


class FamilyRegistry(Registry["type[Family]"]):
    """Model types to the classes of their families."""

    kind = "family"
    expected = "subclass of Family"
    attribute = "FAMILY"
    form = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
    form_text = "letters, digits and _.-, at most 64, as in a config's model_type"

    def fits(self, name: str, found: object) -> bool:  # noqa: ARG002
        """Tell whether `found` is a family's class; one class may cover several model types."""
        from vlm_spec_decode.models.families.base import Family

        return isinstance(found, type) and issubclass(found, Family)


class EngineRegistry(Registry["Engine"]):
    """Names to engines, each registered under its own name."""

    kind = "engine"
    expected = "Engine of this name"
    attribute = "ENGINE"

    def fits(self, name: str, found: object) -> bool:
        """Tell whether `found` is the engine called `name`."""
        from vlm_spec_decode.models.engines.base import Engine

        return isinstance(found, Engine) and found.name == name


FAMILIES = FamilyRegistry("vlm_spec_decode.families")
"""All families by model type; iterating gives the names and imports no family."""

ENGINES = EngineRegistry("vlm_spec_decode.engines")
"""All engines; iterating gives the names and imports no engine."""


def register_family(model_type: str, source: type[Family] | str) -> None:
    """Make a family known to this process: checkpoints of this `model_type` are loaded by its class.

    `source` is the subclass of `Family`, or where it is, "MODULE" or "MODULE:ATTRIBUTE" (default FAMILY),
    imported when such a checkpoint is first loaded. Raises ConfigError if the name is taken or cannot be one.
    """
    FAMILIES.add(model_type, source)


def register_engine(name: str, source: Engine | str) -> None:
    """Make an engine known to this process, for `engine=NAME` in a model's name and `vsd cloud --engine`.

    `source` is the `Engine`, or where it is, "MODULE" or "MODULE:ATTRIBUTE" (default ENGINE), imported when
    it is first used. Raises ConfigError if the name is taken or cannot be one.
    """
    ENGINES.add(name, source)


UNCOVERED: Mapping[str, str] = {
    "gemma2": "the softcap within its attention is not applied",
    "gemma3n": "its layers hand on several streams (AltUp), and the decoder loop has one",
    "qwen3_next": "its delta nets lay their projections out in another way than Qwen3.5's",
    "gemma4_unified": "Transformers has no image processor for it that works without torchvision",
}
"""Model types near those that are covered, and why they are not."""


def family_class(raw: Mapping[str, Any]) -> type[Family]:
    """Return the family of a config.json. Raises ModelError with the reason or the families there are."""
    model_type = str(raw.get("model_type", ""))
    if model_type not in FAMILIES:
        if reason := UNCOVERED.get(model_type.removesuffix("_text")):
            raise ModelError(f"architecture {model_type!r} is not supported: {reason}")
        raise ModelError(f"architecture {model_type!r} is not supported (known: {', '.join(FAMILIES)})")
    return FAMILIES[model_type].variant(raw)


register_family("llava", "vlm_spec_decode.models.families.llava:Llava")
register_family("llava_next", "vlm_spec_decode.models.families.llava:Llava")
register_family("llava_llama", "vlm_spec_decode.models.families.llava:OriginalLlava")
register_family("qwen2_vl", "vlm_spec_decode.models.families.qwen_vl:QwenVL")
register_family("qwen2_5_vl", "vlm_spec_decode.models.families.qwen_vl:QwenVL")
register_family("qwen3_vl", "vlm_spec_decode.models.families.qwen3_vl:Qwen3VL")
register_family("qwen3_vl_moe", "vlm_spec_decode.models.families.qwen3_vl:Qwen3VL")
register_family("idefics3", "vlm_spec_decode.models.families.idefics3:Idefics3")
register_family("smolvlm", "vlm_spec_decode.models.families.idefics3:Idefics3")
register_family("internvl", "vlm_spec_decode.models.families.internvl:InternVL")
register_family("llava_onevision", "vlm_spec_decode.models.families.llava:Llava")
register_family("qwen3_5", "vlm_spec_decode.models.families.qwen3_5:Qwen35")
register_family("qwen3_5_moe", "vlm_spec_decode.models.families.qwen3_5:Qwen35")
register_family("qwen3_5_text", "vlm_spec_decode.models.families.qwen3_5:Qwen35Language")
register_family("qwen3_5_moe_text", "vlm_spec_decode.models.families.qwen3_5:Qwen35Language")
register_family("llama", "vlm_spec_decode.models.families.language:Language")
register_family("qwen2", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("qwen3", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("gemma", "vlm_spec_decode.models.families.gemma:GemmaLanguage")
register_family("gemma3", "vlm_spec_decode.models.families.gemma:Gemma3")
register_family("gemma3_text", "vlm_spec_decode.models.families.gemma:GemmaLanguage")
register_family("gemma4", "vlm_spec_decode.models.families.gemma:Gemma4")
register_family("gemma4_text", "vlm_spec_decode.models.families.gemma:Gemma4Language")
register_family("mistral", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("ministral", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("apertus", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("arcee", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("ernie4_5", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("glm4", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("mixtral", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("olmo2", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("qwen2_moe", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("qwen3_moe", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("seed_oss", "vlm_spec_decode.models.families.language:WindowedLanguage")
register_family("smollm3", "vlm_spec_decode.models.families.language:WindowedLanguage")

register_engine("torch_loop", "vlm_spec_decode.models.engines.torch_loop")
register_engine("vllm", "vlm_spec_decode.models.engines.vllm")
