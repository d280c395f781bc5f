"""One slide embedded by another program, in a process of that program's own environment.

Nothing of this project is imported, since that environment need not hold it. Each program is used
as its documentation says: its own tissue mask, grid, batch size and number of workers. The network
is built here and given as an object, since its name alone would be looked for on the model hub.

    PYTHON -I tests/benchmarks/_peer_run.py NAME SLIDE WEIGHTS FOLDER TILES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BACKBONE, TILE_PX, MPP, MAGNIFICATION = "resnet50", 224, 0.5, 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(weights: str) -> Any:
    """Return the network with its weights, without classifier."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(BACKBONE, pretrained=False)
    model.load_state_dict(load_file(weights))
    model.reset_classifier(0)
    return model.eval()


def lazyslide(slide: str, weights: str, out: str, n_tiles: int) -> int:
    """Embed with LazySlide; its ``feature_extraction`` takes any network."""
    import lazyslide as zs
    import torch
    from torchvision.transforms import v2
    from wsidata import open_wsi

    wsi = open_wsi(slide, store=str(Path(out) / "wsi.zarr"))
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, TILE_PX, mpp=MPP)
    wsi.shapes["tiles"] = wsi.shapes["tiles"].iloc[:n_tiles]
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    features = zs.tl.feature_extraction(
        wsi, network(weights), model_name=BACKBONE, transform=transform, device="cpu",
        pbar=False, return_features=True,
    )  # fmt: skip
    wsi.write()
    return len(features)


def tiatoolbox(slide: str, weights: str, out: str, n_tiles: int) -> int:
    """Embed with TIAToolbox; its ``TimmBackbone`` drops the last child of a network as well."""
    import numpy as np
    import zarr
    from tiatoolbox.models.architecture.vanilla import TimmBackbone
    from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig

    class FewerTiles(DeepFeatureExtractor):
        def get_dataloader(self, *args: Any, **options: Any) -> Any:
            loader = super().get_dataloader(*args, **options)
            loader.dataset.inputs = loader.dataset.inputs[:n_tiles]
            return loader

    model = TimmBackbone(BACKBONE, pretrained=False)
    model.feat_extract = network(weights)
    mean, std = (np.array(values, np.float32) * 255 for values in (MEAN, STD))
    model.preproc_func = lambda image: (image - mean) / std
    resolutions = [{"units": "mpp", "resolution": MPP}]
    ioconfig = IOPatchPredictorConfig(
        input_resolutions=resolutions, patch_input_shape=[TILE_PX, TILE_PX],
        stride_shape=[TILE_PX, TILE_PX],
    )  # fmt: skip
    paths = FewerTiles(model=model, device="cpu", verbose=False).run(
        [Path(slide)], patch_mode=False, ioconfig=ioconfig, save_dir=Path(out) / "features",
        output_type="zarr",
    )  # fmt: skip
    (path,) = paths.values() if isinstance(paths, dict) else paths
    return int(zarr.open(str(path), mode="r")["coordinates"].shape[0])


def keep_tiles(path: str | Path, n_tiles: int) -> int:
    """Shorten the ``coords`` of an HDF5 file to so many tiles; return how many it holds then."""
    import h5py

    with h5py.File(path, "a") as file:
        coords = file["coords"]
        coords.resize(min(len(coords), n_tiles), axis=0)
        return len(coords)


def trident(slide: str, weights: str, out: str, n_tiles: int) -> int:
    """Embed with TRIDENT as its ``run_single_slide.py`` does, with the segmenter without weights.

    Batches of 64, the default of its ``run_batch_of_slides.py``.
    """
    import torch
    from torchvision import transforms
    from trident import load_wsi
    from trident.patch_encoder_models import CustomInferenceEncoder
    from trident.segmentation_models import segmentation_model_factory

    wsi = load_wsi(slide, lazy_init=False)
    segmenter = segmentation_model_factory("otsu")
    wsi.segment_tissue(
        segmenter, target_mag=segmenter.target_mag, job_dir=out, device="cpu", batch_size=64
    )
    coords = wsi.extract_tissue_coords(MAGNIFICATION, TILE_PX, save_coords=out)
    n_tiles = keep_tiles(coords, n_tiles)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    encoder = CustomInferenceEncoder(BACKBONE, network(weights), transform, torch.float32)
    wsi.extract_patch_features(encoder, coords, save_features=out, device="cpu", batch_limit=64)
    return n_tiles


def clam(slide: str, weights: str, out: str, n_tiles: int) -> int:
    """Embed with CLAM's ``create_patches_fp.py`` and ``extract_features_fp.py``, without pictures.

    Its preset for biopsies, since its default drops tissue of less than 26 Mpx, and its level 0,
    which has the resolution of the others in the slides that are compared.
    """
    sys.argv = sys.argv[:1]  # extract_features_fp parses the command line when it is imported
    import create_patches_fp
    import extract_features_fp
    import openslide
    import pandas as pd
    from dataset_modules.dataset_h5 import Whole_Slide_Bag_FP
    from torch.utils.data import DataLoader
    from utils.transform_utils import get_eval_transforms

    folder = Path(out)
    slides = folder / "slides"
    slides.mkdir()
    (slides / Path(slide).name).symlink_to(Path(slide).resolve())
    root = Path(create_patches_fp.__file__).parent
    preset = pd.read_csv(root / "presets" / "bwh_biopsy.csv").iloc[0]
    segmentation = ("seg_level", "sthresh", "mthresh", "close", "use_otsu", "keep_ids",
                    "exclude_ids")  # fmt: skip
    create_patches_fp.seg_and_patch(
        source=str(slides), save_dir=out, patch_save_dir=out, mask_save_dir=out,
        stitch_save_dir=out, patch_size=TILE_PX, step_size=TILE_PX, patch_level=0,
        seg_params={key: preset[key] for key in segmentation},
        filter_params={key: preset[key] for key in ("a_t", "a_h", "max_n_holes")},
        vis_params={key: preset[key] for key in ("vis_level", "line_thickness")},
        patch_params={key: preset[key] for key in ("use_padding", "contour_fn")},
        seg=True, patch=True, save_mask=False,
    )  # fmt: skip
    coords = folder / f"{Path(slide).stem}.h5"
    n_tiles = keep_tiles(coords, n_tiles)
    tiles = Whole_Slide_Bag_FP(
        file_path=str(coords), wsi=openslide.open_slide(slide),
        img_transforms=get_eval_transforms(MEAN, STD, target_img_size=TILE_PX),
    )  # fmt: skip
    loader = DataLoader(tiles, batch_size=extract_features_fp.args.batch_size)
    extract_features_fp.compute_w_loader(str(folder / "features.h5"), loader, network(weights))
    return n_tiles


PEERS = {"lazyslide": lazyslide, "tiatoolbox": tiatoolbox, "trident": trident, "clam": clam}
MODULES = {"clam": "create_patches_fp"}
"""The module whose import shows that a peer is there, where its name differs from the peer's."""


def main(name: str, slide: str, weights: str, out: str, n_tiles: str) -> None:
    done = PEERS[name](slide, weights, out, int(n_tiles))
    import torch

    print(json.dumps({"n_tiles": done, "torch": torch.__version__}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
