from __future__ import annotations

import pytest
import torch

from features.errors import MilError
from features.parallel import devices
from features.parallel.devices import choose_device, device_type, parse_devices
from features.utils import hardware


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(MilError, match="device 'warp'"):
        choose_device("warp")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_named_as_the_reason(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(MilError, match="CUDA_VISIBLE_DEVICES hides all GPUs: unset it"):
        parse_devices("cuda:0,1")
    with pytest.raises(MilError, match="CUDA_VISIBLE_DEVICES hides all GPUs: unset it"):
        choose_device("cuda:99")
    with pytest.raises(MilError, match="device 'warp'") as caught:
        choose_device("warp")
    assert not caught.value.hint


def test_auto_is_cuda_or_the_processor_and_nothing_that_was_never_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(("has_gpu", "auto"), [(True, "cuda"), (False, "cpu")])
def test_the_type_of_a_device_is_known_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, auto: str
) -> None:
    monkeypatch.setattr(devices, "may_have_gpu", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device_type(name) for name in ("auto", "cuda:1", "cpu")] == [auto, "cuda", "cpu"]


def test_lists_of_devices_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert parse_devices("auto") == ("cuda:0", "cuda:1", "cuda:2")
    assert parse_devices("cuda:0,2") == parse_devices("cuda:0,cuda:2") == ("cuda:0", "cuda:2")
    assert parse_devices("cuda:1") == ("cuda:1",)
    assert parse_devices("cpu,cpu") == ("cpu", "cpu")
    for wrong in ("cuda:0,3", "cpu,1", "cuda:0,", "cpu,warp"):
        with pytest.raises(MilError, match="this machine has cpu, cuda:0, cuda:1, cuda:2"):
            parse_devices(wrong)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert parse_devices("auto") == ("auto",)


def test_torch_is_not_asked_for_devices_that_cannot_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask() -> int:
        raise AssertionError("asked")

    monkeypatch.setattr(torch.cuda, "device_count", ask)
    assert parse_devices("cpu") == ("cpu",)
    monkeypatch.setattr(hardware.metadata, "version", lambda _: "2.14.1")
    monkeypatch.setattr(hardware.Path, "exists", lambda path: path.name == "nvidiactl")
    with pytest.raises(AssertionError, match="asked"):
        parse_devices("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # every GPU is hidden
    assert parse_devices("auto") == ("auto",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(hardware.metadata, "version", lambda _: "2.14.1+cpu")
    assert parse_devices("auto") == ("auto",)
