"""What the SAEs of arXiv 2404.16014 have in common in training: a step, its hooks, their state."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from gated_plugin.architecture import GatedBase, has_listener
from gated_plugin.config import PaperTrainingSAEConfig
from gated_plugin.engine.ablated_step import ablated_step
from gated_plugin.engine.step import GatedStep, gated_step
from gated_plugin.loss import GatedLoss, gated_loss
from gated_plugin.non_finite import refuse_non_finite
from gated_plugin.sae_files import write_sae
from gated_plugin.trainer_hooks.adam import hasten_adam
from gated_plugin.trainer_hooks.data_start import DataStart
from gated_plugin.trainer_hooks.decoder_norm import hold_unit_norm
from gated_plugin.trainer_hooks.l0_target import L0Target
from gated_plugin.trainer_hooks.resampling import Resampler, watch

STATE_FILENAME = "gated_training_state.json"
NORMALISED_AT_RUN_TIME = ("layer_norm", "constant_norm_rescale")


class PaperTrainingSAE(GatedBase, TrainingSAE[Any], ABC):
    """What the Gated SAE and its baseline share, in any of SAELens' trainers or in a bare loop.

    Unless the decoder is to be free, the first `training_forward_pass` folds its norms into the
    encoder, exactly; from then on every optimizer step leaves its rows at norm 1.
    """

    cfg: PaperTrainingSAEConfig
    l0_target: L0Target | None
    resampler: Resampler | None
    data_start: DataStart | None

    def __init__(self, cfg: PaperTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.l0_target = None if cfg.target_l0 is None else L0Target(cfg.target_l0)
        self.resampler = Resampler.of(cfg, cfg.d_sae)
        self.data_start = DataStart(cfg.d_sae) if cfg.start == "data" else None

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
        """One forward pass: one encoder product, the decodes, and the terms of the loss.

        Raises:
            NonFiniteLossError: NaN or infinity in the batch or in the loss.
        """
        self._before_step()
        x = step_input.sae_in.to(self.dtype)
        self._start_at(x)
        output = self._engine_step(x, step_input) if self._engine_trains(x) else None
        output = output or self._plain_step(x, step_input)
        refuse_non_finite(output.loss, step_input)
        self._steer(output.feature_acts)
        self._watch_for_dead(output)
        return output

    @torch.compiler.disable
    def _engine_step(self, x: Tensor, step_input: TrainStepInput) -> TrainStepOutput | None:
        """On the support alone where that is the cheaper way (see `engine.step`).

        `hidden_pre` then says what the magnitude path gives where a feature fires, and 0 elsewhere;
        who needs it everywhere hooks `hook_sae_acts_pre`, and gets the plain step.
        """
        step = self._gated_step(x, self._l1(step_input))
        if step is None:
            return None
        self.engine_choice = step.choice
        losses = self.terms(step.losses)
        return _train_step_output(x, step.x_hat_BN, step.features, step.features, losses)

    def _gated_step(self, x: Tensor, l1: float) -> GatedStep | None:
        """None where the dense operations are the cheaper way."""
        weights, centred = self.feature_major_weights(), self.cfg.apply_b_dec_to_input
        if self.auxiliary_is_live or self.decoder_is_free:
            return ablated_step(
                x,
                weights,
                None,
                self.W_dec,
                self.b_dec,
                l1,
                centred=centred,
                live=self.auxiliary_is_live,
                weighted=self.decoder_is_free,
            )
        return gated_step(x, weights, self.W_dec, self.b_dec, l1, centred=centred)

    def _plain_step(self, x: Tensor, step_input: TrainStepInput) -> TrainStepOutput:
        """By autograd through the dense operations, with SAELens' hooks."""
        centred = self.process_sae_in(x)
        code = self.gated_code(centred)
        x_hat = self.decode(code.features)
        losses = self.terms(self._losses(x, x_hat, centred, code.shared_pre, self._l1(step_input)))
        return _train_step_output(x, x_hat, code.features, code.magnitude_pre, losses)

    def _engine_trains(self, x: Tensor) -> bool:
        return (
            x.dim() == 2
            and x.shape[1] == self.cfg.d_in
            and not x.requires_grad
            and not self.hook_z_reshaping_mode
            and self.cfg.normalize_activations not in NORMALISED_AT_RUN_TIME
            and not any(map(has_listener, self.modules()))
            and self.engine_may_serve(x)
        )

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """SAELens' seam for the terms besides the reconstruction; costs a second encoder product."""
        x, l1 = step_input.sae_in, step_input.coefficients["l1"]
        centred = self.process_sae_in(x)
        losses = self.terms(self._losses(x, sae_out, centred, centred @ self.W_enc, l1))
        del losses["mse_loss"]
        return losses

    @property
    def auxiliary_is_live(self) -> bool:
        """Whether the auxiliary term trains the decoder too."""
        return False

    @property
    def decoder_is_free(self) -> bool:
        """Whether decoder rows may have any norm."""
        return False

    @abstractmethod
    def terms(self, losses: GatedLoss) -> dict[str, Tensor]:
        """Those terms whose sum is trained on, by the names of SAELens' logs and dashboards."""

    def _losses(
        self, x: Tensor, x_hat: Tensor, centred: Tensor, shared_pre: Tensor, l1: float
    ) -> GatedLoss:
        seen = self._as_the_encoder_sees(x, centred)
        return gated_loss(
            x,
            x_hat,
            seen,
            shared_pre + self.gate_bias,
            self.W_dec,
            self.b_dec,
            l1,
            live=self.auxiliary_is_live,
            weighted=self.decoder_is_free,
        )

    def _as_the_encoder_sees(self, x: Tensor, centred: Tensor) -> Tensor:
        """x in the units that W_dec writes in: SAELens undoes its own normalisation but once."""
        if self.cfg.normalize_activations not in NORMALISED_AT_RUN_TIME:
            return x
        return (centred + self.b_dec * self.cfg.apply_b_dec_to_input).detach()

    @torch.compiler.disable
    def _before_step(self) -> None:
        hasten_adam(self.W_enc, self.W_dec)
        if not self.decoder_is_free:
            self._hold_unit_norm()
        if self.resampler is not None:
            watch(self, self.resampler)

    def _hold_unit_norm(self) -> None:
        if hold_unit_norm(self.W_dec) and not _has_unit_rows(self.W_dec):
            self.fold_W_dec_norm()

    @torch.compiler.disable
    def _start_at(self, x: Tensor) -> None:
        if self.data_start is None or self.data_start.is_over or not torch.is_grad_enabled():
            return
        if x.isfinite().all():
            self.data_start.begin(self, self.run_time_activation_norm_fn_in(x))

    @torch.compiler.disable
    def _l1(self, step_input: TrainStepInput) -> float:
        l1 = step_input.coefficients["l1"]
        return l1 if self.l0_target is None else l1 * self.l0_target.factor

    @torch.compiler.disable
    def _steer(self, features: Tensor) -> None:
        if self.l0_target is not None and torch.is_grad_enabled():
            self.l0_target.observe(mean_l0(features))

    @torch.compiler.disable
    def _watch_for_dead(self, output: TrainStepOutput) -> None:
        if self.resampler is not None and torch.is_grad_enabled():
            seen = self.run_time_activation_norm_fn_in(output.sae_in)
            self.resampler.observe(output.sae_in, output.sae_out, seen, output.feature_acts)
            output.metrics |= self.resampler.metrics

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
        """SAELens' two files; beside them the states of a steered λ, of the start, of resampling."""
        saved = super().save_model(path)
        states: dict[str, Any] = {}
        if self.l0_target is not None:
            states["l0_target"] = asdict(self.l0_target)
        if self.data_start is not None:
            states["begun"] = self.data_start.begun
        if states:
            (Path(path) / STATE_FILENAME).write_text(json.dumps(states))
        if self.resampler is not None:
            self.resampler.save(Path(path))
        return saved

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """The files of the inference SAE, written in blocks."""
        state_dict = self.state_dict()
        self.process_state_dict_for_saving_inference(state_dict)
        return write_sae(Path(path), state_dict, self.cfg.get_inference_sae_cfg_dict())

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """Weights, and those states that the checkpoint has; what has weights has started."""
        super().load_weights_from_checkpoint(checkpoint_path)
        file = Path(checkpoint_path) / STATE_FILENAME
        states: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if self.l0_target is not None and "l0_target" in states:
            self.l0_target = L0Target(**states["l0_target"])
        if self.data_start is not None:
            self.data_start.begun = states.get("begun", self.data_start.d_sae)
        if self.resampler is not None:
            self.resampler.load(Path(checkpoint_path))


def gated_terms(losses: GatedLoss) -> dict[str, Tensor]:
    """All three, by the names of SAELens' logs."""
    return {
        "mse_loss": losses.reconstruction,
        "l1_loss": losses.sparsity,
        "auxiliary_reconstruction_loss": losses.auxiliary,
    }


def mean_l0(features: Tensor) -> float:
    """Features that fire per row of [B, M], dense or not."""
    return features.detach().bool().float().sum().item() / len(features)


def _train_step_output(
    x: Tensor, x_hat: Tensor, features: Tensor, hidden_pre: Tensor, losses: dict[str, Tensor]
) -> TrainStepOutput:
    return TrainStepOutput(
        sae_in=x,
        sae_out=x_hat,
        feature_acts=features,
        hidden_pre=hidden_pre,
        loss=torch.stack(list(losses.values())).sum(),
        losses=dict(losses),
    )


def _has_unit_rows(W_dec: Tensor) -> bool:
    """Within the rounding of the weights' type, so that our own checkpoints load bit for bit."""
    tolerance = 1e-5 if W_dec.dtype.itemsize >= torch.float32.itemsize else 1e-2
    return bool((W_dec.float().norm(dim=1) - 1).abs().max() < tolerance)
