"""`gated_plugin.load`: a gated dictionary from the Hub or a folder, into no more memory than it has
bytes."""

from __future__ import annotations

import hashlib
import os
from copy import copy
from pathlib import Path

import torch
from torch import Tensor

from gated_plugin.architecture import GatedSAE
from gated_plugin.dictionaries import (
    CFG,
    GATE_VECTORS,
    TYPES,
    WEIGHTS,
    Dictionary,
    is_finite,
    require_finite,
)
from gated_plugin.errors import GatedError
from gated_plugin.hub import certificate
from gated_plugin.runs import Run
from gated_plugin.tensor_files import raw

LISTED = 8
"""Ids that a message names, of a folder that may hold hundreds."""


def load(
    repo_or_path: str | os.PathLike[str],
    sae_id: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> GatedSAE:
    """Load a gated SAE: pinned, verified, without a network where the cache has it.

    Reads the weights block by block into their places, so that memory peaks at the bytes of the
    loaded SAE (SAELens' own loader holds up to twice of them). Files of the Hub are checked by
    their hashes when they arrive, and kept in the Hugging Face cache, as `SAE.from_pretrained`
    does.

    Args:
        repo_or_path: `org/name` on the Hub, or a folder: of a repository that was pulled, of one
            SAE, or of a run.
        sae_id: which SAE, such as `resid_post/layer_20/width_131k/l0_67`; may be left out where
            there is one alone.
        revision: branch, tag or commit. A commit is for ever the same, and is found in the cache
            without asking the Hub.
        token: for private repositories; by default the one of `hf auth login` or HF_TOKEN.
        dtype: of the matrices; by default as in the file. `b_gate`, `b_mag` and `r_mag` never get
            less than float32.
        device: where to.

    Raises:
        GatedError: there is no such SAE, it is damaged, hostile, not finite, or not a gated one.
    """
    path = Path(os.path.expanduser(repo_or_path))
    if os.path.isdir(path):  # which is False, too, for what no folder can be called
        _refuse_remote_options(path, revision, token)
        folder = local_folder(path, sae_id)
    else:
        from gated_plugin.hub.fetch import cached_folder

        folder = cached_folder(str(repo_or_path), sae_id, revision=revision, token=token)
    return read(Dictionary.open(folder), dtype, device)


def read(
    dictionary: Dictionary,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> GatedSAE:
    """The SAE of a folder, in memory: see `load`."""
    cfg = copy(dictionary.cfg)
    wanted, place = _dtype(dtype or cfg.dtype), _device(device)
    cfg.dtype, cfg.device = str(wanted).removeprefix("torch."), "meta"
    cfg.metadata = copy(cfg.metadata)
    sae = GatedSAE(cfg)
    cfg.device = str(place)
    state, certified = {}, _certified_hash(dictionary.path)
    digest = hashlib.sha256(dictionary.weights.head())
    for name, info in sorted(dictionary.weights.tensors.items(), key=lambda item: item[1].start):
        kind = torch.promote_types(wanted, torch.float32) if name in GATE_VECTORS else wanted
        state[name] = _empty(name, info.shape, kind, place)
        for start, block in dictionary.weights.blocks(name):
            require_finite(block, name, dictionary.weights.path)
            if certified is not None:
                digest.update(raw(block))
            state[name][start : start + len(block)] = _cast(block, kind, name)
    if certified not in (None, digest.hexdigest()):
        certificate.refuse_changed(dictionary.weights.path)
    sae.load_state_dict(state, assign=True)
    sae.device = place
    return sae


def _certified_hash(folder: Path) -> str | None:
    """What the weights must hash to; None where nobody has certified them."""
    if not (folder / certificate.FILENAME).exists():
        return None
    files = certificate.read(folder)["files"]
    if files.get(CFG) != certificate.described(folder / CFG) or WEIGHTS not in files:
        certificate.refuse_changed(folder / CFG)
    found: str = files[WEIGHTS]["sha256"]
    return found


def local_folder(path: Path, sae_id: str | None) -> Path:
    """The folder of one SAE below `path`: `sae_id`, or the only one there is.

    Raises:
        GatedError: there is none, or more than one to choose from.
    """
    if sae_id is not None:
        folder = path / sae_id
        if os.path.exists(folder / CFG):
            if not folder.resolve().is_relative_to(path.resolve()):
                raise GatedError(f"{sae_id!r} leads out of {path}; name an SAE below it.")
            return folder
    elif (path / CFG).exists():
        return path
    elif Run(path).recipe.exists():
        Run(path).require_trained()
        return Run(path).sae
    found = sorted(cfg.parent.relative_to(path).as_posix() for cfg in path.rglob(CFG))
    if sae_id is None and len(found) == 1:
        return path / found[0]
    if not found:
        raise GatedError(f"{path} holds no SAE; name a folder that does, or org/name on the Hub.")
    asked = "no single SAE" if sae_id is None else f"no SAE {sae_id!r}"
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    raise GatedError(f"{path} holds {asked}; name one of {', '.join(found[:LISTED])}{more}.")


def _empty(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """W_enc gets its features one after another in memory, as the engine reads it: else the first
    encode would copy it."""
    if name == "W_enc":
        return torch.empty(shape[::-1], dtype=dtype, device=device).T
    return torch.empty(shape, dtype=dtype, device=device)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in TYPES:
        raise GatedError(f"dtype is {name!r}; give one of {', '.join(TYPES)}.")
    found: torch.dtype = getattr(torch, name)
    return found


def _device(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError):  # the latter where torch was built without CUDA
        raise GatedError(f"torch has no device {str(device)!r} here; give `cpu`.") from None


def _cast(block: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    cast = block.to(dtype)
    if cast.dtype != block.dtype and not is_finite(cast):
        raise GatedError(f"{name} holds values above the largest of {dtype}; give a wider dtype.")
    return cast


def _refuse_remote_options(path: Path, revision: str | None, token: str | None) -> None:
    if revision is not None or token is not None:
        raise GatedError(
            f"{path} is a folder on this computer, which has no revision and takes no token; leave "
            "them out, or name a repository as org/name from another folder."
        )
