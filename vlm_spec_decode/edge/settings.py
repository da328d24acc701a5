"""The settings of an engine, for `vsd ask`, the VLM node, the demo and the API.

Imports nothing heavy: options and help texts are made from these fields before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_spec_decode.core.config import setting
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import OBJECTIVES, RULES
from vlm_spec_decode.strategies.registry import DEFAULT, STRATEGIES

if TYPE_CHECKING:
    from vlm_spec_decode.edge.protocol_timing import ProtocolTiming

CLOUD_CHOICES = ("order", "nearest")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """All settings of an engine; `core.config.settings_of` has what each means.

    `link` emulates a network in front of the socket. With `hardware` the draft's steps take as long as that
    profile says, and so do the target's passes where both models are in this process. `timing` None is the
    protocol's own.
    """

    cloud: str = setting(
        "",
        "Address of the verifier, tcp://HOST:PORT; several with commas; empty: both models in this process.",
    )
    cloud_choice: str = setting(
        CLOUD_CHOICES[0],
        "Which of several clouds is used: in their order, the next one if one fails, or the nearest by "
        "measured round trip, which may change.",
        one_of=CLOUD_CHOICES,
    )
    keys: Path | None = setting(
        None, "Folder of CURVE keys (`vsd keys`); without: plaintext, to a cloud on this machine only."
    )
    draft: str = setting(
        "", "Draft model: folder or hub id, ID[@REV][,dtype=…,…]; empty: the one that ships."
    )
    target: str = setting("", "Target model, likewise, where both models are in this process.")
    strategy: str = setting(DEFAULT, "How edge and cloud decode together.", one_of=STRATEGIES)
    rule: str = setting("coupled", "How drafts are verified.", one_of=RULES)
    temperature: float = setting(0.0, "0 is greedy.", 0.0, 2.0)
    seed: int = setting(0, "Keys the noise of sampling, shared by both ends.", 0, 2**31 - 1)
    max_tokens: int = setting(96, "Longest answer.", 1, 1024)
    draft_length: int = setting(6, "Tokens drafted per round.", 1, 64)
    draft_budget: str = setting(
        "",
        "Most that drafting may take of this computer: 0.5core (a share of a core) or 3W (by its counters); "
        "empty or 0: no limit.",
    )
    draft_floor: float = setting(
        0.0,
        "How likely a token must be, by the draft and by what guesses of its kind were worth, to be drafted "
        "from and sent; 0: all that may help is.",
        0.0,
        0.5,
    )
    objective: str = setting("latency", "What the cloud saves.", one_of=OBJECTIVES)
    deadline_s: float = setting(
        0.0, "Time within which an answer is of use, by which a busy cloud orders its work; 0: none.", 0, 600
    )
    image_budget_s: float = setting(
        0.25, "Longest time that a picture may take on the measured uplink; its size follows.", 0.02, 10.0
    )
    answer_timeout_s: float = setting(30.0, "Silence of the cloud that fails an answer.", 0.5, 300.0)
    connect_timeout_s: float = setting(4.0, "How long a handshake may take, at each address.", 0.5, 60.0)
    refused_s: float = setting(2.0, "How long a cloud where nobody listens is waited for.", 0, 600)
    threads: int = setting(1, "Threads of the models in this process.", 1, 64)
    grammar: bool = setting(True, "Hold answers to the action language; the cloud must do the same.")
    link: LinkProfile | None = None
    hardware: HardwareProfile | None = None
    timing: ProtocolTiming | None = None
