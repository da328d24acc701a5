"""`draft_budget`: what drafting takes stays within a share of a core, or watts, and no token changes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import ConfigError, OverBudget
from vlm_spec_decode.core.ports import Clock, Model
from vlm_spec_decode.core.processes import ProcessClock
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Image, Observation, SamplingParams
from vlm_spec_decode.edge.draft_budget import SAVED_S, BoardEnergy, DraftBudget, budget_of
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import check_settings
from vlm_spec_decode.edge.open_answers import OpenAnswers
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.paced import paced_draft
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy

GO2 = HardwareProfile("go2", 72, 200, 200, 300, 62, draft_prefill_ms=250)
LINK = LinkProfile("link", 120, 20, 20)
PROMPT_S = 1e-3 * (GO2.draft_prefill_ms + GO2.draft_ms)
SEEN = Image(b"a frame", 4, 4)
DRAFTING = [name for name in STRATEGIES if strategy(name).drafts]
RULES = [(name, rule) for name in STRATEGIES for rule in strategy(name).rules]


class Timed(Model):
    """A draft model that adds up by itself what its steps take."""

    def __init__(self, inner: Model, clock: Clock) -> None:
        self.inner, self.clock, self.spans = inner, clock, list[tuple[float, float]]()

    @property
    def card(self):
        return self.inner.card

    def open(self, observation: Observation):
        context, own = self.inner.open(observation), self

        class Context(type(context)):
            __slots__ = ()

            def choose(self, *given, **named):
                began_s = own.clock.now()
                try:
                    return super().choose(*given, **named)
                finally:
                    own.spans.append((began_s, own.clock.now()))

        context.__class__ = Context
        return context

    def score_batch(self, requests):
        began_s = self.clock.now()
        scored = self.inner.score_batch(requests)
        self.spans.append((began_s, self.clock.now()))
        return scored

    @property
    def seconds(self) -> float:
        return sum(end - begin for begin, end in self.spans)


class BoardClock(VirtualClock):
    """Virtual time, on a computer that tells at each look at the clock what it has used."""

    on_now: Callable[[], None] | None = None

    def now(self) -> float:
        if self.on_now:
            self.on_now()
        return super().now()


class Rig:
    """An engine in virtual time whose draft is right often, and says what it took."""

    def __init__(
        self, budget: str, name: str = "hybrid", rule: str = "coupled", system: Path = Path("/nowhere")
    ) -> None:
        draft, target = pair(PairSpec(acceptance=0.8))
        self.clock = BoardClock()
        self.draft = Timed(paced_draft(draft, GO2, self.clock), self.clock)
        self.budget = budget_of(budget, self.clock, system=system)
        verifier = VirtualVerifier(target, GO2, LINK, self.clock, draft)
        params = SamplingParams(max_tokens=40, rule=rule, temperature=0.8)
        self.config = EngineConfig(strategy=name, params=params, free_text=True)
        self.engine = Engine(
            self.draft,
            SilentCodec(),
            verifier,
            self.clock,
            self.config,
            draft_step_s=0.072,
            budget=self.budget,
        )

    def ask(self, number: int) -> GenerationResult:
        config = replace(self.config, params=replace(self.config.params, seed=number))
        *_, last = self.engine.answer(Observation(SEEN, f"go to chair {number}"), config)
        assert last.result is not None
        return last.result

    @property
    def held(self) -> float:
        assert self.budget is not None
        return self.budget._held(self.clock.now())

    def walk(self, number: int, seconds: float) -> int:
        """Draft ahead about frame after frame for so long; return how many steps were run."""
        steps, until_s = 0, self.clock.now() + seconds
        while self.clock.now() < until_s:
            before_s = self.clock.now()
            steps += len(list(self.engine.draft_ahead(Observation(SEEN, f"go to chair {number}"))))
            if self.clock.now() == before_s:
                self.clock.sleep(0.05)
        return steps


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("name", DRAFTING)
def test_the_share_of_many_answers_is_at_most_the_budget(name: str, share: float) -> None:
    rig, free = Rig(f"{share}core", name), Rig("", name)
    for number in range(30):
        rig.ask(number)
        longest_s = max((end - begin for begin, end in rig.draft.spans), default=0.0)
        assert rig.draft.seconds <= share * rig.clock.now() + longest_s
        free.ask(number)
    wanted = free.draft.seconds / free.clock.now()
    # What is left in the bucket comes to later answers.
    assert rig.draft.seconds + rig.held >= 0.85 * min(share, 0.8 * wanted) * rig.clock.now()


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_within_any_stretch_of_time_it_is_at_most_what_was_saved_and_one_step(share: float) -> None:
    rig = Rig(f"{share}")
    for number in range(40):
        rig.ask(number)
        rig.clock.sleep(15.0 * (number % 4 == 0))
    spans = rig.draft.spans
    for first in range(0, len(spans), 7):
        taken_s = 0.0
        for begin, end in spans[first:]:
            taken_s += end - begin
            assert taken_s <= share * (end - spans[first][0] + SAVED_S) + PROMPT_S


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_it_holds_for_what_is_drafted_ahead_on_the_way(share: float) -> None:
    rig = Rig(f"{share}core")
    steps = 0
    for number in range(12):
        steps += rig.walk(number, 4.0)
        rig.ask(number)
    assert steps
    assert rig.draft.seconds <= share * rig.clock.now() + PROMPT_S
    assert rig.draft.seconds >= 0.85 * share * rig.clock.now()


@pytest.mark.parametrize("budget", ["0.001core", "0.03core", "0.3core", "2.5core"])
@pytest.mark.parametrize(("name", "rule"), RULES)
def test_no_budget_changes_a_token(name: str, rule: str, budget: str) -> None:
    free, bound = Rig("", name, rule), Rig(budget, name, rule)
    for number in range(5):
        expected, said = free.ask(number), bound.ask(number)
        assert len(said.tokens) == 40
        if rule == "coupled":
            assert said.tokens == expected.tokens


def test_sampled_answers_of_a_plentiful_budget_are_those_without_one_under_rejection() -> None:
    free, bound = Rig("", rule="rejection"), Rig("50core", rule="rejection")
    bound.clock.sleep(1.0)
    free.clock.sleep(1.0)
    assert [free.ask(n).tokens for n in range(5)] == [bound.ask(n).tokens for n in range(5)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_a_budget_and_with_one_that_is_never_reached_runs_are_the_same(name: str) -> None:
    """Rounds, times and bytes, not only tokens: no budget costs nothing."""
    rigs = [Rig(budget, name) for budget in ("", "0", "0core", "100core")]
    for rig in rigs:
        rig.clock.sleep(1.0)
    assert [rig.budget is None for rig in rigs] == [True, True, True, False]
    for number in range(6):
        free, *others = [rig.ask(number) for rig in rigs]
        assert all(other == free for other in others)
    assert len({rig.clock.now() for rig in rigs}) == 1


@pytest.mark.parametrize("name", DRAFTING)
def test_an_answer_that_may_not_draft_takes_hardly_longer_than_one_without_drafts(name: str) -> None:
    """Nobody waits for the budget: neither the edge, nor a cloud half that wants drafts."""
    plain, starved = Rig("", "autoregressive"), Rig("0.0001core", name)
    starved.ask(0), plain.ask(0)
    began_s = starved.clock.now(), plain.clock.now()
    for number in range(1, 6):
        starved.ask(number), plain.ask(number)
    took_s, plain_s = starved.clock.now() - began_s[0], plain.clock.now() - began_s[1]
    assert took_s <= 1.1 * plain_s


@pytest.mark.parametrize("name", DRAFTING)
def test_a_budget_that_ends_within_an_answer_lets_it_go_on(name: str) -> None:
    free, bound = Rig("", name), Rig("0.02core", name)
    bound.clock.sleep(SAVED_S)  # 0.2 s: the prompt and no more
    free.clock.sleep(SAVED_S)
    expected, said = free.ask(1), bound.ask(1)
    assert said.tokens == expected.tokens
    assert 0 < bound.draft.seconds <= PROMPT_S + 0.02 * bound.clock.now()
    assert said.total_s < 40 * (0.2 + 0.12) + 2


def test_the_prompt_is_not_read_again_before_what_an_answer_takes_is_there() -> None:
    """Else all of a small budget would go into prompts, with no tokens drafted after them."""
    rig = Rig("0.1core", "speculative")
    opened = []
    for number in range(40):
        steps = len(rig.draft.spans)
        rig.ask(number)
        opened.append(len(rig.draft.spans) - steps)
    begun = [steps for steps in opened[5:] if steps]
    assert begun
    assert 0 in opened[5:]
    assert sum(begun) / len(begun) > 10, "an answer that begins to draft can pay for most of its drafts"


def test_answers_that_are_open_together_share_one_budget() -> None:
    draft, target = pair(PairSpec(acceptance=0.8))
    clock = ProcessClock()
    verifier, budget = VirtualVerifier(target, GO2, LINK, clock, draft), budget_of("0.3core", clock)
    timed = Timed(paced_draft(draft, GO2, clock), clock)
    config = EngineConfig(params=SamplingParams(max_tokens=40, temperature=0.8), free_text=True)
    own = {"processes": verifier.processes, "budget": budget}
    engine = Engine(timed, SilentCodec(), verifier, clock, config, draft_step_s=0.072, **own)  # type: ignore[arg-type]
    for turn in range(8):
        with OpenAnswers(engine) as answers:
            for number in range(3 * turn, 3 * turn + 3):
                each = replace(config, params=replace(config.params, seed=number))
                answers.ask(Observation(SEEN, f"go to chair {number}"), each)
            while answers.open:
                step = answers.next(clock.now() + 60)
                assert step is not None
                assert step.error is None
    assert budget is not None
    assert budget.spent == pytest.approx(timed.seconds), "a step that several answers share costs once"
    assert budget.spent <= 0.3 * clock.now() + PROMPT_S
    assert budget.spent + budget._held(clock.now()) >= 0.85 * 0.3 * clock.now()


def test_by_the_wall_clock_it_holds_too() -> None:
    draft, target = pair(PairSpec(acceptance=0.8))
    fast = HardwareProfile("fast", 4, 10, 10, 15, 3)
    clock = WallClock()
    drafter = Timed(paced_draft(draft, fast, clock), clock)
    budget = budget_of("0.2core", clock)
    config = EngineConfig(params=SamplingParams(max_tokens=30), free_text=True)
    paced_target = LocalVerifier(target, clock, draft)
    engine = Engine(drafter, SilentCodec(), paced_target, clock, config, draft_step_s=0.004, budget=budget)
    began_s, number = clock.now(), 0
    while clock.now() < began_s + 2.0:
        list(engine.draft_ahead(Observation(SEEN, f"go to chair {number}")))
        *_, last = engine.answer(Observation(SEEN, f"go to chair {number}"))
        assert last.result is not None
        number += 1
        time.sleep(0.01)
    took_s = clock.now() - began_s
    assert 0.1 * took_s < drafter.seconds <= 0.2 * took_s + 0.1


def test_threads_that_ask_while_another_draws_see_no_more_than_there_is() -> None:
    clock = WallClock()
    budget = DraftBudget(0.5, clock.now, clock)
    begun, ended = time.monotonic(), threading.Event()
    seen: list[float] = []

    def watch() -> None:
        while not ended.is_set():
            seen.append(budget._held(clock.now()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        while time.monotonic() < begun + 0.3:
            if budget.allows(has_begun=True):
                with budget.step():
                    time.sleep(0.002)
    finally:
        ended.set()
        watcher.join()
    assert seen
    assert max(seen) < 0.5 * 0.3 / 2
    assert budget.spent <= 0.5 * (time.monotonic() - begun) + 0.1


# Texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  ", "0", "0.0", "0core", "0W", "0.00 W"])
def test_nothing_and_zero_are_no_limit(text: str, tmp_path: Path) -> None:
    assert budget_of(text, VirtualClock(), system=tmp_path) is None


@pytest.mark.parametrize(
    ("text", "rate"), [("0.5", 0.5), ("0.5core", 0.5), (".25 core", 0.25), ("2CORE", 2.0), (" 1. ", 1.0)]
)
def test_a_share_of_a_core(text: str, rate: float) -> None:
    budget = budget_of(text, VirtualClock())
    assert budget is not None
    assert budget.rate == rate


@pytest.mark.parametrize(
    "text",
    ["half", "-1", "-0.5core", "0.5 cores", "3 watts", "3kW", "nan", "inf", "1e3", "50%", "0,5", "W", "."],
)
def test_another_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^draft_budget .*such as 0\.5core.*3W"):
        check_settings(EdgeSettings(draft_budget=text))


def test_a_step_of_two_threads_costs_two_cores() -> None:
    clock = VirtualClock()
    budget = budget_of("1core", clock, threads=2)
    assert budget is not None
    clock.sleep(4.0)
    with budget.step():
        clock.sleep(1.0)
    assert budget.spent == 2.0
    assert budget._held(clock.now()) == 3.0


def test_a_step_that_fails_has_cost_what_it_took() -> None:
    clock = VirtualClock()
    budget = DraftBudget(1.0, clock.now, clock)

    def fail() -> None:
        with budget.step():
            clock.sleep(2.0)
            raise OverBudget

    with pytest.raises(OverBudget):
        fail()
    assert budget.spent == 2.0


# Watts -------------------------------------------------------------------------------------------


def put(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def processors(system: Path, *counts_uj: int) -> Iterator[Path]:
    for number, count in enumerate(counts_uj):
        name = f"class/powercap/intel-rapl:{number}"
        yield put(system / name, energy_uj=count, max_energy_range_uj=999_999_999)


def test_a_processors_counters_are_drawn_from_the_bucket(tmp_path: Path) -> None:
    first, _ = processors(tmp_path, 999_000_000, 5_000_000)
    put(tmp_path / "class/powercap/intel-rapl:0:0", energy_uj=0, max_energy_range_uj=999_999_999)
    clock = VirtualClock()
    budget = budget_of("3W", clock, system=tmp_path)
    assert budget is not None
    clock.sleep(2.0)
    with budget.step():
        clock.sleep(1.0)
        put(first, energy_uj=6_000_000)  # begins again at 0 after its range
        put(tmp_path / "class/powercap/intel-rapl:0:0", energy_uj=500_000_000)  # a part of the first
    assert budget.spent == pytest.approx(7.0)
    assert budget._held(clock.now()) == pytest.approx(3 * 3 - 7.0)
    put(first, energy_uj=900_000_000)
    assert budget.spent == pytest.approx(7.0), "what is used between steps is not drafting's"


@pytest.mark.parametrize("kind", ["hwmon", "iio"])
def test_a_jetsons_supply_is_drawn_from_the_bucket(kind: str, tmp_path: Path) -> None:
    if kind == "hwmon":
        sensor = put(tmp_path / "class/hwmon/hwmon1", in1_label="VDD_CPU", in1_input=9000, curr1_input=9000)
        put(sensor, in2_label="VDD_IN", in2_input=5000, curr2_input=2000)
        busy = {"curr2_input": 3000}
    else:
        sensor = put(
            tmp_path / "bus/iio/devices/iio:device0", rail_name_0="POM_5V_IN", in_power0_input=10_000
        )
        put(sensor, rail_name_1="POM_5V_CPU", in_power1_input=99_000)
        busy = {"in_power0_input": 15_000}
    clock = VirtualClock()
    budget = budget_of("3w", clock, system=tmp_path)
    assert budget is not None
    clock.sleep(5.0)
    with budget.step():
        clock.sleep(0.5)
        put(sensor, **busy)
    assert budget.spent == pytest.approx(7.5)


def test_watts_bound_the_energy_of_drafting(tmp_path: Path) -> None:
    """A computer that takes 4 W, and 10 W while it drafts."""
    (counter,) = processors(tmp_path, 0)
    rig = Rig("2W", system=tmp_path)

    def count() -> None:
        joules = 4.0 * rig.clock.now_s + 6.0 * rig.draft.seconds
        (counter / "energy_uj").write_text(str(round(1e6 * joules) % 1_000_000_000))

    rig.clock.on_now = count
    for number in range(15):
        rig.ask(number)
        assert 10.0 * rig.draft.seconds <= 2.0 * rig.clock.now() + 10.0 * PROMPT_S
    assert rig.budget is not None
    assert rig.budget.spent == pytest.approx(10.0 * rig.draft.seconds, rel=0.01)
    assert rig.budget.spent + rig.held >= 0.85 * 2.0 * rig.clock.now()


def test_watts_without_counters_are_refused_and_what_is_missing_is_named(tmp_path: Path) -> None:
    put(tmp_path / "class/hwmon/hwmon0", name="cpu_thermal", in1_label="VDD_CPU", in1_input=1, curr1_input=1)
    with pytest.raises(ConfigError) as refused:
        budget_of("3W", VirtualClock(), system=tmp_path)
    for part in ("draft_budget '3W'", "energy_uj", "VDD_IN", str(tmp_path / "class/hwmon"), "0.5core"):
        assert part in str(refused.value)


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    (counter,) = processors(tmp_path, 7)
    (counter / "energy_uj").unlink()
    (counter / "energy_uj").mkdir()  # cannot be read, not even by root
    with pytest.raises(ConfigError, match="by root"):
        BoardEnergy(tmp_path, VirtualClock())


def test_a_counter_that_fails_later_pauses_drafting_and_is_tried_again(tmp_path: Path) -> None:
    (counter,) = processors(tmp_path, 0)
    clock = VirtualClock()
    budget = budget_of("3W", clock, system=tmp_path)
    assert budget is not None
    clock.sleep(100.0)
    (counter / "energy_uj").unlink()
    assert math.isnan(budget.used())
    with budget.step():
        clock.sleep(0.1)
    assert not budget.allows(has_begun=True)
    put(counter, energy_uj=1_000_000)
    clock.sleep(1.0)
    assert budget.allows(has_begun=True)
    with budget.step():
        put(counter, energy_uj=2_000_000)
    assert budget._held(clock.now()) == pytest.approx(3.0 - 1.0)
