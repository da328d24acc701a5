"""What several tests over sockets need."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_spec_decode.transport import keys


@pytest.fixture(scope="module")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    keys.generate(folder)
    return folder
