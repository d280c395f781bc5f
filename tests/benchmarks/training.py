"""Time of our cross-validation compared with the usual recipe, on the same folds.

Bags are generated, with a signal in a tenth of the tiles of the second class. The usual recipe: one
head per fold, batches of one whole bag, Adam at 1e-4, log loss, an inner split of a fifth of the
training patients, patience 20, at most 200 epochs, best weights kept. Its head is ours (gated
attention) on the embeddings as they are, held in memory as float32. Ours trains with its defaults,
an ensemble a fold. Both are cross-fitted with the same calibrator. Reading is in no time. Prints
one JSON object:

``speedup``
    ``peer_s / ours_s``, both seconds to the end of cross-validation.
``log_loss_difference``
    Weighted log loss, ours minus theirs, with its 95 % bootstrap interval over patients, paired.
``matmul_fraction``
    Floating-point operations of our matrix products, counted in the first folds that are trained
    together, trained once more without being timed, and taken to grow with epochs for the others;
    divided by ``ours_s`` and by the machine's rate on products of 2,048 × 2,048 float32 numbers.
``busy_matmul_fraction``
    The same by processor seconds of this process on both sides, which others on the machine hardly
    change; null on an accelerator. ``ours_busy_s`` and ``peer_busy_s`` are such seconds.

    python -m tests.benchmarks.training --patients 120 --repeats 1

With ``--stack-over-gated`` the default is compared with its own attention heads alone instead, in
all that ``mil train`` trains with either: folds, the pairs of folds of a stack, and what is
deployed. ``stack_over_gated`` is ``stack_busy_s / gated_busy_s``, processor seconds of this
process; ``stack_s`` and ``gated_s`` are seconds.

    python -m tests.benchmarks.training --stack-over-gated --patients 632 --tiles 60
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from features.parallel.devices import choose_device
from mil.calibration import cross_fit
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort, Patient
from mil.data.splits import Fold, patient_folds, stratified_fold_ids
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.metrics import Interval, weighted_log_loss
from mil.heads import Head, build_head
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate, resolve_components
from mil.training.ensemble import max_parallel_ensembles, train_ensemble
from mil.training.fold_jobs import local_fold_executor
from mil.training.pair_folds import pair_calibrators, pair_folds
from tests.fakes import FINGERPRINT

__all__ = ["generate", "main", "measure", "measure_stack", "peer_logits"]

Floats = npt.NDArray[np.float64]

_N_FACTORS = 256
_SIGNAL_SHARE = 0.1
_SIGNAL = 2.0  # standard deviations of the projection it lies along
_PATIENCE = 20
_MOST_EPOCHS = 200
_N_INNER_PARTS = 5


def generate(
    *,
    n_patients: int,
    n_tiles: int,
    dim: int,
    seed: int = 0,
    signal: float = _SIGNAL,
    share: float = _SIGNAL_SHARE,
    n_moved: int = 32,
    every: int = 3,
) -> tuple[PatientBags, Cohort]:
    """Ragged bags around ``n_tiles``, float16, and their cohort.

    Tiles have 256 factors of falling variance, as embeddings have; a patient's tiles share a shift
    of half their own spread, which no label explains. One patient of ``every`` is of the second
    class, where a ``share`` of the tiles is moved by ``signal`` standard deviations of the
    projection they move along, a direction among the first ``n_moved`` factors.
    """
    rng = np.random.default_rng(seed)
    deviations = (1 + np.arange(min(_N_FACTORS, dim))) ** -0.5
    mixing = np.linalg.qr(rng.normal(size=(dim, len(deviations))))[0].T * np.sqrt(dim)
    direction = np.zeros(len(deviations))
    direction[:n_moved] = rng.normal(size=min(n_moved, len(direction)))
    direction /= np.linalg.norm(direction)
    step = signal * np.linalg.norm(direction * deviations) * direction
    features, patients = {}, []
    for number in range(n_patients):
        name, label = f"{number:04d}", number % every == 0
        length = int(rng.integers(n_tiles // 2, n_tiles + n_tiles // 2 + 1))
        factors = deviations * (
            rng.normal(size=(length, len(deviations))) + 0.5 * rng.normal(size=len(deviations))
        )
        if label:
            factors[: max(1, round(share * length))] += step
        noise = 0.05 * rng.standard_normal((length, dim), np.float32)
        features[name] = (rng.permutation(factors) @ mixing + noise).astype(np.float16)
        patients.append(
            Patient(patient_id=name, slide_ids=(name,), label="AB"[label], center_id=None)
        )
    cohort = Cohort(path=Path("generated.csv"), patients=tuple(patients), classes=("A", "B"))
    return PatientBags(
        features=features, fingerprint=replace(FINGERPRINT, dim=dim), slides=()
    ), cohort


def peer_logits(
    bags: Sequence[Tensor],
    labels: Tensor,
    folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]],
    *,
    device: torch.device,
) -> tuple[Floats, list[int]]:
    """Out-of-fold logits of the usual recipe and the epochs that each fold took.

    Parameters
    ----------
    bags
        Each of shape (tiles, dim), float32.
    labels
        Shape (patients,), int64.
    folds
        Patients to learn from, patients to judge, and a seed.
    device
        Where it runs.
    """
    logits = np.full((len(bags), 2), np.nan)
    n_epochs = []
    for train, test, seed in folds:
        stops = (
            stratified_fold_ids(labels[train].numpy(), n_folds=_N_INNER_PARTS, seed=(seed,)) == 0
        )
        torch.manual_seed(seed)
        dim = bags[0].shape[1]
        head = build_head("gated", dim=dim, n_components=dim, n_classes=2).to(device)
        n_epochs.append(_train_peer(head, bags, labels.to(device), train[~stops], train[stops]))
        head.eval()
        with torch.inference_mode():
            for index in test:
                logits[index] = _score(head, bags[index]).cpu().numpy()[0]
    return logits, n_epochs


def _train_peer(
    head: Head,
    bags: Sequence[Tensor],
    labels: Tensor,
    learned: npt.NDArray[np.int64],
    stopped_on: npt.NDArray[np.int64],
) -> int:
    optimiser = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=1e-4)
    best, best_epoch, best_state = float("inf"), -1, copy.deepcopy(head.state_dict())
    for epoch in range(_MOST_EPOCHS):
        head.train()
        for index in learned[torch.randperm(len(learned)).numpy()]:
            optimiser.zero_grad()
            functional.cross_entropy(_score(head, bags[index]), labels[index][None]).backward()
            optimiser.step()
        head.eval()
        with torch.inference_mode():
            losses = [
                functional.cross_entropy(_score(head, bags[i]), labels[i][None]).item()
                for i in stopped_on
            ]
        if (loss := float(np.mean(losses))) < best:
            best, best_epoch, best_state = loss, epoch, copy.deepcopy(head.state_dict())
        if epoch - best_epoch >= _PATIENCE:
            break
    head.load_state_dict(best_state)
    return epoch + 1


def _score(head: Head, bag: Tensor) -> Tensor:
    return head.forward_components(
        bag[None], torch.ones(1, len(bag), dtype=torch.bool, device=bag.device)
    ).logits


def measure(
    *, n_patients: int, n_repeats: int, n_folds: int, n_tiles: int, dim: int, device: str
) -> dict[str, object]:
    """Both sides on the same generated cohort and folds; what is printed."""
    bags, cohort = generate(n_patients=n_patients, n_tiles=n_tiles, dim=dim)
    folds = patient_folds(cohort, n_folds=n_folds, n_repeats=n_repeats, seed=0)
    settings = resolve_components(TrainConfig(device=device), folds)
    rate, busy_rate = _matmul_rates(torch.device(device))
    started, busy = time.perf_counter(), time.process_time()
    result = cross_validate(bags, cohort, folds, config=settings, seed=0)
    ours_s, ours_busy_s = time.perf_counter() - started, time.process_time() - busy
    print(f"ours: {ours_s:.1f} s", file=sys.stderr)  # noqa: T201
    started, busy = time.perf_counter(), time.process_time()
    theirs, n_epochs = _cross_validate_peer(bags, cohort, folds, device=torch.device(device))
    peer_s, peer_busy_s = time.perf_counter() - started, time.process_time() - busy
    print(f"the usual recipe: {peer_s:.1f} s", file=sys.stderr)  # noqa: T201
    proba, peer_proba = (
        cross_fit(logits, cohort.labels, result.fold, calibrator="platt")
        for logits in (result.logits, theirs)
    )
    difference = _difference(proba, peer_proba, cohort.labels)
    with FlopCounterMode(display=False) as counted:
        first = folds[: max_parallel_ensembles(bags, settings)]
        one = cross_validate(bags, cohort, first, config=settings, seed=0)
    n_epochs_ours, n_epochs_one = (sum(map(len, f.history.values())) for f in (result, one))
    n_operations = counted.get_total_flops() * n_epochs_ours / n_epochs_one
    return {
        "speedup": peer_s / ours_s,
        "peer_s": peer_s,
        "ours_s": ours_s,
        "log_loss_difference": {
            "value": difference.value,
            "interval": [difference.low, difference.high],
        },
        "matmul_fraction": n_operations / ours_s / rate,
        "busy_matmul_fraction": n_operations / ours_busy_s / busy_rate if device == "cpu" else None,
        "ours_busy_s": ours_busy_s,
        "peer_busy_s": peer_busy_s,
        "ours_log_loss": _mean_loss(proba, cohort.labels),
        "peer_log_loss": _mean_loss(peer_proba, cohort.labels),
        "ours_heads": len(folds) * settings.n_members,
        "ours_stops_early": settings.early_stopping,
        "peer_heads": len(folds),
        "peer_epochs": n_epochs,
        "matmul_gflops": rate / 1e9,
    }


def measure_stack(
    *, n_patients: int, n_repeats: int, n_folds: int, n_tiles: int, dim: int, device: str
) -> dict[str, object]:
    """Time of all training with the default stack, and with ``gated`` alone; what is printed."""
    bags, cohort = generate(n_patients=n_patients, n_tiles=n_tiles, dim=dim)
    folds = patient_folds(cohort, n_folds=n_folds, n_repeats=n_repeats, seed=0)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    import_module("torch._dynamo")  # which the first optimiser imports
    times: dict[str, float] = {}
    for head in ("gated", "stack"):
        settings = resolve_components(TrainConfig(head=head, device=device), folds)
        started, busy = time.perf_counter(), time.process_time()
        with local_fold_executor(bags) as workers:
            cross_validate(bags, cohort, folds, config=settings, seed=0, executor=workers)
            pair_calibrators(
                bags, cohort, folds, pair_folds(cohort, folds) if settings.is_stack else (),
                config=settings, seed=0, calibrator="platt", on_head=lambda: None,
                executor=workers,
            )  # fmt: skip
        train_ensemble(bags, labels, n_classes=2, config=settings, seed=(0, 2))
        times[f"{head}_s"] = time.perf_counter() - started
        times[f"{head}_busy_s"] = time.process_time() - busy
    return {
        "stack_over_gated": times["stack_busy_s"] / times["gated_busy_s"],
        **times,
    }


def _cross_validate_peer(
    bags: PatientBags, cohort: Cohort, folds: Sequence[Fold], *, device: torch.device
) -> tuple[Floats, list[int]]:
    """Logits of shape (repeats, patients, classes), and epochs by fold."""
    tensors = [torch.from_numpy(t.astype(np.float32)).to(device) for t in bags.features.values()]
    places = {name: index for index, name in enumerate(cohort.patient_ids)}
    logits, n_epochs = [], []
    for repeat in range(1 + folds[-1].repeat):
        splits = [
            (
                np.array([places[name] for name in fold.train_ids]),
                np.array([places[name] for name in fold.test_ids]),
                fold.repeat * 1000 + fold.index,
            )
            for fold in folds
            if fold.repeat == repeat
        ]
        result, epochs = peer_logits(
            tensors, torch.from_numpy(cohort.labels), splits, device=device
        )
        logits.append(result)
        n_epochs += epochs
    return np.stack(logits), n_epochs


def _difference(ours: Floats, theirs: Floats, labels: npt.NDArray[np.int64]) -> Interval:
    """Weighted log loss, ours minus theirs; probabilities of shape (repeats, patients, classes)."""
    n_classes = ours.shape[2]

    def paired(both: Floats, truth: npt.NDArray[np.int64]) -> float:
        return weighted_log_loss(both[:, :n_classes], truth) - weighted_log_loss(
            both[:, n_classes:], truth
        )

    both = np.concatenate([ours, theirs], axis=2)
    return stratified_bootstrap({"": paired}, both, labels, n_resamples=2000, seed=0)[""]


def _mean_loss(proba: Floats, labels: npt.NDArray[np.int64]) -> float:
    return float(np.mean([weighted_log_loss(of_repeat, labels) for of_repeat in proba]))


def _matmul_rates(device: torch.device) -> tuple[float, float]:
    """Floating-point operations of large float32 products, the best of five runs.

    By second, and by processor second.
    """
    a = torch.randn(2048, 2048, device=device)
    best = best_busy = float("inf")
    for _ in range(5):
        started, busy = time.perf_counter(), time.process_time()
        float((a @ a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
        best_busy = min(best_busy, time.process_time() - busy)
    return 2 * 2048**3 / best, 2 * 2048**3 / best_busy


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=1, help="cross-validations")
    parser.add_argument("--folds", type=int, default=5, help="folds of each")
    parser.add_argument("--tiles", type=int, default=500, help="mean tiles of a patient")
    parser.add_argument("--dim", type=int, default=1280, help="length of an embedding")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--stack-over-gated", action="store_true", help="compare with --head gated instead"
    )
    given = parser.parse_args(arguments)
    compare = measure_stack if given.stack_over_gated else measure
    sizes = {
        "n_patients": given.patients, "n_tiles": given.tiles, "dim": given.dim,
        "n_folds": given.folds, "n_repeats": given.repeats,
    }  # fmt: skip
    device = str(choose_device(given.device))
    result = {
        **compare(**sizes, device=device), **sizes, "device": device,
        "n_threads": torch.get_num_threads(),
    }  # fmt: skip
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
