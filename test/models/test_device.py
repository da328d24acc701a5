"""A device that torch does not have is named before anything is loaded onto it, with what to install."""

from __future__ import annotations

import pytest
import torch

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud.config import CloudConfig, check, checked
from vlm_spec_decode.core.errors import ConfigError, ModelError
from vlm_spec_decode.models.engines.base import LoadOptions
from vlm_spec_decode.models.hardware import check_device
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.spec import parse_spec


@pytest.fixture
def cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize("name", ["nonsense", "cuda:x", "cuda:", "tpu", "CUDA", "cuda:-1", "meta", ""])
def test_what_is_no_device_is_refused_without_torch(name: str) -> None:
    with pytest.raises(ModelError, match="unknown device"):
        LoadOptions(device=name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.usefixtures("cpu_build")
def test_a_cpu_build_is_named_with_the_wheel_to_install(name: str) -> None:
    with pytest.raises(ModelError, match=rf"device {name}: .* CPU build; install .*whl/cu"):
        check_device(name)
    with pytest.raises(ModelError, match="CPU build"):
        load_model("shipped:draft", device=name)
    with pytest.raises(ModelError, match="CPU build"):
        load_model(f"shipped:draft,device={name}")


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_is_not_there_is_named() -> None:
    check_device("cuda")
    check_device("cuda:0")
    with pytest.raises(ModelError, match=r"finds cuda:0; look at nvidia-smi and CUDA_VISIBLE_DEVICES"):
        check_device("cuda:7")


def test_a_build_for_gpus_without_one_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch finds no GPU; look at"):
        check_device("cuda")


def test_what_is_here_passes() -> None:
    for name in ("cpu", "auto"):
        check_device(name)
        assert parse_spec(f"x,device={name}", LoadOptions()).options.device == name


@pytest.mark.usefixtures("cpu_build")
def test_the_cloud_looks_before_it_loads() -> None:
    settings = [
        {"device": "cuda"},
        {"model": "shipped:target,device=cuda:3"},
        {"draft": "shipped,device=cuda"},
    ]
    for values in settings:
        config = CloudConfig(language=language(True), insecure=True, **checked(values, "file"))
        with pytest.raises(ConfigError, match="CPU build"):
            check(config)
    # On a cluster it is other computers that must have it.
    check(
        CloudConfig(
            language=language(True), insecure=True, device="cuda", replicas=1, ray_address="10.0.0.1:6379"
        )
    )
