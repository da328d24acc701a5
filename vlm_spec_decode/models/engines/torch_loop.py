"""Our own engine: Transformers' layers, run one by one over the ragged entries of many answers.

It verifies trees in one pass, reads early exits while the pass runs, and keeps each answer's KV cache in
slots. A family of `models.families` says how a checkpoint is read and what its prompt looks like.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_spec_decode.core.errors import ModelError, OutOfMemory, VsdError
from vlm_spec_decode.core.load_progress import current_load, in_background
from vlm_spec_decode.core.ports import ModelCard, Scored, ScoreRequest
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.checkpoint import (
    TENSORS,
    TRANSFORMERS_LOCK,
    CheckpointSource,
    fingerprint,
    load_calibration,
    load_codec,
    load_exits,
    prompt_style,
    read_config,
    resolve,
    weight_files,
)
from vlm_spec_decode.models.context import BatchEntry, VlmContext, run_pass
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.encoder import PromptEncoder
from vlm_spec_decode.models.engines.base import Engine, LoadedModel, LoadOptions
from vlm_spec_decode.models.families.base import Family
from vlm_spec_decode.models.hardware import library_config, quantize, require
from vlm_spec_decode.models.prompt import prompt_digest
from vlm_spec_decode.models.registry import family_class
from vlm_spec_decode.models.tokenizer import TokenizerCodec
from vlm_spec_decode.models.vocabulary import Vocabulary, tell_vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VlmModel(LoadedModel):
    """A checkpoint in our own loop: its decoder stack, and its way from an observation to a prompt."""

    def __init__(
        self, card: ModelCard, codec: TokenizerCodec, decoder: Decoder, encoder: PromptEncoder
    ) -> None:
        super().__init__(card, codec)
        self.decoder = decoder
        self.encoder = encoder

    @property
    def sees(self) -> bool:
        """Whether it has a vision tower; without one an observation's image is left out."""
        return self.encoder.family.sees

    @property
    def step_bytes(self) -> int:
        """Bytes of the layers and the head."""
        return self.decoder.step_bytes

    def open(self, observation: Observation) -> VlmContext:
        """Start one answer; the vision tower and the prompt wait for the first pass.

        Raises ImageError if the image cannot be decoded, InstructionError if the prompt is too long.
        """
        return VlmContext(self.decoder, partial(self.encoder.embed, self.encoder.encode(observation)))

    def score_batch(self, queries: Seq[ScoreRequest]) -> list[Scored]:
        """Score many contexts of this model in one pass (see `core.ports.Model`)."""
        return [*run_pass(self.decoder, [_entry(query) for query in queries])]


def _entry(query: ScoreRequest) -> BatchEntry | VsdError:
    assert isinstance(query.context, VlmContext)
    try:
        return query.context.batch_entry(query.prefix, query.tokens, query.parents, query.on_exit, query.rows)
    except OutOfMemory:
        raise
    except VsdError as error:
        return error


def require_own_loop(model: LoadedModel) -> VlmModel:
    """Return a model whose layers can be read. Raises ModelError if another engine runs it."""
    if not isinstance(model, VlmModel):
        raise ModelError(f"{model.card.model_id}: its layers can be read with engine={ENGINE.name} only")
    return model


class TorchLoop(Engine):
    """Loads a checkpoint of any registered family into a `VlmModel`."""

    name = "torch_loop"

    def load(self, model_id: str, source: str | Path, options: LoadOptions) -> VlmModel:
        """Load network, exits, tokenizer and prompt encoder. Raises ModelError."""
        if options.tensor_parallel > 1:
            raise ModelError(
                "our own loop gives whole layers to a GPU (device=auto): tensor_parallel is vllm's"
            )
        family, codec, vocabulary = read_vocabulary(model_id, source, options)
        tell_vocabulary(vocabulary)
        # Hashed while the network is loaded: both read the same bytes.
        revision = in_background(partial(fingerprint, family.folders))
        network = load_network(family)
        stack = _stack_of(family, network)
        if network.lm_head.weight.shape[0] < (known := codec.vocab_size):
            raise family.refusal(f"its tokenizer knows {known} tokens, more than its head has rows")
        exits = load_exits(family.source, family.config, len(stack.layers), network.lm_head.weight)
        quantize(stack, options.quantize)
        calibration = load_calibration(family.source.folder)
        decoder = Decoder(stack, network.lm_head, exits, codec.vocab_size, family, calibration)
        encoder = _encoder(family, network)
        card = ModelCard(
            model_id=model_id,
            revision=revision.result(),
            tokenizer_digest=codec.digest,
            prompt_digest=prompt_digest(encoder.style),
            vocab_size=codec.vocab_size,
            num_layers=decoder.depth,
            exit_layers=tuple(decoder.exits),
            image_limits=encoder.image_limits,
        )
        return VlmModel(card, codec, decoder, encoder)


ENGINE = TorchLoop()


def read_vocabulary(
    model_id: str, source: str | Path, options: LoadOptions
) -> tuple[Family, TokenizerCodec, Vocabulary]:
    """Read config and tokenizer. Raises ModelError for a checkpoint that its family does not cover."""
    family = _family(source, options)
    codec = load_codec(family.source.folder, family.tokenizer)
    return family, codec, Vocabulary(model_id, codec.digest, codec.vocab_size)


def _family(place: str | Path, options: LoadOptions) -> Family:
    """Return the family of a checkpoint, which has read its tokenizer and its config."""
    folder = resolve(place, options.revision)
    raw = read_config(folder)
    found = family_class(raw)
    if found.reads_pickles or not weight_files(folder):
        folder = resolve(place, options.revision, pickles=True)
    return found(CheckpointSource(folder, options, raw))


def load_network(family: Family) -> Any:
    """Return the network in evaluation mode. Raises ModelError if a tensor is missing or misshapen."""
    folder, options = family.source.folder, family.source.options
    dtype = DTYPES[options.dtype]
    settings: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "sdpa",
        "use_safetensors": all(path.suffix == ".safetensors" for path in weight_files(folder)),
        "output_loading_info": True,
    }
    if bits := library_config(options.quantize, dtype, family.exact_modules):
        settings["quantization_config"] = bits
    if options.device == "auto":
        require("accelerate", "device=auto")
        settings["device_map"] = "auto"
    elif bits:
        settings["device_map"] = {"": options.device}
    load = current_load()
    load.total_bytes = sum(path.stat().st_size for path in weight_files(folder))
    load.shares[TENSORS] = 0.0
    with TRANSFORMERS_LOCK:
        network, report = family.load_network(settings)
    # Transformers would fill the gaps with random numbers and only warn.
    gaps = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if gaps:
        raise ModelError(f"{len(gaps)} tensors are missing or misshapen, the first is {gaps[0]}")
    if "device_map" not in settings:
        network = network.to(options.device)
    return network.eval().requires_grad_(False)


def _stack_of(family: Family, network: Any) -> Any:
    """Return the decoder stack. Raises ModelError for a network that is not `model` and `lm_head`."""
    for part in ("model", "lm_head"):
        if not hasattr(network, part):
            raise family.refusal(f"its network has no {part}, as the decoder loop needs it")
    return network.model.get_decoder()


def _encoder(family: Family, network: Any) -> PromptEncoder:
    """Return the prompt's encoder; a language-only checkpoint gets one without an image processor."""
    body: nn.Module = network.model
    if family.sees:
        check_image_token(family)
    return PromptEncoder(
        family=family,
        body=body,
        tokenizer=family.tokenizer,
        image_processor=family.image_processor() if family.sees else None,
        max_tokens=family.config.get_text_config().max_position_embeddings,
        style=prompt_style(family.source, family.tokenizer),
    )


def check_image_token(family: Family) -> None:
    """Raise ModelError unless the tokenizer reads the token that stands for the image as the config's id."""
    wanted = family.image_token_id
    token = family.tokenizer.convert_ids_to_tokens(wanted)
    if token is None:
        raise family.refusal(f"its tokenizer has no token {wanted}, the image's placeholder")
    found = family.tokenizer(token, add_special_tokens=False)["input_ids"]
    if found.count(wanted) != 1:
        raise family.refusal(f"its tokenizer reads the image's token {token!r} as {found}, not as {wanted}")
