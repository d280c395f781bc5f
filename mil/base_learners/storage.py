"""Base learners as named tensors for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats
from mil.base_learners import BASE_LEARNERS, EARLIER_LEARNERS
from mil.base_learners.kernel import LAPLACIAN, RANKS, VALUES, PatientKernels
from mil.base_learners.learners import BaseLearners
from mil.base_learners.logistic import LinearModel
from mil.base_learners.pooling import Codebook
from mil.base_learners.second_order import N_STATISTICS

__all__ = ["base_learners_from_tensors", "base_learners_to_tensors"]

_PARTS = ("centre", "scale", "weights", "bias")
_ANCHORS = tuple(f"similarity.{part}" for part in ("centre", "scale", "anchors"))
_WIDTHS = {LAPLACIAN: "similarity.width", VALUES: "value kernel.width", RANKS: "rank kernel.width"}
_CODEBOOK = ("codebook.centres", "codebook.squared_width")
_DIRECTIONS = {name: f"{name}.directions" for name in ("projections", "mixture")}
_OF_COMPONENTS = "directions"  # of projections before version 7


def base_learners_to_tensors(learners: BaseLearners) -> dict[str, Tensor]:
    """Return all numbers of base learners by stored name.

    They are float64, but the anchors of the kernels float16, and cluster centres float32.
    """
    # Copies: arrays that come from another process are read-only, which torch does not know.
    tensors = {
        f"{name}.{part}": torch.from_numpy(np.array(getattr(model, part), order="C"))
        for name, model in learners.models.items()
        for part in _PARTS
    }
    for name, model in learners.models.items():
        tensors[f"{name}.limit"] = torch.tensor(
            model.limit if np.isfinite(model.limit) else 0.0, dtype=torch.float64
        )
    if learners.codebook is not None:
        width = torch.tensor(learners.codebook.squared_width, dtype=torch.float64)
        parts = (learners.codebook.centres.contiguous(), width)
        tensors |= dict(zip(_CODEBOOK, parts, strict=True))
    directions = {_DIRECTIONS[name]: own for name, own in learners.directions.items()}
    if learners.component_directions is not None:
        directions[_OF_COMPONENTS] = learners.component_directions
    tensors |= {n: torch.from_numpy(np.array(own, order="C")) for n, own in directions.items()}
    if learners.kernels is not None:
        kernels = learners.kernels
        arrays = (kernels.centre, kernels.scale, kernels.anchors.astype(np.float16))
        tensors |= {n: torch.from_numpy(np.array(a)) for n, a in zip(_ANCHORS, arrays, strict=True)}
        for name, of_kernel in kernels.widths.items():
            tensors[_WIDTHS[name]] = torch.tensor(of_kernel, dtype=torch.float64)
    return tensors


def base_learners_from_tensors(
    tensors: Mapping[str, Tensor], *, dim: int, n_components: int, n_classes: int
) -> BaseLearners:
    """Return the base learners of :func:`base_learners_to_tensors`, also of earlier versions.

    ``dim``, ``n_components`` and ``n_classes`` are those of the heads beside them.

    Raises
    ------
    ValueError
        If a tensor is missing, unknown, of another shape or not finite, or a scale is not above 0.
    """
    names = _names(tensors)
    widths_of_kernels = {name: _WIDTHS[name] for name in names if name in _WIDTHS}
    known = _known(names)
    if set(tensors) != known:
        different = ", ".join(sorted(set(tensors) ^ known)[:3])
        raise ValueError(f"base learners: missing or unknown {different}")
    n_anchors, n_centres = (_n_rows(tensors, name) for name in (_ANCHORS[-1], _CODEBOOK[0]))
    widths = {
        "mean": dim, "mean + logistic": dim, "histogram": n_centres, "extremes": 2 * dim,
        "spread": n_components, "covariance": n_components**2,
        **dict.fromkeys(_DIRECTIONS, N_STATISTICS * n_classes), **dict.fromkeys(_WIDTHS, n_anchors),
    }  # fmt: skip

    def read(
        name: str, *shape: int, positive: bool = False, dtype: torch.dtype = torch.float64
    ) -> Floats:
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ValueError(f"base learners: {name} is {found}, not {dtype} of shape {shape}")
        values = np.asarray(tensor.numpy(), np.float64)
        if not np.isfinite(values).all() or (positive and not (values > 0).all()):
            raise ValueError(f"base learners: {name} holds a number out of range")
        return values

    models = {}
    for name in names:
        width = widths[name]
        limit = float(read(f"{name}.limit"))
        if limit < 0:
            raise ValueError(f"base learners: {name}.limit {limit:g}, below 0")
        models[name] = LinearModel(
            centre=read(f"{name}.centre", width),
            scale=read(f"{name}.scale", width, positive=True),
            limit=limit or np.inf,
            weights=read(f"{name}.weights", width, n_classes),
            bias=read(f"{name}.bias", n_classes),
        )
    kernels = codebook = None
    if widths_of_kernels:
        centre, scale = (read(name, 3 * dim) for name in _ANCHORS[:2])
        anchors = read(_ANCHORS[2], n_anchors, 3 * dim, dtype=torch.float16)
        kernels = PatientKernels(
            centre=centre,
            scale=scale,
            anchors=anchors.astype(np.float32),
            widths={
                name: float(read(stored, positive=True))
                for name, stored in widths_of_kernels.items()
            },
        )
    if "histogram" in names:
        centres = read(_CODEBOOK[0], n_centres, n_components, dtype=torch.float32)
        codebook = Codebook(
            centres=torch.from_numpy(centres.astype(np.float32)),
            squared_width=float(read(_CODEBOOK[1], positive=True)),
        )
    return BaseLearners(
        models=models,
        directions={
            name: read(stored, dim, n_classes)
            for name, stored in _DIRECTIONS.items()
            if stored in known
        },
        kernels=kernels,
        codebook=codebook,
        component_directions=read(_OF_COMPONENTS, n_components, n_classes)
        if _OF_COMPONENTS in known
        else None,
    )


def _names(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the learners that tensors are of, by what no other version has."""
    if _CODEBOOK[0] not in tensors:
        has_mixture = _DIRECTIONS["mixture"] in tensors
        return tuple(n for n in BASE_LEARNERS if has_mixture or n != "mixture")
    if _ANCHORS[-1] in tensors:
        return EARLIER_LEARNERS
    return EARLIER_LEARNERS[: 7 if _OF_COMPONENTS in tensors else 5]


def _known(names: Sequence[str]) -> set[str]:
    """Return the tensors that the learners have."""
    known = {f"{name}.{part}" for name in names for part in (*_PARTS, "limit")}
    if "histogram" in names:
        known |= set(_CODEBOOK)
    if "mixture" in names:
        known |= set(_DIRECTIONS.values())
    elif "projections" in names:
        known |= {_OF_COMPONENTS}
    widths = {_WIDTHS[name] for name in names if name in _WIDTHS}
    return known | widths | set(_ANCHORS) if widths else known


def _n_rows(tensors: Mapping[str, Tensor], name: str) -> int:
    """Return the length of the first axis of a tensor, at least 1."""
    shape = tensors[name].shape if name in tensors else ()
    return int(max([1, *shape[:1]]))
