"""Files of the model hub, with huggingface_hub's usual token and cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from features.encoders.checkpoints import first_line
from features.errors import EncoderError

__all__ = ["cached_file", "download_file", "require_hub_id"]


def require_hub_id(hub_id: str) -> None:
    """Raise EncoderError for what cannot be a repository of the hub."""
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_id, re.ASCII) is None:
        raise EncoderError(
            f"backbone 'hf-hub:{hub_id}'",
            actual="not the name of a repository",
            expected="hf-hub:OWNER/NAME, e.g. hf-hub:timm/resnet50.a1_in1k",
            hint="A revision cannot be named: fetch its files, and give them with "
            "--backbone local-dir:FOLDER." * ("@" in hub_id),
        )


def cached_file(hub_id: str, names: Sequence[str]) -> Path | None:
    """Return the first of these files that is in the hub's cache, or None; asks no network."""
    for name in names:
        path = try_to_load_from_cache(hub_id, name)
        if isinstance(path, str):
            return Path(path)
    return None


def download_file(hub_id: str, names: Sequence[str]) -> Path:
    """Return a local copy, all bytes of it, of the first of these files that a repository has.

    Interrupted downloads leave nothing that would be taken for the file; a repeated call continues.

    Raises
    ------
    EncoderError
        If the hub cannot be reached or refuses access, or has none of the files: one message that
        names the file to fetch and how to give it.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # It prints every retry.
    error: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name))
        except LocalEntryNotFoundError as reason:  # An EntryNotFoundError, but without network.
            raise _unreachable(hub_id, names, reason) from reason
        except EntryNotFoundError as reason:
            error = reason
        except (GatedRepoError, RepositoryNotFoundError) as reason:
            raise _refused(hub_id, names, reason) from reason
        except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as reason:
            raise _unreachable(hub_id, names, reason) from reason
    raise EncoderError(
        f"https://huggingface.co/{hub_id}",
        actual=f"no file {' or '.join(names)}",
        expected="a repository of a timm model",
        hint=_hint(names),
    ) from error


def _refused(hub_id: str, names: Sequence[str], error: Exception) -> EncoderError:
    gated = isinstance(error, GatedRepoError)
    return EncoderError(
        f"https://huggingface.co/{hub_id}",
        actual="access is gated, and your token has not been granted it"
        if gated
        else "there is no such repository, or it is private",
        expected="a repository that your token may read",
        hint=(
            "Accept its terms on that page, then log in with 'hf auth login' or set HF_TOKEN; or "
            if gated
            else "Check the name; or "
        )
        + _lower(_hint(names)),
    )


def _unreachable(hub_id: str, names: Sequence[str], error: Exception) -> EncoderError:
    return EncoderError(
        f"https://huggingface.co/{hub_id}",
        actual=f"{names[0]} could not be downloaded ({first_line(error)})",
        expected="the network, or the file in the hub's cache",
        hint=_hint(names),
    )


def _hint(names: Sequence[str]) -> str:
    if "config.json" in names:
        return (
            "Fetch config.json and the weights on another machine, put both into one folder and "
            "give it with --backbone local-dir:FOLDER, or copy a filled cache and set HF_HOME."
        )
    return (
        f"Fetch {' or '.join(names)} from that page on another machine and give it with "
        "--weights FILE, or copy a filled cache and set HF_HOME."
    )


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
