"""Whether the cloud keeps a copy of the draft beside its target: `vsd cloud --draft auto`, the default.

A copy is kept if it fits, its weights into the memory that is free beside the answers' caches, and helps: with
drafts of the acceptance of a good pair a token must cost less than a step of the target, by what one step of
either takes, measured here (`DraftCosts.gain`). Whether it is used is decided pass by pass from the
acceptance of each answer (`strategies.hybrid.self_draft`), so that a weak draft costs its memory and no time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_spec_decode.cloud.config import DRAFT_AUTO, CloudConfig
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import VocabularyMismatch, VsdError
from vlm_spec_decode.core.images import encode_jpeg
from vlm_spec_decode.core.ports import Clock, Model
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.decoding.policy import DraftCosts
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import assert_same_vocabulary, load_model, shipped
from vlm_spec_decode.models.spec import parse_spec

log = logging.getLogger(__name__)
