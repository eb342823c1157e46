"""What SAELens makes of SAEs: a script for a process of its own, with SAELens alone.

    GATED_PLUGIN_AUTOLOAD=0 python plain_saelens.py < jobs.json

A job is an object with `source` ([folder], or [repository id, SAE id]), `activations` (a file with
"activations" [rows, d_in]), `rows` (how many of them) and `output`, to which "features_*"
[rows, d_sae] and "reconstructions_*" [rows, d_in] are written, computed in float32 and in float64.
It is run by its path and imports nothing of gated_plugin, for that would register the plugin; and
it fails if anything else has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype

BLOCK = 1 << 19
"""Numbers of W_enc that are computed with at a time: in float64 a whole dictionary would take
twice its bytes, and SAELens scales a copy of W_enc on every call."""


def features_and_reconstructions(sae: Any, x: Tensor, kind: dtype) -> tuple[Tensor, Tensor]:
    """Features [rows, d_sae] and reconstructions [rows, d_in] of `x` [rows, d_in], computed in
    `kind` by SAEs of the class of `sae`, each with some of its features.

    decode is affine: Σᵢ decodeᵢ(fᵢ) counts what no feature writes once for each block.
    """
    import torch

    features = torch.empty(len(x), sae.cfg.d_sae, dtype=kind)
    reconstruction = torch.zeros(0)
    with torch.no_grad():
        for chosen, part in _parts(sae, kind):
            found = features[:, chosen] = part.encode(x.to(kind))
            written = part.decode(found)
            if chosen.start > 0:
                part.encode(x.to(kind))  # decode takes the norms of the last encode, once
                written = reconstruction + (written - part.decode(torch.zeros_like(found)))
            reconstruction = written
    return features, reconstruction


def _parts(sae: Any, kind: dtype) -> Iterator[tuple[slice, Any]]:
    d_sae, size = sae.cfg.d_sae, max(1, BLOCK // sae.cfg.d_in)
    for start in range(0, d_sae, size):
        chosen = slice(start, min(start + size, d_sae))
        cfg = {**sae.cfg.to_dict(), "d_sae": chosen.stop - start}
        cfg["dtype"] = str(kind).removeprefix("torch.")
        part = type(sae)(type(sae.cfg).from_dict(cfg))
        state = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
        state["W_enc"] = state["W_enc"][:, chosen]
        for name in state.keys() - {"W_enc", "b_dec"}:
            state[name] = state[name][chosen]
        part.load_state_dict(state)
        part.to(kind)
        part.turn_off_forward_pass_hook_z_reshaping()
        yield chosen, part


def run(source: list[str], activations: str, rows: int, output: str) -> None:
    """One job."""
    import torch
    from sae_lens import SAE
    from safetensors.torch import load_file, save_file

    if len(source) == 1:
        sae = SAE.load_from_disk(source[0], device="cpu", dtype="float32")
    else:
        sae = SAE.from_pretrained(*source, device="cpu")
    home = type(sae).__module__
    if "gated_plugin" in sys.modules or not home.startswith("sae_lens."):
        sys.exit(f"This process is not plain SAELens: the SAE is a {type(sae).__name__} of {home}.")
    x, made = load_file(activations)["activations"][:rows], {}
    for kind in (torch.float32, torch.float64):
        name = str(kind).removeprefix("torch.")
        found = features_and_reconstructions(sae, x, kind)
        made[f"features_{name}"], made[f"reconstructions_{name}"] = found
    save_file(made, output)


if __name__ == "__main__":
    # A script's folder comes first on the path: our siblings must not pass for installed packages.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    for job in json.load(sys.stdin):
        run(**job)
