"""Base learners as named tensors for files."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats
from mil.base_learners import BASE_LEARNERS
from mil.base_learners.kernel import PatientKernel
from mil.base_learners.learners import BaseLearners
from mil.base_learners.logistic import LinearModel
from mil.base_learners.pooling import Codebook

__all__ = ["base_learners_from_tensors", "base_learners_to_tensors"]

_PARTS = ("centre", "scale", "weights", "bias")
_SIMILARITY = tuple(f"similarity.{part}" for part in ("centre", "scale", "anchors", "width"))
_STATISTICS = 6


def base_learners_to_tensors(learners: BaseLearners) -> dict[str, Tensor]:
    """Return all numbers of base learners by stored name.

    They are float64, but the cluster centres float32 and the anchors of the kernel float16.
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
    tensors["codebook.centres"] = learners.codebook.centres.contiguous()
    width = torch.tensor(learners.codebook.squared_width, dtype=torch.float64)
    if learners.directions is not None:
        tensors["directions"] = torch.from_numpy(np.array(learners.directions, order="C"))
    if learners.kernel is not None:
        kernel = learners.kernel
        parts = (kernel.centre, kernel.scale, kernel.anchors.astype(np.float16), kernel.width)
        tensors |= {
            n: torch.from_numpy(np.array(p)) for n, p in zip(_SIMILARITY, parts, strict=True)
        }
    return {**tensors, "codebook.squared_width": width}


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
    has_directions, has_kernel = "directions" in tensors, "similarity.anchors" in tensors
    names = BASE_LEARNERS[: 8 if has_kernel else 7 if has_directions else 5]
    known = {f"{name}.{part}" for name in names for part in (*_PARTS, "limit")}
    known |= {"codebook.centres", "codebook.squared_width"}
    known |= {"directions"} if has_directions or has_kernel else set()
    known |= set(_SIMILARITY) if has_kernel else set()
    if set(tensors) != known:
        different = ", ".join(sorted(set(tensors) ^ known)[:3])
        raise ValueError(f"base learners: missing or unknown {different}")
    centres = tensors["codebook.centres"]
    if centres.ndim != 2 or centres.shape[1] != n_components or not len(centres):
        raise ValueError(f"base learners: centres of shape {tuple(centres.shape)}")
    if centres.dtype != torch.float32 or not torch.isfinite(centres).all():
        raise ValueError("base learners: centres that are not finite float32 numbers")
    n_anchors = len(tensors["similarity.anchors"]) if has_kernel else 0
    widths = {
        "mean": dim, "mean + logistic": dim, "histogram": len(centres), "extremes": 2 * dim,
        "spread": n_components, "covariance": n_components**2,
        "projections": _STATISTICS * n_classes, "kernel": n_anchors,
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
    kernel = None
    if has_kernel:
        kernel = PatientKernel(
            centre=read("similarity.centre", 3 * dim),
            scale=read("similarity.scale", 3 * dim),
            anchors=read("similarity.anchors", n_anchors, 3 * dim, dtype=torch.float16).astype(
                np.float32
            ),
            width=float(read("similarity.width", positive=True)),
        )
    squared_width = float(read("codebook.squared_width", positive=True))
    return BaseLearners(
        models=models,
        codebook=Codebook(centres=centres, squared_width=squared_width),
        directions=read("directions", n_components, n_classes) if len(names) > 5 else None,
        kernel=kernel,
    )
