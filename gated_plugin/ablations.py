"""The ablations of arXiv 2404.16014 (section 5, figure 8): fields of the Gated SAE's training.

Annotations are not postponed here: SAELens' command line reads the choices from them.
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from gated_plugin.errors import GatedError


@dataclass(kw_only=True)
class Ablations:
    """Each field's default is the paper's choice; a dictionary of any of them is an ordinary one.

    Raises:
        GatedError: an unknown choice, or choices that conflict; raised by `refuse_ablations`.
    """

    auxiliary_decoder: Literal["frozen", "live"] = "frozen"
    """`live`: the auxiliary term's gradient reaches `W_dec` and `b_dec` too."""

    magnitude_scale: Literal["learned", "one"] = "learned"
    """`one`: `r_mag` stays as it starts, at 0, so that both paths have one scale."""

    decoder_norm: Literal["unit", "free"] = "unit"
    """`free`: decoder rows start at norm 1 and then have any norm, which weighs the penalty as in
    SAELens: λ Σ ReLU(π_gate) ‖w_dec‖. No gradient of the penalty reaches a frozen auxiliary decoder's
    norm: nothing would hold against it. What is saved for inference has its norms folded."""

    trained: Literal["all", "magnitude"] = "all"
    """`magnitude`: only `r_mag` and `b_mag` learn, from the reconstruction alone: the paper's
    rescale-and-shift of a baseline SAE, with which the weights must start."""

    @property
    def ablated(self) -> dict[str, str]:
        """The fields that are not the paper's choice."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(Ablations)
            if getattr(self, field.name) != field.default
        }

    def refuse_ablations(self) -> None:
        """Raise `GatedError` for an unknown choice, and for choices that cannot go together."""
        for field in fields(Ablations):
            given, choices = getattr(self, field.name), get_args(field.type)
            if given not in choices:
                raise GatedError(
                    f"{field.name} is {given!r}; give {' or '.join(map(repr, choices))}."
                )
        if self.trained == "magnitude":
            for name, without_effect in _OF_THE_GATE_OR_DECODER.items():
                if getattr(self, name) != without_effect:
                    raise GatedError(
                        f"{name} is {getattr(self, name)!r}, but under trained: magnitude neither "
                        f"gate nor decoder learns; leave {name} out."
                    )


_OF_THE_GATE_OR_DECODER = {
    "auxiliary_decoder": "frozen",
    "decoder_norm": "unit",
    "target_l0": None,
    "resampling": "off",
}
