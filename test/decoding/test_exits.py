"""Confidences of early verdicts go through the checkpoint's calibration, and raw where it says nothing."""

from dataclasses import dataclass

import numpy as np
import pytest

from test.tables import TARGET, TableContext
from vlm_spec_decode.core.types import AnswerRequest, Observation, SamplingParams
from vlm_spec_decode.decoding.early_exit import ExitCalibration, verdict_chance
from vlm_spec_decode.decoding.grammar_mask import GrammarWalk, MaskedContext
from vlm_spec_decode.decoding.sampling import softmax_at
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.strategies.registry import strategy

TABLE = ExitCalibration({0: ((0.5, 0.2), (0.9, 0.6), (1.0, 0.97))})
ROW = np.array([1.0, 3.0, 0.0], dtype=np.float32)
SURE = softmax_at(ROW, 1)  # 0.84: of the middle bin


@dataclass
class CalibratedContext(TableContext):
    def exit_chance(self, exit_layer: int, confidence: float) -> float:
        return TABLE.chance(exit_layer, confidence)


@pytest.mark.parametrize(
    ("confidence", "chance"), [(0.0, 0.2), (0.5, 0.2), (0.51, 0.6), (0.9, 0.6), (0.93, 0.97), (1.0, 0.97)]
)
def test_a_bin_includes_its_upper_end(confidence, chance):
    assert TABLE.chance(0, confidence) == chance
    assert TABLE.chance(3, confidence) == confidence  # another exit: nothing is known of it


def test_the_table_is_about_first_choices():
    context = CalibratedContext(TARGET, num_exits=1)
    assert verdict_chance(context, 0, ROW, 0, 1) == 0.6
    assert verdict_chance(context, 0, ROW, 0, 0) == softmax_at(ROW, 0)
    assert verdict_chance(TableContext(TARGET), 0, ROW, 0, 1) == SURE


def test_a_grammar_hides_no_calibration():
    masked = MaskedContext(CalibratedContext(TARGET), GrammarWalk.__new__(GrammarWalk))
    assert masked.exit_chance(0, 0.7) == 0.6
    assert MaskedContext(TableContext(TARGET), GrammarWalk.__new__(GrammarWalk)).exit_chance(0, 0.7) == 0.7


def test_early_verdicts_carry_the_calibrated_confidence():
    confidences = []
    for context in (CalibratedContext(TARGET, num_exits=1), TableContext(TARGET, num_exits=1)):
        request = AnswerRequest(1, Observation(None, "go"), SamplingParams(stop_ids=(2,)), "hybrid")
        session = Session(request, context, strategy("hybrid").cloud())
        plan = session.plan() or pytest.fail("no pass although nothing is committed")
        seen = []
        session.run(plan, seen.append)
        confidences.append(seen[0].confidence)
    calibrated, raw = confidences
    assert calibrated == TABLE.chance(0, raw) != raw
