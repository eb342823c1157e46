"""Which keys a recipe may have, and of which type: by SAELens' own dataclasses, less what we refuse."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from textwrap import shorten
from typing import Any, NoReturn, get_args, get_type_hints

from gated_plugin.errors import GatedError

OF_OURS = "gated-hub sets it itself"
NO_USE = "SAELens' runner alone uses it"
NO_COMPILER = "gated-hub does not compile, lest a resumed run gets other kernels than the first"
REFUSED = {
    "checkpoint_path": OF_OURS,
    "resume_from_checkpoint": OF_OURS,
    "output_path": OF_OURS,
    "n_checkpoints": "give `gated-hub train --checkpoint-every STEPS`",
    "save_final_checkpoint": OF_OURS,
    "sae_lens_version": OF_OURS,
    "sae_lens_training_version": OF_OURS,
    "activations_mixing_fraction": "a seekable stream shuffles whole buffers; set n_batches_in_buffer",
    "prefetch_llm_batches": NO_USE,
    "use_cached_activations": NO_USE,
    "cached_activations_path": NO_USE,
    "n_eval_batches": "see the section `evaluation`",
    "eval_batch_size_prompts": "see the section `evaluation`",
    "hook_eval": "deprecated in SAELens",
    "dead_feature_threshold": "without effect in SAELens",
    "logger": NO_USE,
    "verbose": NO_USE,
    "compile_llm": NO_COMPILER,
    "llm_compilation_mode": NO_COMPILER,
    "compile_sae": NO_COMPILER,
    "sae_compilation_mode": NO_COMPILER,
    "dataset_trust_remote_code": "no code of a dataset is ever run",
    "dtype": "SAELens does not use it; set sae.dtype",
    "sae.device": "set device",
    "sae.metadata": OF_OURS,
}

LONGEST_CONTEXT = 1 << 20
"""Tokens; SAELens lists their places one by one."""
LONGEST_KEY = 60
"""Characters; of a longer key or value, a message shows as many."""

# Counts of which there must be one at least.
POSITIVE = frozenset(
    {
        "batch_size_prompts",
        "context_size",
        "d_in",
        "d_sae",
        "feature_sampling_window",
        "n_batches_for_norm_estimate",
        "n_batches_in_buffer",
        "n_restart_cycles",
        "store_batch_size_prompts",
        "tokens",
        "train_batch_size_tokens",
        "training_tokens",
    }
)


@dataclass(frozen=True)
class Keys:
    """Checks the keys of one recipe; knows its file for the errors."""

    file: str

    def checked(
        self, values: dict[str, Any], config: type[Any], prefix: str, also: Iterable[str]
    ) -> dict[str, Any]:
        """`values` with the types that the dataclass `config` declares."""
        hints = get_type_hints(config)
        valid = {f.name for f in fields(config) if prefix + f.name not in REFUSED} - {"sae"}
        for key in values:
            name = f"{prefix}{key}"
            if name in REFUSED:
                raise GatedError(f"{self.where(name)} is not for a recipe: {REFUSED[name]}.")
            if key not in valid:
                self.refuse("key", name, [prefix + choice for choice in sorted({*valid, *also})])
        required = [f.name for f in fields(config) if _is_required(f) and f.name in valid]
        for key in required:
            if key not in values:
                raise GatedError(f"{self.where(prefix + key)} is missing; add it.")
        checked = {
            key: coerced(value, hints[key], self.where(prefix + key))
            for key, value in values.items()
        }
        for key in checked.keys() & POSITIVE:
            if checked[key] < 1:
                raise GatedError(f"{self.where(prefix + key)} is {checked[key]}; give at least 1.")
        if checked.get("context_size", 0) > LONGEST_CONTEXT:
            raise GatedError(
                f"{self.where('context_size')} is {checked['context_size']}; give at most "
                f"{LONGEST_CONTEXT}."
            )
        return checked

    def where(self, key: str) -> str:
        return f"{self.file}: {key}"

    def refuse(self, what: str, given: str, choices: list[str]) -> NoReturn:
        near = get_close_matches(given, choices, n=1, cutoff=0.0)
        raise GatedError(
            f"{self.file}: unknown {what} {_shown(given)}; the nearest valid one is {near[0]!r}."
        )


def _shown(value: Any) -> str:
    """For a sentence; a value may be of any size, and hold a terminal's control characters."""
    found = reprlib.Repr()
    found.maxstring = found.maxother = LONGEST_KEY
    return found.repr(value)


def _is_required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def coerced(value: Any, hint: Any, where: str) -> Any:
    """`value` as the declared type: YAML reads 0 as an int and 1e-3 as a text."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
        raise GatedError(f"{where} is {value}; expected {getattr(hint, '__name__', hint)}.")
    try:
        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        return TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        problem = shorten(error.errors()[0]["msg"], 200)
        raise GatedError(f"{where} is {_shown(value)}; mend it ({problem}).") from None
