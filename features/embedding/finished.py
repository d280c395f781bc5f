"""Bags that are finished already: found and compared before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from features.bags.bag import BagMeta, Fingerprint, check_fingerprint
from features.bags.h5 import bag_path, read_meta
from features.embedding.config import BaseEmbedConfig
from features.embedding.results import SlideResult, write_results
from features.encoders.config import recorded_runtime
from features.encoders.runtime_cache import read_encoder_record
from features.errors import BagError
from features.parallel.locks import shared_locks

__all__ = ["check_finished_bag", "read_finished_bag", "skip_if_all_finished"]


def read_finished_bag(bags_dir: Path, bag_id: str, fingerprint: Fingerprint) -> BagMeta | None:
    """Read the metadata of a bag, None if missing or damaged; raise BagError if made otherwise."""
    path = bag_path(bags_dir, bag_id)
    try:
        meta = read_meta(path)
    except BagError:
        return None
    check_fingerprint(
        fingerprint,
        [(path, meta.fingerprint)],
        source="the settings asked for (--overwrite embeds again, --bags names another folder)",
    )
    return meta


def check_finished_bag(bag_ids: Collection[str], bags_dir: Path, config: BaseEmbedConfig) -> None:
    """Raise BagError if the first of these bags was made with other settings.

    An encoder that was never loaded, whose record is missing, is not checked.
    """
    record = None
    if bag_ids and not config.overwrite and isinstance(config.encoder, str):
        record = read_encoder_record(config.encoder, config.weights)
    if record is not None:
        read_finished_bag(bags_dir, min(bag_ids), config.make_fingerprint(record))


def skip_if_all_finished(
    paths: Mapping[str, Path], bags_dir: Path, config: BaseEmbedConfig
) -> list[SlideResult] | None:
    """Return the results of slides or series, by id of the bag, if all have a finished bag.

    Neither torch nor the encoder is loaded: what its fingerprint needs was remembered when it was
    loaded last. None if that is not known, a bag is missing or damaged, or the settings ask for
    more; then :func:`features.embed_slides` does the same, and the rest.

    Raises
    ------
    BagError
        If a bag was made with other settings.
    OutputError
        If the table of results cannot be written.
    """
    if config.overwrite or not isinstance(config.encoder, str):
        return None
    if not paths or not all(bag_path(bags_dir, bag_id).is_file() for bag_id in paths):
        return None
    runtime = recorded_runtime(bags_dir)
    record = read_encoder_record(config.encoder, config.weights)
    if record is None or (
        config.runtime != "auto" and not (runtime or "").startswith(config.runtime)
    ):
        return None
    fingerprint = config.make_fingerprint(record)
    results = []
    for bag_id, path in paths.items():
        meta = read_finished_bag(bags_dir, bag_id, fingerprint)
        if meta is None:
            return None
        results.append(SlideResult.of_bag(path, meta, status="skipped"))
    with shared_locks(bags_dir / ".claims") as locks:
        write_results(bags_dir, results, locks)
    return results
