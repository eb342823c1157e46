"""Source → result, whole and audited or not at all."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

import gated_plugin
from gated_plugin.convert import FILENAME, Conversion, dictionary_learning, jumprelu, saelens
from gated_plugin.convert.activations import Activations, recorded
from gated_plugin.convert.audit import Audit, audit
from gated_plugin.convert.loss import change_in_loss_recovered, gated_of, jumprelu_of, library_of
from gated_plugin.convert.opening import opened
from gated_plugin.convert.rounding import ROUNDOFF
from gated_plugin.convert.weights import Parts, Source, folding
from gated_plugin.errors import GatedError
from gated_plugin.hub.certificate import sha256
from gated_plugin.hub.naming import without_machine_paths
from gated_plugin.runs import folder_beside, write_json
from gated_plugin.tensor_files import whole, write_tensors

if TYPE_CHECKING:
    from sae_lens import SAE

FORMAT = 1
SURVIVAL = "survival.safetensors"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """A format that a dictionary can be written in."""

    dtype: str
    """Of the matrices, as safetensors names it."""
    write: Callable[[Source, Tensor, Path], None]
    parts: Callable[[Path], Parts]
    """Of a result in a folder, by the class of its readers."""
    sae: Callable[[Path], SAE[Any]]
    """A whole result in float32, to be spliced into the language model."""
    classes: str
    """What computes the parts."""


GATED_CLASS = "sae_lens.saes.gated_sae.GatedSAE"
TARGETS = {
    "saelens": Target("F32", saelens.write, saelens.gated_parts, gated_of, GATED_CLASS),
    "jumprelu": Target(
        "F32", jumprelu.write, jumprelu.parts, jumprelu_of, "sae_lens.saes.jumprelu_sae.JumpReLUSAE"
    ),
    "dictionary_learning": Target(
        "F32",
        dictionary_learning.write,
        dictionary_learning.parts,
        library_of,
        "the formula of dictionary_learning's GatedAutoEncoder",
    ),
    "bf16": Target(
        "BF16",
        partial(saelens.write, dtype="BF16"),
        saelens.gated_parts,
        gated_of,
        GATED_CLASS,
    ),
}


def converted(
    named: Path | str,
    target_format: str,
    out: Path,
    activations: Path | None,
    revision: str | None,
    token: str | None,
    quiet: bool,
    report: Report,
) -> Conversion:
    """See `gated_plugin.convert.convert`."""
    out = out.expanduser().absolute()
    _require_free(out)
    source = opened(named, revision, token)
    if out.resolve() in (source.folder.resolve(), *source.folder.resolve().parents):
        raise GatedError(f"{out} holds the source itself; give another --out.")
    x = recorded(source, activations)
    target = TARGETS[target_format]
    with _disk_errors(out), folder_beside(out) as unfinished:
        norms = folding(source.weights.decoder_norms())
        target.write(source, norms, unfinished)
        report(f"Wrote {source.cfg.d_sae} features as {target_format}; auditing them.")
        found = audit(source, target.parts(unfinished), norms, x.rows, target.dtype)
        _require_rounding_only(found, source, target_format)
        counts = {"fired": found.fired, "survived": found.survived}
        write_tensors(
            unfinished / SURVIVAL, {name: whole(count.int()) for name, count in counts.items()}
        )
        loss = change_in_loss_recovered(source, target.sae, unfinished, quiet, report)
        record = _record(source, target_format, x, {**found.figures, "loss_recovered": loss})
        record["files"] = {file.name: _described(file) for file in sorted(unfinished.iterdir())}
        write_json(unfinished / FILENAME, record)
    return Conversion(out, target_format, record)


def _require_free(out: Path) -> None:
    if out.exists() and not _is_conversion(out):
        raise GatedError(
            f"{out} exists and is no conversion that could be replaced; give another --out."
        )


def _is_conversion(folder: Path) -> bool:
    """Whether `folder` holds a record of ours; other tools may have files of that name."""
    try:
        record = json.loads((folder / FILENAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.keys() >= {"format", "to", "source", "audit"}


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GatedError(
            f"The conversion to {out} broke off ({error.strerror or error}); make room there, or "
            "give another --out."
        ) from error


def _require_rounding_only(found: Audit, source: Source, target_format: str) -> None:
    if found.is_rounding:
        return
    beyond = int(found.flips_beyond.sum())
    if target_format == "jumprelu" and beyond:
        worst = int(found.flips_beyond.argmax())
        raise GatedError(
            f"No JumpReLU twin in float32 holds every gate of {source.files[0]}: {beyond} firings "
            f"differ by more than rounding, most of them of feature {worst}, whose r_mag is "
            f"{source.weights.r_mag[worst]:.1f}; convert to saelens, which keeps r_mag by itself."
        )
    raise GatedError(
        f"As {target_format}, {source.files[0]} would differ by {found.excess:.3g} times what "
        f"rounding explains, and in {beyond} firings beyond it, so nothing was kept; run "
        "`gated-hub doctor` and report its output."
    )


def _record(
    source: Source, target_format: str, x: Activations, figures: dict[str, Any]
) -> dict[str, Any]:
    record = {
        "format": FORMAT,
        "to": target_format,
        "source": {
            "layout": source.layout,
            **source.origin,
            "files": {file.name: _described(file) for file in source.files},
            "description": source.described,
        },
        "versions": {
            "gated_plugin": gated_plugin.__version__,
            "sae_lens": version("sae-lens"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "audit": {
            "activations": {"rows": len(x.rows), "of": x.origin},
            "computed": {
                "in": "float64, from the stored parameters",
                "result_by": TARGETS[target_format].classes,
                "rounding_of": {
                    "matrices": ROUNDOFF[TARGETS[target_format].dtype],
                    "vectors": ROUNDOFF["F32"],
                },
            },
            **figures,
        },
    }
    found: dict[str, Any] = without_machine_paths(record)
    return found


def _described(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}
