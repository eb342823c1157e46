"""When dead features are resampled, and how: fields of every training configuration of ours."""

from __future__ import annotations

from dataclasses import dataclass, field

from gated_plugin.errors import GatedError

OFF = "off"
SCHEMES = (OFF, "paper")


@dataclass(kw_only=True)
class ResamplingPlan:
    """Steps count optimizer steps of this SAE, from 1.

    Raises:
        GatedError: the fields conflict; raised by `refuse_conflicts`.
    """

    resampling: str = OFF
    """`paper`: features that fired in none of the last `resample_window` steps begin anew at inputs
    that are badly reconstructed (`trainer_hooks.revival`). `off`: dead features stay dead."""

    resample_steps: list[int] = field(default_factory=list)
    """Steps after which dead features are resampled, ascending."""

    resample_window: int = 12_500
    """Steps without firing after which a feature is dead. 12,500 is the window of Bricken et al.
    2023, whose resampling arXiv 2404.16014 takes over; a short run needs a shorter one."""

    rewarm_steps: int = 1000
    """Steps over which the learning rate climbs back from a tenth after features were resampled."""

    def refuse_conflicts(self) -> None:
        """Raise `GatedError` where the fields cannot go together."""
        self.resample_steps = list(self.resample_steps)
        if self.resampling not in SCHEMES:
            raise GatedError(
                f"resampling is {self.resampling!r}; give one of {', '.join(SCHEMES)}."
            )
        if (self.resampling == OFF) != (not self.resample_steps):
            raise GatedError(
                f"resampling is {self.resampling!r} but resample_steps is {self.resample_steps}; "
                "give the steps with a scheme such as 'paper', or neither."
            )
        if self.resample_window < 1 or self.rewarm_steps < 0:
            raise GatedError(
                f"resample_window is {self.resample_window} and rewarm_steps {self.rewarm_steps}; "
                "give at least 1 and at least 0."
            )
        self._refuse_schedule()

    def _refuse_schedule(self) -> None:
        steps, window = self.resample_steps, self.resample_window
        if any(type(step) is not int for step in steps) or steps != sorted(set(steps)):
            raise GatedError(
                f"resample_steps is {steps}; give whole numbers, ascending, each of them once."
            )
        if steps and steps[0] < window:
            raise GatedError(
                f"resample_steps begins at {steps[0]}, when no feature can have been silent for "
                f"resample_window = {window} steps; lower the window or begin later."
            )
