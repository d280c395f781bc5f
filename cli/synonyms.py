"""What other programs call the options and commands of this one, for the advice on wrong usage."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["command_meant", "option_meant"]

_OPTIONS = {
    "--out|--run|--bags": (
        "dest destination o out outdir out-dir output output-dir output-file output-path "
        "results save save-dir save-path save-to"
    ),
    "--bags": (
        "bag-dir bags-dir data-root-dir embedding-dir embeddings feat-dir feats feature-dir "
        "features features-dir h5-dir"
    ),
    "--slides|SLIDES|PATHS": (
        "image-dir images slide slide-dir slides slides-dir source wsi wsi-dir wsis"
    ),
    "SLIDES|PATHS|PREDICTIONS|--patients|--cohort|TRAIN": "i in input input-dir inputs",
    "--cohort|--patients|TRAIN": (
        "annotations clini-table cohort csv data dataset ground-truth labels-csv manifest "
        "metadata patients table test test-csv train train-csv truth"
    ),
    "PREDICTIONS": "prediction predictions preds submission",
    "--column label=NAME|--label": "class-column label label-col label-column target y",
    "--column patient=NAME": "case-column id-column patient-col patient-column patient-id",
    "--column slide=NAME": "image-id slide-col slide-column slide-id",
    "--column center=NAME": "center center-column centre centre-column site site-column",
    "--backbone": "encoder extractor feature-extractor foundation-model",
    "--backbone|--head|--run|RUN": "arch architecture model model-name",
    "--run|RUN|--weights": "checkpoint checkpoints ckpt model-dir model-path run run-dir",
    "--weights": "model-weights pretrained weights-path",
    "--execution": "backend compile engine onnx runtime",
    "--head": "aggregator mil-model pooling",
    "--batch|--set batch_patients=N": "b batch-size bs",
    "--workers": "cpus j jobs n-jobs n-workers nproc num-workers threads",
    "--device": "accelerator cuda devices gpu gpus",
    "--tile-px": "patch patch-px patch-size tile-size tile-width",
    "--mpp µm/px (0.5 for 20x)": "mag magnification objective",
    "--mpp|--slide-mpp": "mpp resolution target-mpp",
    "--overlap": "step-size stride",
    "--min-tissue": "min-tissue-percent tissue-threshold",
    "--max-tiles": "max-patches n-tiles num-tiles",
    "--rules": "artefacts artifacts qc",
    "--stain-norm": "macenko normalise normalize stain-normalization",
    "--views": "augment augmentation augmentations",
    "--folds": "cv k k-folds kfold n-folds n-splits num-folds splits",
    "--repeats": "n-repeats",
    "--set learning_rate=VALUE": "learning-rate lr",
    "--set fixed_steps=N": "epochs max-epochs n-epochs num-epochs steps",
    "--set weight_decay=VALUE": "wd weight-decay",
    "--seed": "random-seed random-state rng",
    "--overwrite": "f force replace",
    "--config": "cfg config-file params settings yaml",
    "--resamples": "bootstrap n-boot n-bootstrap",
    "--class": "pos-label positive positive-class",
    "--covariates": "clinical covars",
}
"""Names of options, or of arguments in capitals, by what others call them; earlier ones first."""

_COMMANDS = {
    "infer": "apply classify inference predict test",
    "train": "fit learn",
    "embed": "embeddings encode extract features patch segment tile tiles",
    "score": "metrics",
    "explain": "attention heatmap heatmaps",
    "view": "serve show viewer",
    "combine": "ensemble",
    "evaluate": "eval validate",
    "recalibrate": "calibrate",
    "describe": "eda explore stats summary",
    "inspect": "info",
    "doctor": "check diagnose",
}


def option_meant(given: str, known: Collection[str]) -> str:
    """Return what to write for an option that a command lacks; empty if nothing is known.

    ``known`` are the options and arguments (in capitals) of the command.

    Examples
    --------
    >>> option_meant("--output", ["SLIDES", "--bags"]), option_meant("--tilt", ["--bags"])
    ('--bags', '')
    """
    word = given.strip("-").replace("_", "-").casefold()
    underscored = f"--{word}"
    if underscored in known:
        return underscored
    for ours, theirs in _OPTIONS.items():
        if word in theirs.split():
            for one in ours.split("|"):
                if one.split()[0] in known:
                    return one if one.startswith("-") else f"{one}, without an option"
    return ""


def command_meant(given: str) -> str:
    """Return the command that others call so; empty if there is none.

    Examples
    --------
    >>> command_meant("predict"), command_meant("frobnicate")
    ('infer', '')
    """
    word = given.replace("_", "-").casefold()
    return next((ours for ours, theirs in _COMMANDS.items() if word in theirs.split()), "")
