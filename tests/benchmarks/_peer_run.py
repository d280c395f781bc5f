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

BACKBONE, TILE_PX, MPP = "resnet50", 224, 0.5
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


PEERS = {"lazyslide": lazyslide, "tiatoolbox": tiatoolbox}


def main(name: str, slide: str, weights: str, out: str, n_tiles: str) -> None:
    done = PEERS[name](slide, weights, out, int(n_tiles))
    import torch

    print(json.dumps({"n_tiles": done, "torch": torch.__version__}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
