"""What exact trees cost in a layer of Qwen3.5, and how exact they are.

    python benchmarks/qwen35_layer.py [--quick]

Three figures, on one thread, with random weights whose states last (A between 0.002 and 0.2; as Transformers
makes them they forget within a token, and nothing could be seen):

- `layer_9B`: a gated delta net at 9B's widths with a tree of 32 nodes (depth 15, 10 leaves) behind a prompt
  of 256 tokens, over its own projections alone. The two take turns; the least time of each counts. 0.8B and
  27B are measured beside it, and all three behind an answer of 200 tokens.
- `tree_error`: the greatest error of logits on trees of a whole small model with 248,320 ids, in units of the
  model's own noise between feeding a path at once and token by token. Both are against Transformers' model
  fed each path at once.
- `trace`: how many of the logits after rejected drafts differ, in any bit, from those of an answer that never
  had the drafts.

Prints each figure with its bar and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from figures import Figure, report
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.families.base import EmbeddedPrompt
from vlm_spec_decode.models.families.qwen3_5 import Qwen35Language, RecurrentCache, TreeDeltaNet
from vlm_spec_decode.models.kv_slots import SlotTable

WIDTHS = {"0.8B": (1024, 16, 16), "9B": (4096, 16, 32), "27B": (5120, 16, 48)}
"""Hidden width, key heads, value heads; all heads are 128 wide."""
LAYER_BAR, NOISE_BAR = 1.25, 2.0
PROMPT, NODES, DEPTH = 256, 32, 15
VOCABULARY = 248_320


def remembering(network: Any) -> Any:
    """Let the states of random weights last, and return the network for use."""
    for name, tensor in network.named_parameters():
        if name.endswith("A_log"):
            tensor.data.copy_(torch.empty_like(tensor).uniform_(0.002, 0.2).log())
    return network.eval().requires_grad_(False)


def tree(slots: SlotTable, root: int) -> None:
    """Add a trunk of `DEPTH` nodes, and siblings along it, some with one below: `NODES`, 10 leaves."""
    first, trunk = len(slots), [root]
    for depth in range(DEPTH):
        trunk.append(slots.add(trunk[-1], depth))
    for branch in range(9):
        side = slots.add(trunk[branch], 100 + branch)
        if branch < NODES - DEPTH - 9:
            slots.add(side, 200 + branch)
    parents = set(slots.parents)
    assert len(slots) == first + NODES
    assert sum(slot not in parents for slot in range(first, first + NODES)) == 10


def layer(hidden: int, key_heads: int, value_heads: int) -> Any:
    """Return Transformers' gated delta net of these widths."""
    config = Qwen3_5TextConfig(
        hidden_size=hidden, linear_num_key_heads=key_heads, linear_num_value_heads=value_heads
    )
    torch.manual_seed(0)
    return remembering(Qwen3_5GatedDeltaNet(config, 0))


@torch.inference_mode()
def layer_over_projections(widths: tuple[int, int, int], said: int, turns: int) -> tuple[float, float]:
    """Return the layer's least time over that of its projections, and the latter in ms.

    `said` tokens of an answer lie between prompt and tree.
    """
    net, slots, cache = layer(*widths), SlotTable(), RecurrentCache(4)
    run, device = TreeDeltaNet(net, net.forward), torch.device("cpu")
    for token in range(said):
        slots.add(token, token)
    cache.begin_pass(slots, 0, PROMPT, device)
    before = torch.randn(PROMPT + said, widths[0])
    run(before[None], entries=[SimpleNamespace(cache=cache, embedded=before)])
    tree(slots, said)
    rows, wide = torch.randn(NODES, widths[0]), torch.randn(NODES, net.value_dim)

    def ours() -> None:
        cache.begin_pass(slots, 1 + said, PROMPT, device)
        run(rows[None], entries=[SimpleNamespace(cache=cache, embedded=rows)])

    def bare() -> None:
        for part in (net.in_proj_qkv, net.in_proj_z, net.in_proj_b, net.in_proj_a):
            part(rows)
        net.out_proj(wide)

    found: list[tuple[float, float]] = []
    for _ in range(turns + 1):
        found.append((seconds(ours), seconds(bare)))
        cache.cut(PROMPT + said)
    mine, least = (min(column) for column in zip(*found[1:], strict=True))
    return mine / least, least * 1e3


def seconds(run: Callable[[], object]) -> float:
    """Return the processor time of a call: whatever else runs does not count."""
    began_s = time.process_time()
    run()
    return time.process_time() - began_s


class Small:
    """A whole small model with the real vocabulary: twice three delta nets and one layer that attends."""

    def __init__(self) -> None:
        config = Qwen3_5TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            initializer_range=0.1,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        self.network = remembering(Qwen3_5ForCausalLM(config))
        self.prompt = torch.randint(0, VOCABULARY, (96,))
        family = Qwen35Language.of_config(config)
        self.decoder = Decoder(self.network.model, self.network.lm_head, {}, VOCABULARY, family)

    def open(self) -> VlmContext:
        """Return the context of an answer to the prompt."""
        embedded = self.decoder.embed(self.prompt)
        positions = torch.arange(len(self.prompt))[None]
        return VlmContext(self.decoder, lambda: EmbeddedPrompt(embedded, positions, self.prompt))

    @torch.inference_mode()
    def at_once(self, path: tuple[int, ...]) -> np.ndarray:
        """Return Transformers' logits [1 + len(path), vocab] down a path that is fed in one piece."""
        ids = torch.cat([self.prompt, torch.tensor(path, dtype=torch.long)])[None]
        logits: np.ndarray = self.network(input_ids=ids).logits[0, len(self.prompt) - 1 :].numpy()
        return logits

    @torch.inference_mode()
    def in_steps(self, path: tuple[int, ...]) -> np.ndarray:
        """Return the same, the prompt fed in one piece and then token by token into its cache."""
        out = self.network(input_ids=self.prompt[None], use_cache=True)
        rows = [out.logits[0, -1]]
        for token in path:
            out = self.network(
                input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True
            )
            rows.append(out.logits[0, -1])
        return torch.stack(rows).numpy()


def random_tree(rng: np.random.Generator, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return tokens and parents of a tree of `size` nodes, deep rather than wide."""
    parents = [i if rng.random() < 0.6 else int(rng.integers(0, i + 1)) for i in range(size)]
    return tuple(rng.integers(0, VOCABULARY, size).tolist()), tuple(parents)


def paths_of(tokens: tuple[int, ...], parents: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the path to each row: the root's is empty."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*paths[parent], token))
    return paths


def tree_error(model: Small, trees: int) -> tuple[float, float]:
    """Return the greatest error of logits on trees over the model's own noise, and that noise."""
    rng, error, noise = np.random.default_rng(0), 0.0, 0.0
    for _ in range(trees):
        tokens, parents = random_tree(rng, NODES)
        paths = paths_of(tokens, parents)
        found = model.open().score((), tokens, parents)
        # A path to a leaf gives the logits of all rows on it.
        for leaf in (paths[row] for row in range(1, NODES + 1) if row not in parents):
            wanted = model.at_once(leaf)
            noise = max(noise, float(np.abs(model.in_steps(leaf) - wanted).max()))
            mine = [found[paths.index(leaf[:depth])] for depth in range(len(leaf) + 1)]
            error = max(error, float(np.abs(np.stack(mine) - wanted).max()))
    return error / noise, noise


def trace(model: Small, answers: int) -> tuple[float, int]:
    """Return how many rows of logits differ after rejected drafts, and how many there were."""
    rng, differ, rows = np.random.default_rng(1), 0, 0
    for _ in range(answers):
        speculated, plain = model.open(), model.open()
        prefix: tuple[int, ...] = ()
        for _ in range(4):
            token = int(rng.integers(0, VOCABULARY))
            speculated.score(prefix)
            plain.score(prefix)
            speculated.score(prefix, *random_tree(rng, int(rng.integers(1, NODES))))
            prefix = (*prefix, token)
            asked = random_tree(rng, 6)
            found, wanted = speculated.score(prefix, *asked), plain.score(prefix, *asked)
            differ += int((found != wanted).any(axis=1).sum())
            rows += len(found)
    return float(differ), rows


def figures(quick: bool, layer_9b: tuple[float, float]) -> list[Figure]:
    """Measure everything that has a bar; `layer_9b` is what `layer_over_projections` has found."""
    value, bare_ms = layer_9b
    found = [Figure("layer_9B", value, LAYER_BAR, "at most", f"{NODES} nodes, projections {bare_ms:.1f} ms")]
    model = Small()
    value, noise = tree_error(model, 2 if quick else 8)
    found.append(Figure("tree_error", value, NOISE_BAR, "at most", f"own noise {noise:.1e}"))
    differ, rows = trace(model, 3 if quick else 10)
    found.append(Figure("trace", differ, 0, "at most", f"of {rows} rows, {VOCABULARY} ids"))
    return found


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns, trees and answers")
    parser.add_argument("--out", type=Path, default=Path("out/qwen35_layer/qwen35_layer.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns = 7 if options.quick else 25
    layers = {
        f"{name}_{said}": layer_over_projections(widths, said, turns)
        for name, widths in WIDTHS.items()
        for said in (0, 200)
    }
    for name, (value, bare_ms) in layers.items():
        print(f"{name}: {value:.3f} times its projections, {bare_ms:.1f} ms")
    return report(figures(options.quick, layers["9B_0"]), options.out, layers=layers)


if __name__ == "__main__":
    sys.exit(main())
