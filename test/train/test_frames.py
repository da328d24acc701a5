"""Frames rendered for training: written once, gone on with, never mixed."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.models.tiny import IMAGE_PX
from vlm_spec_decode.train import frames
from vlm_spec_decode.train.config import DataConfig
from vlm_spec_decode.train.frames import Column, open_frames, run_data


@pytest.mark.timeout(120)
def test_rendering_goes_on_where_it_stopped_and_never_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "CHUNK_SCENES", 1)
    monkeypatch.setattr(frames, "ProcessPoolExecutor", InThisProcess)
    config = DataConfig(tmp_path / "frames", num_scenes=2, poses=2)
    InThisProcess.left = 1
    with pytest.raises(KeyboardInterrupt):
        run_data(config)
    with pytest.raises(ConfigError, match="holds no finished frames"):
        open_frames(config.out)
    with pytest.raises(ConfigError, match="frames of other settings"):
        run_data(replace(config, num_scenes=4, poses=1))

    InThisProcess.left = 1
    digest = run_data(config)["digest"]
    InThisProcess.left = 2
    assert run_data(replace(config, out=tmp_path / "whole"))["digest"] == digest
    found, whole = open_frames(config.out), open_frames(tmp_path / "whole")
    assert found.frames.shape == (4, IMAGE_PX, IMAGE_PX, 3)
    assert np.array_equal(found.frames, whole.frames)
    assert np.array_equal(found.patches, whole.patches)
    assert (found.objects[..., Column.KIND] >= 0).any(axis=1).all()
    assert len({frame.tobytes() for frame in found.frames}) == 4


def test_a_disk_without_room_is_named_before_anything_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"no room for 3 MB in .*: No space left on device"):
        run_data(DataConfig(tmp_path, num_scenes=10, poses=6))
    assert not list(tmp_path.iterdir())


class InThisProcess:
    """A pool without processes that is interrupted after `left` jobs."""

    left = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work, jobs):
        for job in jobs:
            if not self.left:
                raise KeyboardInterrupt
            type(self).left -= 1
            yield work(job)
