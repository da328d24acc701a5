"""An engine of your own: one file, one `register_engine` line, nothing of the package edited.

    python examples/07_new_engine.py

The engine runs a language model by Transformers' own `forward`, with Transformers' cache. It knows no tree:
each branch of a draft runs by itself, after the cache has been cut back to where the branch leaves the last
one. It is slower than `torch_loop`, and it runs architectures that `torch_loop` does not, such as the GPT-2
that is made here with random weights. Draft and target answer a question with it, in fewer passes than the
answer has tokens, and the answer is compared with that of `generate`.

For a cloud or a robot that others start, put such a file into a package and name it as an entry point of that
package; then `vsd cloud --engine transformers` takes it, and `engine=transformers` behind any model's name:

    [project.entry-points."vlm_spec_decode.engines"]
    transformers = "my_package.transformers_engine:ENGINE"
"""

from __future__ import annotations

import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.errors import InstructionError, ModelError
from vlm_spec_decode.core.ports import ExitHook, ModelCard, ModelContext
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.models.checkpoint import (
    CheckpointSource,
    fingerprint,
    load_codec,
    load_tokenizer,
    prompt_style,
    read_config,
    resolve,
)
from vlm_spec_decode.models.encoder import render_prompt, tokenize_prompt
from vlm_spec_decode.models.engines.base import Engine, LoadedModel, LoadOptions
from vlm_spec_decode.models.prompt import PromptStyle, prompt_digest
from vlm_spec_decode.models.registry import register_engine
from vlm_spec_decode.models.tokenizer import TokenizerCodec


class ForwardContext(ModelContext):
    """One answer: the prompt's ids, and a cache of the branch that ran last."""

    def __init__(self, network: Any, prompt: Tokens, vocab_size: int) -> None:
        self._network = network
        self._prompt = prompt
        self._vocab_size = vocab_size
        self._closed = False
        self._cache: Any = DynamicCache()
        self._held: Tokens = ()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab]; see `ModelContext.score`."""
        del on_exit  # an engine without early exits never calls it
        if self._closed:
            raise ModelError("this answer's context is closed")
        paths = [tuple(prefix)]
        for token, parent in zip(tokens, parents, strict=True):
            paths.append((*paths[parent], token))
        rows: dict[Tokens, Any] = {}
        # A leaf's pass has the rows of all nodes above it, so the longest paths come first.
        for path in sorted(paths, key=len, reverse=True):
            if path not in rows:
                found = self._run(path, len(prefix))
                rows |= {path[: len(prefix) + i]: row for i, row in enumerate(found)}
        return np.stack([rows[path] for path in paths])

    @torch.inference_mode()
    def _run(self, path: Tokens, first: int) -> Logits:
        """Return logits [1 + len(path) - first, vocab]: after `path[:first]` and each token behind it."""
        ids = self._prompt + path
        wanted = len(self._prompt) + first - 1
        # What the cache shares with these ids stays; the row whose logits are wanted must run again.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self._held, ids, strict=False))
        shared = min(len(tuple(same)), wanted)
        if shared < len(self._held):
            self._cache.crop(shared - len(self._held))
        rest = torch.tensor([ids[shared:]])
        logits = self._network(input_ids=rest, past_key_values=self._cache, use_cache=True).logits
        self._held = ids
        found: Logits = logits[0, wanted - shared :, : self._vocab_size].float().numpy()
        return found

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values held now."""
        held = [layer for layer in self._cache.layers if layer.is_initialized]
        return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in held)

    def forget(self) -> None:
        """Free the cache and stay usable."""
        self._cache, self._held = DynamicCache(), ()

    def close(self) -> None:
        """Free the cache for good."""
        self.forget()
        self._closed = True


class ForwardModel(LoadedModel):
    """A language model that Transformers runs; an observation's image is left out."""

    def __init__(
        self, network: Any, tokenizer: Any, codec: TokenizerCodec, card: ModelCard, style: PromptStyle
    ) -> None:
        super().__init__(card, codec)
        self._network, self._tokenizer, self._style = network, tokenizer, style

    def open(self, observation: Observation) -> ForwardContext:
        """Start one answer. Raises InstructionError if the prompt is too long."""
        prompt = tokenize_prompt(self._tokenizer, render_prompt(observation, self._tokenizer, self._style))
        if len(prompt) >= self._network.config.max_position_embeddings:
            raise InstructionError(f"the prompt of {len(prompt)} tokens leaves no room for an answer")
        return ForwardContext(self._network, tuple(prompt), self._card.vocab_size)


class ForwardEngine(Engine):
    """Loads what `AutoModelForCausalLM` loads, on the CPU."""

    name = "transformers"

    def load(self, model_id: str, source: str | Path, options: LoadOptions) -> ForwardModel:
        """Load the checkpoint; refuse what this engine cannot do."""
        if options.exits or options.quantize != "none" or options.device != "cpu":
            raise ModelError(f"engine {self.name}: no exits, no quantization, and the device cpu only")
        folder = resolve(source, options.revision)
        network, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, options.dtype), output_loading_info=True
        )
        if report["missing_keys"]:
            raise ModelError(f"{len(report['missing_keys'])} tensors are missing")
        tokenizer = load_tokenizer(folder)
        codec = load_codec(folder, tokenizer)
        style = prompt_style(CheckpointSource(folder, options, read_config(folder)), tokenizer)
        card = ModelCard(
            model_id=model_id,
            revision=fingerprint([folder]),
            tokenizer_digest=codec.digest,
            prompt_digest=prompt_digest(style),
            vocab_size=codec.vocab_size,
            num_layers=network.config.num_hidden_layers,
        )
        return ForwardModel(network.eval(), tokenizer, codec, card, style)


ENGINE = ForwardEngine()

register_engine(ENGINE.name, ENGINE)

WORDS = ("user", "robot", "go", "to", "the", "red", "chair", *(f"w{i}" for i in range(40)))


def make_checkpoint(folder: Path) -> Path:
    """Write a tiny GPT-2 with random weights, as a user would find a large one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from vlm_spec_decode.models import tiny

    tokenizer = tiny.build_tokenizer(WORDS)
    shape = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
    specials = {"bos_token_id": tiny.BOS_ID, "eos_token_id": tiny.EOS_ID, "pad_token_id": tiny.PAD_ID}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**shape, **specials, initializer_range=0.5)).save_pretrained(folder)
    tiny.save_text_folder(folder, tokenizer)
    return folder


def generated(folder: Path, text: str, count: int) -> Tokens:
    """Return what `generate` says after a prompt."""
    ids = load_tokenizer(folder)(text, return_tensors="pt")["input_ids"]
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        said = network.generate(ids, max_new_tokens=count, do_sample=False)
    return tuple(said[0, ids.shape[1] :].tolist())


def main() -> None:
    """Ask a tiny GPT-2, as its own draft, and `generate` the same question."""
    from vlm_spec_decode.edge.ask import AskConfig, run
    from vlm_spec_decode.edge.factory import EdgeSettings

    question = "go to the red chair"
    with tempfile.TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name) / "gpt2")
        model = f"{folder},engine={ENGINE.name},prompt=bare"
        settings = EdgeSettings(
            draft=model, target=model, grammar=False, max_tokens=16, strategy="speculative"
        )
        found = run(AskConfig(instruction=question, settings=settings))
        wanted = generated(folder, f" user : {question} robot :", 16)
    print(f"answer: {len(found['token_ids'])} tokens in {found['target_passes']} passes of the target")
    print("same as generate:", tuple(found["token_ids"]) == wanted)


if __name__ == "__main__":
    main()
