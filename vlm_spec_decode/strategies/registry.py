"""The strategies by name. A new one is one new file and one `register_strategy` line.

A strategy's module is imported when the strategy is first used. Others add theirs without touching this
package: by a call of `register_strategy`, or by an entry point, which every program of ours finds:

    [project.entry-points."vlm_spec_decode.strategies"]
    my_strategy = "my_package.my_strategy:STRATEGY"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_spec_decode.core.registry import Registry

if TYPE_CHECKING:
    from vlm_spec_decode.strategies.base import Strategy

DEFAULT = "hybrid"
ENTRY_POINTS = "vlm_spec_decode.strategies"
"""Group of the entry points that other packages declare."""


class StrategyRegistry(Registry["Strategy"]):
    """Names to strategies, each registered under its own name."""

    kind = "strategy"
    expected = "Strategy of this name"
    attribute = "STRATEGY"

    def fits(self, name: str, found: object) -> bool:
        """Tell whether `found` is the strategy called `name`."""
        from vlm_spec_decode.strategies.base import Strategy

        return isinstance(found, Strategy) and found.name == name


STRATEGIES = StrategyRegistry(ENTRY_POINTS)
"""All strategies; iterating gives the names and imports no strategy."""


def register_strategy(name: str, source: Strategy | str) -> None:
    """Make a strategy known under `name` to this process: engine, cloud, command line and nodes.

    `source` is the `Strategy`, or where it is, "MODULE" or "MODULE:ATTRIBUTE" (default STRATEGY), imported
    when it is first used. Edge and cloud must both know it. To register the same twice does nothing.
    Raises ConfigError if the name is taken or cannot be one.
    """
    STRATEGIES.add(name, source)


def strategy(name: str) -> Strategy:
    """Return the strategy called `name`. Raises ConfigError that names the known ones."""
    return STRATEGIES.find(name)


register_strategy("autoregressive", "vlm_spec_decode.strategies.autoregressive")
register_strategy("colocated", "vlm_spec_decode.strategies.colocated")
register_strategy("speculative", "vlm_spec_decode.strategies.speculative")
register_strategy("pipelined", "vlm_spec_decode.strategies.pipelined")
register_strategy("early_exit", "vlm_spec_decode.strategies.early_exit")
register_strategy("multi_branch", "vlm_spec_decode.strategies.multi_branch")
register_strategy("retrieval", "vlm_spec_decode.strategies.retrieval")
register_strategy("autodraft", "vlm_spec_decode.strategies.autodraft")
register_strategy("hybrid", "vlm_spec_decode.strategies.hybrid.edge")
