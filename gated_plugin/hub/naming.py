"""Names on the Hub: repository ids, and where in a repository an SAE lies."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gated_plugin.errors import GatedError

SITES = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_post": "mlp_post",
    "attn.hook_z": "attn_z",
}
IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def sae_id(hook_name: str, d_sae: int, l0: float, decimals: int = 0) -> str:
    """The folder of an SAE in its repository, such as `resid_post/layer_20/width_131k/l0_67`.

    Args:
        decimals: of the L0, for an SAE that has a neighbour with the same rounded one.

    Hook points outside of TransformerLens' blocks have no layer, and those that `SITES` does not
    hold keep their name, with what does not belong into a path replaced.
    """
    block = IN_BLOCK.fullmatch(hook_name)
    layer, point = block.groups() if block else (None, hook_name)
    site = SITES.get(point) or re.sub(r"[^\w.-]+|^\.+|\.+$", "_", point, flags=re.ASCII)
    sparsity = f"l0_{l0:.{decimals}f}"
    parts = [site, *([f"layer_{layer}"] if layer else []), width(d_sae), sparsity]
    return "/".join(parts)


def distinct_id(hook_name: str, d_sae: int, l0: float, taken: Container[str]) -> str:
    """`sae_id`, with as many decimals of the L0 as tell it from the ids in `taken`.

    Raises:
        GatedError: three do not.
    """
    for decimals in range(4):
        chosen = sae_id(hook_name, d_sae, l0, decimals)
        if chosen not in taken:
            return chosen
    raise GatedError(
        f"Another SAE with other training settings is {chosen!r} already; push to another "
        "repository."
    )


def width(d_sae: int) -> str:
    """`width_131k` for 131072: whole multiples of 1024 are short, others are written out."""
    return f"width_{d_sae // 1000}k" if d_sae % 1024 == 0 else f"width_{d_sae}"


def check_repo_id(repo_id: str) -> None:
    """Raise `GatedError` unless `repo_id` is `owner/name` as the Hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        well_formed = False
    else:
        well_formed = repo_id.count("/") == 1
    if not well_formed:
        raise GatedError(
            f"{repo_id!r} is no repository id; write owner/name, such as alice/gated-saes "
            "(letters, digits, '-', '_' and '.', at most 96 of them in all)."
        )


def refuse_missing_path(source: str) -> None:
    """Raise `GatedError` where `source`, which is not here, was meant as a path: it lies in a
    folder that is there."""
    path = Path(source).expanduser()
    if path.parent != Path() and path.parent.is_dir():
        raise GatedError(f"There is no {path.name!r} in {path.parent}; check the path.")


def check_source(source: str) -> None:
    """Raise `GatedError` unless `source`, which is no folder here, may be a repository's id."""
    refuse_missing_path(source)
    check_repo_id(source)


def without_machine_paths(value: Any) -> Any:
    """A JSON value in which every absolute path is replaced by its last part."""
    if isinstance(value, dict):
        return {key: without_machine_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_machine_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name
    return PurePosixPath(value).name if value.startswith(("/", "~")) else value
