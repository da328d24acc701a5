"""A decoding strategy of your own: one file, one `register_strategy` line, nothing of the package edited.

    python examples/05_new_strategy.py

It is `speculative` with a draft length that follows the verdicts: one token more after a round in which all
drafts were right, half as many after one in which they were not. It is run here in virtual time, on a pair of
synthetic models, and says exactly what the target says alone.

For an engine, a robot or a cloud that others start, put such a file into a package and name it as an entry
point of that package; both ends must have it:

    [project.entry-points."vlm_spec_decode.strategies"]
    adaptive_length = "my_package.adaptive_length:STRATEGY"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, Tokens
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_chain, send_chain, wait_commit
from vlm_spec_decode.strategies.registry import register_strategy


def edge(
    sequence: Sequence,
    drafter: Drafter,
    verifier: Verifier,
    clock: Clock,  # noqa: ARG001
    config: EdgeConfig,
) -> Iterator[Tokens]:
    """The robot's half: draft, send, wait for what is committed, yield it."""
    node, length = 1, config.draft_length
    while not sequence.finished:
        chain = draft_chain(drafter, sequence.tokens, replace(config, draft_length=length))
        send_chain(verifier, config, len(sequence), node, chain)
        node += len(chain)
        committed = sequence.commit(wait_commit(verifier, config))
        length = length + 1 if committed[: len(chain)] == chain else max(1, length // 2)
        yield committed


class Cloud(CloudPolicy):
    """The cloud's half: verify what is there, else wait for it."""

    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Return the drafted nodes to verify, or None to wait for some."""
        return tree.live() or None


STRATEGY = Strategy(
    name="adaptive_length", edge=edge, cloud=Cloud, drafts=True, source="an example", rules=RULES
)

register_strategy(STRATEGY.name, STRATEGY)


def main() -> None:
    """Compare it with the two that it lies between."""
    from vlm_spec_decode.bench.run import RunSetup, decode
    from vlm_spec_decode.bench.synthetic import PairSpec, pair
    from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
    from vlm_spec_decode.core.types import Observation, SamplingParams

    draft, target = pair(PairSpec(acceptance=0.9))
    hardware, link = HardwareProfile("go2_a100", 72, 620, 620, 620, 62), LinkProfile("wifi", 60, 100, 100)
    said = {}
    for name in ("autoregressive", "speculative", "adaptive_length"):
        setup = RunSetup(strategy=name, hardware=hardware, link=link)
        found = decode(setup, draft, target, Observation(None, "go"), SamplingParams(max_tokens=60))
        said[name] = found.tokens
        print(f"{name:16} {found.passes:3} passes {found.total_s:6.1f} s")
    print("same tokens:", len(set(said.values())) == 1)


if __name__ == "__main__":
    main()
