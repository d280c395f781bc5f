"""Registry of published pathology encoders: how to build each, as its public model card states.

Every entry names its card. Nothing is downloaded here; the weights come from the model hub, whose
token and cache are used as they are, or from a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from features.encoders.names import WEIGHT_FILES
from features.errors import EncoderError

__all__ = [
    "PATHOLOGY_ENCODERS",
    "PathologyEncoder",
    "find_pathology_encoder",
    "require_of_timm",
    "unknown_encoder",
]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_H_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_SEE_CARD = "see the card"


@dataclass(frozen=True, kw_only=True)
class PathologyEncoder:
    """A published encoder of pathology tiles.

    Attributes
    ----------
    name, hub_id
        Short name for ``--backbone``, and repository on the model hub, which holds the card.
    architecture, model_args
        timm architecture and what to build it with; ``*_layer`` are names of layers.
    pooling
        ``token`` for the class token, ``token+mean`` to append the mean of the patch tokens, from
        which class and register tokens are left out.
    normalisation
        Mean and standard deviation of the channels, on a scale of 0 to 1.
    input_px, mpp
        Side of the input, px, and the resolutions of its training tiles, µm/px.
    dim, millions
        Length of an embedding, and parameters as the card states them, in millions.
    licence, gated
        Licence of the weights, and whether the hub hands them out only after an agreement.
    weights_file
        Name of its weights in the repository where it is none of the usual ones, else empty.
    paper
        First author and year, with DOI or arXiv number; empty where none is published.
    """

    name: str
    hub_id: str
    architecture: str
    dim: int
    millions: float
    licence: str
    gated: bool
    paper: str
    mpp: tuple[float, ...] = (0.5,)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "token"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET
    input_px: int = 224
    interpolation: str = "bicubic"
    weights_file: str = ""

    @property
    def weights_files(self) -> tuple[str, ...]:
        """Names of weights in the repository, in the order in which they are tried."""
        return (self.weights_file,) if self.weights_file else WEIGHT_FILES

    @property
    def card(self) -> str:
        """Address of the model card."""
        return f"https://huggingface.co/{self.hub_id}"


def _kaiko(
    name: str, architecture: str, dim: int, millions: float, **args: Any
) -> PathologyEncoder:
    return PathologyEncoder(
        name=f"kaiko-{name}",
        hub_id=f"1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms",
        architecture=architecture, model_args={"dynamic_img_size": True} | args, dim=dim,
        millions=millions, normalisation=_HALF, interpolation="bilinear",
        mpp=(0.25, 0.5, 1.0, 2.0), licence="Kaiko non-commercial", gated=False,
        paper="Aben et al., 2024, arXiv:2404.15217",
    )  # fmt: skip


def _lunit(name: str, architecture: str, millions: float) -> PathologyEncoder:
    return PathologyEncoder(
        name=name, hub_id=f"1aurent/{architecture}.lunit_dino", architecture=architecture, dim=384,
        millions=millions, normalisation=_LUNIT, mpp=(0.25, 0.5), licence="Lunit non-commercial",
        gated=False,
        paper="Kang et al., 2023, arXiv:2212.04690",
    )  # fmt: skip


_ENCODERS = (
    PathologyEncoder(
        name="uni", hub_id="MahmoodLab/UNI", architecture="vit_large_patch16_224",
        model_args={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
        dim=1024, millions=303.4, licence="CC-BY-NC-ND-4.0", gated=True,
        paper="Chen et al., 2024, doi:10.1038/s41591-024-02857-3",
    ),
    PathologyEncoder(
        name="uni2-h", hub_id="MahmoodLab/UNI2-h", architecture="vit_giant_patch14_224",
        model_args={
            "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5,
            "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
            "dynamic_img_size": True,
        } | _SWIGLU,
        dim=1536, millions=681.4, licence="CC-BY-NC-ND-4.0", gated=True,
        paper="Chen et al., 2024, doi:10.1038/s41591-024-02857-3",
    ),
    PathologyEncoder(
        name="virchow", hub_id="paige-ai/Virchow", architecture="vit_huge_patch14_224",
        model_args={
            "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "dynamic_img_size": True,
        } | _SWIGLU,
        pooling="token+mean", dim=2560, millions=631.2, licence="Apache-2.0", gated=True,
        paper="Vorontsov et al., 2024, doi:10.1038/s41591-024-03141-0",
    ),
    PathologyEncoder(
        name="virchow2", hub_id="paige-ai/Virchow2", architecture="vit_huge_patch14_224",
        model_args={
            "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4,
            "dynamic_img_size": True,
        } | _SWIGLU,
        pooling="token+mean", dim=2560, millions=631.2, mpp=(0.25, 0.5, 1.0, 2.0),
        licence="CC-BY-NC-ND-4.0", gated=True,
        paper="Zimmermann et al., 2024, arXiv:2408.00738",
    ),
    PathologyEncoder(
        name="h-optimus-0", hub_id="bioptimus/H-optimus-0",
        architecture="vit_giant_patch14_reg4_dinov2",
        model_args={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
        normalisation=_H_OPTIMUS, dim=1536, millions=1135, licence="Apache-2.0", gated=True,
        paper="",
    ),
    PathologyEncoder(
        name="h-optimus-1", hub_id="bioptimus/H-optimus-1",
        architecture="vit_giant_patch14_reg4_dinov2",
        model_args={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
        normalisation=_H_OPTIMUS, dim=1536, millions=1135, licence="CC-BY-NC-ND-4.0", gated=True,
        paper="",
    ),
    PathologyEncoder(
        name="prov-gigapath", hub_id="prov-gigapath/prov-gigapath",
        architecture="vit_giant_patch14_dinov2",
        model_args={
            "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
            "init_values": 1e-5, "mlp_ratio": 5.33334,
        },
        dim=1536, millions=1135, licence="Apache-2.0 with conditions", gated=True,
        paper="Xu et al., 2024, doi:10.1038/s41586-024-07441-w",
    ),
    PathologyEncoder(
        name="phikon", hub_id="owkin/phikon", architecture="vit_base_patch16_224",
        model_args={"norm_layer": "LayerNorm:1e-12"}, interpolation="bilinear",
        dim=768, millions=85.8, licence="Owkin non-commercial", gated=False,
        paper="Filiot et al., 2023, doi:10.1101/2023.07.21.23292757",
    ),
    PathologyEncoder(
        name="phikon-v2", hub_id="owkin/phikon-v2", architecture="vit_large_patch14_dinov2",
        model_args={"img_size": 224, "patch_size": 16},
        dim=1024, millions=303.4, licence="Owkin non-commercial", gated=False,
        paper="Filiot et al., 2024, arXiv:2409.09173",
    ),
    PathologyEncoder(
        name="hibou-b", hub_id="histai/hibou-b", architecture="vit_base_patch14_reg4_dinov2",
        model_args={"img_size": 224}, normalisation=_HIBOU, dim=768, millions=85.7,
        licence="Apache-2.0", gated=True, paper="Nechaev et al., 2024, arXiv:2406.05074",
    ),
    PathologyEncoder(
        name="hibou-l", hub_id="histai/hibou-L", architecture="vit_large_patch14_reg4_dinov2",
        model_args={"img_size": 224}, normalisation=_HIBOU, dim=1024, millions=303.7,
        licence="Apache-2.0", gated=True, paper="Nechaev et al., 2024, arXiv:2406.05074",
    ),
    PathologyEncoder(
        name="gpfm", hub_id="majiabo/GPFM", architecture="vit_large_patch14_dinov2",
        model_args={"img_size": 224}, dim=1024, millions=303.2, licence=_SEE_CARD, gated=False,
        weights_file="GPFM.pth", paper="Ma et al., 2025, doi:10.1038/s41551-025-01488-4",
    ),
    PathologyEncoder(
        name="mstar", hub_id="Wangyh/mSTAR", architecture="vit_large_patch16_224",
        model_args={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
        interpolation="bilinear", dim=1024, millions=303.4, licence="CC-BY-NC-ND-4.0", gated=True,
        paper="Xu et al., 2025, doi:10.1038/s41467-025-66220-x",
    ),
    PathologyEncoder(
        name="midnight", hub_id="kaiko-ai/midnight", architecture="vit_giant_patch14_dinov2",
        model_args={"img_size": 224}, pooling="token+mean", normalisation=_HALF, dim=3072,
        millions=1135, mpp=(0.25, 0.5, 1.0, 2.0), licence="MIT", gated=False,
        paper="Karasikov et al., 2025, arXiv:2504.05186",
    ),
    _kaiko("vits16", "vit_small_patch16_224", 384, 21.7),
    _kaiko("vits8", "vit_small_patch8_224", 384, 21.7),
    _kaiko("vitb16", "vit_base_patch16_224", 768, 85.8),
    _kaiko("vitb8", "vit_base_patch8_224", 768, 85.8),
    _kaiko("vitl14", "vit_large_patch14_reg4_dinov2", 1024, 304.4, img_size=518),
    _lunit("lunit-dino", "vit_small_patch16_224", 21.7),
    _lunit("lunit-dino-p8", "vit_small_patch8_224", 21.7),
)  # fmt: skip

PATHOLOGY_ENCODERS: Mapping[str, PathologyEncoder] = {entry.name: entry for entry in _ENCODERS}
"""All entries by short name."""

_HUB_PREFIXES = ("hf-hub:", "hf_hub:")


def find_pathology_encoder(name: str) -> PathologyEncoder | None:
    """Return the entry of a short name or of ``hf-hub:owner/name``; None if there is none."""
    key = name.lower()
    for prefix in _HUB_PREFIXES:
        if key.startswith(prefix):
            hub_id = key.removeprefix(prefix)
            return next((entry for entry in _ENCODERS if entry.hub_id.lower() == hub_id), None)
    return PATHOLOGY_ENCODERS.get(key)


_OTHER_SPELLINGS = {
    "uni2": "uni2-h", "univ1": "uni", "univ2": "uni2-h", "gigapath": "prov-gigapath",
    "midnight12k": "midnight", "lunitvits16": "lunit-dino", "lunitvits8": "lunit-dino-p8",
}  # fmt: skip
"""Names that other programs use, in small letters and digits."""

_OWN_CODE = (
    "It is built by code of its own, which is never run from a hub. Wrap it as a package with the "
    "entry point mil.encoders (see the how-to on backbones of your own), or bring its embeddings: "
    "mil bags import FOLDER --from LAYOUT."
)
_OF_SLIDES = (
    "It gives one vector per slide. Compute them with its own code, then: "
    "mil bags import FOLDER --slide-vectors."
)
_ADVICE_OF_OTHERS = {
    "h0mini": "Its config.json on the hub states the architecture. Give: "
    "--backbone hf-hub:bioptimus/H0-mini --model-arg mlp_layer=SwiGLUPacked "
    "--model-arg act_layer=SiLU --model-arg pooling=token+mean",
    **dict.fromkeys(("conch", "conchv1", "conchv15", "musk", "ctranspath"), _OWN_CODE),
    **dict.fromkeys(("titan", "prism", "madeleine", "chief"), _OF_SLIDES),
}
"""Published encoders that are not in the registry, and how to use each."""

_HUB_IDS_OF_OTHERS = (
    "mahmoodlab/conch", "mahmoodlab/conchv1_5", "xiangjx/musk", "mahmoodlab/titan",
    "paige-ai/prism", "mahmoodlab/madeleine",
)  # fmt: skip
"""Repositories of those that timm cannot build."""


def require_of_timm(hub_id: str) -> None:
    """Raise EncoderError for a repository whose encoder timm is known not to build."""
    if hub_id.lower() in _HUB_IDS_OF_OTHERS:
        raise EncoderError(
            f"backbone 'hf-hub:{hub_id}'",
            actual="timm cannot build it",
            expected="a repository with timm's config.json",
            hint=_ADVICE_OF_OTHERS[_plain(hub_id)],
        )


def unknown_encoder(
    name: str, known: list[str], *, find_weights: Callable[[str], str]
) -> EncoderError:
    """Return the error for a name that neither timm nor this registry knows, with close matches.

    ``find_weights`` returns where the weights of a name are on this machine, empty if nowhere:
    matches with weights are marked and come first.
    """
    return EncoderError(
        f"backbone {name!r}",
        actual="timm does not know it, nor is it a pathology encoder",
        expected="a timm name, a name of 'mil backbones --pathology', hf-hub:OWNER/NAME or "
        "local-dir:FOLDER",
        hint=_advice_on(name, known, find_weights),
    )


def _advice_on(name: str, known: list[str], find_weights: Callable[[str], str]) -> str:
    """Return what to give instead of an unknown name."""
    plain = _plain(name)
    if plain in _ADVICE_OF_OTHERS:
        return _ADVICE_OF_OTHERS[plain]
    same = _OTHER_SPELLINGS | {_plain(own): own for own in PATHOLOGY_ENCODERS}
    if plain in same:
        return f"Did you mean {same[plain]}?"
    if name.count("/") == 1:
        return f"Did you mean the repository of the hub, hf-hub:{name}?"
    architecture = name.split(".", maxsplit=1)[0].strip().lower()
    candidates = {other.lower(): other for other in [*PATHOLOGY_ENCODERS, *known]}
    family = [own for own in PATHOLOGY_ENCODERS if plain and _plain(own).startswith(plain)]
    close = family or [
        candidates[one] for one in difflib.get_close_matches(architecture, candidates, n=3)
    ]
    if not close:
        return "See 'mil backbones'."
    here = [own for own in close if find_weights(own)]
    others = [own for own in close if own not in here]
    marked = [*(f"{own} (its weights are installed)" for own in here), *others]
    return f"Did you mean {', '.join(marked)}?"


def _plain(name: str) -> str:
    """Return the letters and digits of a name, in small letters, without an owner before it."""
    return "".join(filter(str.isalnum, name.rsplit("/", maxsplit=1)[-1].lower()))
