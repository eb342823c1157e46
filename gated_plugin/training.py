"""The Gated SAE in training: SAELens' class, with the paper's loss and a unit-norm decoder."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from gated_plugin.architecture import GatedBase, has_listener
from gated_plugin.config import GatedTrainingSAEConfig
from gated_plugin.engine.step import gated_step
from gated_plugin.errors import GatedError
from gated_plugin.loss import GatedLoss, gated_loss
from gated_plugin.trainer_hooks.adam import hasten_adam
from gated_plugin.trainer_hooks.decoder_norm import hold_unit_norm
from gated_plugin.trainer_hooks.l0_target import L0Target

STATE_FILENAME = "gated_training_state.json"
NORMALISED_AT_RUN_TIME = ("layer_norm", "constant_norm_rescale")

NOTICE = (
    "Training architecture='gated' with gated_plugin: unlike SAELens' built-in gated, the auxiliary "
    "loss leaves the decoder alone and decoder rows stay at norm 1, as in arXiv 2404.16014; "
    "for the built-in one call gated_plugin.unregister(), or set GATED_PLUGIN_AUTOLOAD=0 and do not "
    "import gated_plugin."
)

logger = logging.getLogger("gated_plugin")
_noticed: list[str] = []


class NonFiniteLossError(GatedError):
    """A batch that would poison the weights for good; they are as they were before it."""


class GatedTrainingSAE(GatedBase, saelens.GatedTrainingSAE):
    """Trains with the loss of arXiv 2404.16014, in any of SAELens' trainers or in a bare loop.

    The first `training_forward_pass` folds a free decoder norm into the encoder, exactly; from
    then on every optimizer step leaves the decoder's rows at norm 1.
    """

    cfg: GatedTrainingSAEConfig
    l0_target: L0Target | None

    def __init__(self, cfg: saelens.GatedTrainingSAEConfig, use_error_term: bool = False) -> None:
        if not isinstance(cfg, GatedTrainingSAEConfig):
            cfg = GatedTrainingSAEConfig.from_dict(cfg.to_dict())
        super().__init__(cfg, use_error_term)
        self.l0_target = None if cfg.target_l0 is None else L0Target(cfg.target_l0)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.W_enc.data *= self.cfg.encoder_init_norm

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and magnitude pre-activations [..., d_sae] of activations [..., d_in]."""
        code = self.gated_code(self.process_sae_in(x))
        return code.features, code.magnitude_pre

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One forward pass: one encoder product, two decodes, three terms of the loss.

        Raises:
            NonFiniteLossError: NaN or infinity in the batch or in the loss.
        """
        self._before_step()
        x = step_input.sae_in
        output = self._engine_step(x, step_input) if self._engine_trains(x) else None
        output = output or self._plain_step(x, step_input)
        self._refuse_non_finite(output.loss, step_input)
        self._steer(output.feature_acts)
        return output

    @torch.compiler.disable
    def _engine_step(self, x: Tensor, step_input: TrainStepInput) -> TrainStepOutput:
        """On the support alone where that is the cheaper way (see `engine.step`).

        `hidden_pre` then says what the magnitude path gives where a feature fires, and 0 elsewhere;
        who needs it everywhere hooks `hook_sae_acts_pre`, and gets the plain step.
        """
        step = gated_step(
            x,
            self.feature_major_weights(),
            self.W_dec,
            self.b_dec,
            self._l1(step_input),
            centred=self.cfg.apply_b_dec_to_input,
        )
        self.engine_choice = step.choice
        return _train_step_output(x, step.x_hat_BN, step.features, step.features, step.losses)

    def _plain_step(self, x: Tensor, step_input: TrainStepInput) -> TrainStepOutput:
        """By autograd through the dense operations, with SAELens' hooks."""
        centred = self.process_sae_in(x)
        code = self.gated_code(centred)
        x_hat = self.decode(code.features)
        losses = self._losses(x, x_hat, centred, code.shared_pre, self._l1(step_input))
        return _train_step_output(x, x_hat, code.features, code.magnitude_pre, losses)

    def _engine_trains(self, x: Tensor) -> bool:
        return (
            x.dim() == 2
            and x.shape[1] == self.cfg.d_in
            and not x.requires_grad
            and not self.hook_z_reshaping_mode
            and self.cfg.normalize_activations not in NORMALISED_AT_RUN_TIME
            and not any(map(has_listener, self.modules()))
            and self.engine_serves(x)
        )

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """SAELens' seam for the terms besides the reconstruction; costs a second encoder product."""
        x, l1 = step_input.sae_in, step_input.coefficients["l1"]
        centred = self.process_sae_in(x)
        losses = _named(self._losses(x, sae_out, centred, centred @ self.W_enc, l1))
        del losses["mse_loss"]
        return losses

    def _losses(
        self, x: Tensor, x_hat: Tensor, centred: Tensor, shared_pre: Tensor, l1: float
    ) -> GatedLoss:
        seen = self._as_the_encoder_sees(x, centred)
        pi_gate = shared_pre + self.b_gate
        return gated_loss(x, x_hat, seen, pi_gate, self.W_dec, self.b_dec, l1)

    def _as_the_encoder_sees(self, x: Tensor, centred: Tensor) -> Tensor:
        """x in the units that W_dec writes in: SAELens undoes its own normalisation but once."""
        if self.cfg.normalize_activations not in NORMALISED_AT_RUN_TIME:
            return x
        return (centred + self.b_dec * self.cfg.apply_b_dec_to_input).detach()

    @torch.compiler.disable
    def _before_step(self) -> None:
        if not _noticed:
            _noticed.append(NOTICE)
            logger.warning(NOTICE)
        hasten_adam(self.W_enc, self.W_dec)
        if hold_unit_norm(self.W_dec) and not _has_unit_rows(self.W_dec):
            self.fold_W_dec_norm()

    @torch.compiler.disable
    def _l1(self, step_input: TrainStepInput) -> float:
        l1 = step_input.coefficients["l1"]
        return l1 if self.l0_target is None else l1 * self.l0_target.factor

    @torch.compiler.disable
    def _steer(self, features: Tensor) -> None:
        if self.l0_target is not None and torch.is_grad_enabled():
            self.l0_target.observe(mean_l0(features))

    @torch.compiler.disable
    def _refuse_non_finite(self, loss: Tensor, step_input: TrainStepInput) -> None:
        if torch.isfinite(loss):
            return
        if not len(step_input.sae_in):
            raise NonFiniteLossError(
                f"Training step {step_input.n_training_steps} was refused: its batch has no rows; "
                "give it some."
            )
        rows = (~torch.isfinite(step_input.sae_in).all(-1)).sum().item()
        cause = (
            f"{rows} of its {len(step_input.sae_in)} activation rows hold NaN or infinity; mend "
            "the model or the data and resume from the last checkpoint"
            if rows
            else "the loss overflowed on finite activations; start again with a lower learning rate"
        )
        raise NonFiniteLossError(
            f"Training step {step_input.n_training_steps} was refused and the weights kept: the "
            f"loss of its batch is {loss.item()}, because {cause}."
        )

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Fold x → s·x into the weights, then bring the decoder's rows back to norm 1."""
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.fold_W_dec_norm()

    @override
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        """Fold the whitening into the weights, then bring the decoder's rows back to norm 1."""
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self.fold_W_dec_norm()

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """SAELens' two files; beside them the state of a λ that is being steered."""
        saved = super().save_model(path)
        if self.l0_target is not None:
            (Path(path) / STATE_FILENAME).write_text(json.dumps(asdict(self.l0_target)))
        return saved

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """Weights, and the state of a steered λ where the checkpoint has one."""
        super().load_weights_from_checkpoint(checkpoint_path)
        state = Path(checkpoint_path) / STATE_FILENAME
        if self.l0_target is not None and state.exists():
            self.l0_target = L0Target(**json.loads(state.read_text()))


def mean_l0(features: Tensor) -> float:
    """Features that fire per row of [B, M], dense or not."""
    return features.detach().bool().float().sum().item() / len(features)


def _named(losses: GatedLoss) -> dict[str, Tensor]:
    """Under the names that SAELens' logs and dashboards use."""
    return {
        "mse_loss": losses.reconstruction,
        "l1_loss": losses.sparsity,
        "auxiliary_reconstruction_loss": losses.auxiliary,
    }


def _train_step_output(
    x: Tensor, x_hat: Tensor, features: Tensor, hidden_pre: Tensor, losses: GatedLoss
) -> TrainStepOutput:
    return TrainStepOutput(
        sae_in=x,
        sae_out=x_hat,
        feature_acts=features,
        hidden_pre=hidden_pre,
        loss=torch.stack(list(losses)).sum(),
        losses=dict(_named(losses)),
    )


def _has_unit_rows(W_dec: Tensor) -> bool:
    """Within the rounding of the weights' type, so that our own checkpoints load bit for bit."""
    tolerance = 1e-5 if W_dec.dtype.itemsize >= torch.float32.itemsize else 1e-2
    return bool((W_dec.float().norm(dim=1) - 1).abs().max() < tolerance)
