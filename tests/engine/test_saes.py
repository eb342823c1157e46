"""The SAE classes on the engine: one function whichever path serves, and every hook heard."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from built_saes import (
    FEW,
    MANY,
    WEIGHTS,
    M,
    N,
    inference_sae,
    sparse_problem,
    step,
    training_sae,
    weights_of,
)
from problems import L1, Problem, relative_error
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor

from gated_plugin.engine import reference
from gated_plugin.engine.options import use
from gated_plugin.engine.support import EncoderWeights
from gated_plugin.errors import GatedError


def truth(p: Problem, x: Tensor | None = None) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The losses and the gradient of their sum in every weight and x, by float64 autograd."""
    exact = {name: weight.double().requires_grad_() for name, weight in weights_of(p).items()}
    x = (p.x_BN if x is None else x).detach().double().requires_grad_()
    *encoder, W_dec, b_dec = exact.values()
    seen = x - b_dec if p.centred else x
    losses, _, _ = reference.step(seen, x, EncoderWeights(*encoder), W_dec, b_dec, L1)
    gradients = torch.autograd.grad(torch.stack(list(losses)).sum(), [*exact.values(), x])
    return list(losses), dict(zip((*WEIGHTS, "x"), gradients, strict=True))


def assert_gradients(sae, x: Tensor, expected: dict[str, Tensor], tolerance: float) -> None:
    weights = [getattr(sae, name) for name in WEIGHTS]
    found = torch.autograd.grad(step(sae, x).loss, weights)
    for name, gradient in zip(WEIGHTS, found, strict=True):
        assert relative_error(gradient, expected[name]) < tolerance, name


LEADING = [(252,), (4, 63), (2, 2, 63), (1,), (), (0,), (3, 0)]


def activations(leading: tuple[int, ...]) -> Tensor:
    return sparse_problem().x_BN[: torch.Size(leading).numel()].reshape(*leading, N)


@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("share", [FEW, MANY], ids=["few open", "many open"])
@pytest.mark.parametrize("make", [inference_sae, training_sae])
class TestInference:
    def test_features_are_those_of_plain_products(self, make, share, leading):
        sae, x = make(share), activations(leading)
        features, codes = sae.encode(x), sae.encode_sparse(x)
        assert torch.equal(codes.to_dense(), features)
        with use(impl="reference"):
            torch.testing.assert_close(features, sae.encode(x))
        assert features.shape == (*leading, M)

    def test_the_forward_pass_is_encode_and_decode(self, make, share, leading):
        sae, x = make(share), activations(leading)
        out, before = sae(x), sae.b_dec.clone()
        assert out.shape == x.shape
        features = sae.encode(x)
        for form in (features, sae.encode_sparse(x), features.detach().to_sparse()):
            torch.testing.assert_close(sae.decode(form), out)
        torch.testing.assert_close(features @ sae.W_dec + sae.b_dec, out)
        with torch.no_grad():
            torch.testing.assert_close(sae.decode(features), out)
        assert torch.equal(sae.b_dec, before)


@pytest.mark.parametrize("make", [inference_sae, training_sae])
def test_gradients_pass_through_encode_and_forward(make):
    p, found = sparse_problem(), {}
    for impl in ("auto", "reference"):
        sae, x = make(), p.x_BN.clone().requires_grad_()
        with use(impl=impl):
            for name, run in (("forward", sae), ("encode", sae.encode)):
                wanted = [x, sae.W_enc, sae.r_mag, sae.b_mag, sae.b_dec]
                found[impl, name] = torch.autograd.grad(run(x).square().sum(), wanted)
    for name in ("forward", "encode"):
        for ours, plain in zip(found["auto", name], found["reference", name], strict=True):
            assert relative_error(ours, plain) < 1e-5


@pytest.mark.parametrize("width", [M - 7, M + 7])
def test_features_of_another_width_are_refused(width):
    features = torch.zeros(40, width)
    features[3, width - 1] = 1.0
    with torch.no_grad(), pytest.raises((RuntimeError, GatedError), match=str(M)):
        inference_sae().decode(features)


HOOKS = {
    "hook_sae_input": lambda sae, x: x,
    "hook_sae_acts_pre": lambda sae, x: reference.magnitude_pre(
        (x - sae.b_dec) @ sae.W_enc, sae.encoder_weights()
    ),
    "hook_sae_acts_post": lambda sae, x: reference.encode(x - sae.b_dec, sae.encoder_weights()),
    "hook_sae_recons": lambda sae, x: sae.decode(sae.encode(x)),
    "hook_sae_output": lambda sae, x: sae.decode(sae.encode(x)),
}


def heard(sae, hook: str, run) -> list[Tensor]:
    """What a listener at `hook` is given while `run` runs."""
    values: list[Tensor] = []
    point = getattr(sae, hook)
    handle = point.register_forward_hook(lambda module, given, out: values.append(out.clone()))
    run()
    handle.remove()
    return values


class TestListeners:
    @pytest.mark.parametrize("hook", HOOKS)
    @pytest.mark.parametrize("make", [inference_sae, training_sae])
    def test_hear_the_forward_pass(self, make, hook):
        sae, x = make(), sparse_problem().x_BN
        (value,) = heard(sae, hook, lambda: sae(x))
        assert value.layout == torch.strided
        torch.testing.assert_close(value, HOOKS[hook](sae, x))

    @pytest.mark.parametrize("hook", ["hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post"])
    @pytest.mark.parametrize("door", ["encode", "encode_sparse"])
    def test_hear_the_encoder(self, door, hook):
        sae, x = inference_sae(), sparse_problem().x_BN
        (value,) = heard(sae, hook, lambda: getattr(sae, door)(x))
        torch.testing.assert_close(value, HOOKS[hook](sae, x))

    def test_hear_the_input_once_when_others_listen_too(self):
        sae, x = inference_sae(), sparse_problem().x_BN
        sae.hook_sae_acts_post.register_forward_hook(lambda module, given, out: out)
        assert len(heard(sae, "hook_sae_input", lambda: sae.encode_sparse(x))) == 1

    @pytest.mark.parametrize("hook", ["hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons"])
    def test_hear_a_training_step_and_leave_its_result_as_it_is(self, hook):
        sae, x = training_sae(), sparse_problem().x_BN
        expected = step(sae, x)
        outputs: list[TrainStepOutput] = []
        (value,) = heard(sae, hook, lambda: outputs.append(step(sae, x)))
        assert sae.engine_choice.impl == "reference"
        torch.testing.assert_close(value, HOOKS[hook](sae, x))
        torch.testing.assert_close(outputs[0].loss, expected.loss)
        step(sae, x)
        assert sae.engine_choice.impl == "numba"

    def test_of_every_module_are_heard_too(self):
        sae, x, heard_points = training_sae(), sparse_problem().x_BN, set()
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda module, given, out: heard_points.add(module)
        )
        try:
            step(sae, x)
        finally:
            handle.remove()
        assert sae.hook_sae_acts_post in heard_points

    def test_may_change_what_they_hear(self):
        sae, x = inference_sae(), sparse_problem().x_BN
        expected = sae.decode(2 * sae.encode(x))
        changed = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", lambda v, hook: 2 * v)])
        torch.testing.assert_close(changed, expected)


class TestTraining:
    @pytest.mark.parametrize(("share", "impl"), [(FEW, "numba"), (MANY, "dense")])
    def test_the_engine_serves_where_nobody_listens(self, share, impl):
        sae, p = training_sae(share), sparse_problem(share)
        losses, gradients = truth(p)
        output = step(sae, p.x_BN)
        assert sae.engine_choice.impl == impl
        for found, expected in zip(output.losses.values(), losses, strict=True):
            assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.equal(output.feature_acts.to_dense() > 0, sae.encode(p.x_BN) > 0)
        assert_gradients(sae, p.x_BN, gradients, 1e-5)

    def test_the_encoder_may_see_activations_as_they_are(self):
        sae, p = training_sae(apply_b_dec_to_input=False), sparse_problem(centred=False)
        assert_gradients(sae, p.x_BN, truth(p)[1], 1e-5)
        assert sae.engine_choice.impl == "numba"

    def test_activations_that_want_a_gradient_get_it(self):
        sae, p = training_sae(), sparse_problem()
        x = p.x_BN.clone().requires_grad_()
        (found,) = torch.autograd.grad(step(sae, x).loss, x)
        assert sae.engine_choice.impl == "reference"
        assert relative_error(found, truth(p)[1]["x"]) < 1e-5

    @pytest.mark.parametrize("way", ["bfloat16 weights", "autocast"])
    def test_low_precision_takes_the_plain_step(self, way):
        sae = training_sae(dtype="bfloat16" if way == "bfloat16 weights" else "float32")
        p = sparse_problem()
        x = p.x_BN.to(sae.dtype)
        with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else nullcontext():
            assert_gradients(sae, x, truth(p)[1], 0.1)
        assert sae.engine_choice.impl == "reference"

    def test_activations_of_another_type_are_taken_in_that_of_the_weights(self):
        sae, p = training_sae(), sparse_problem()
        output = step(sae, p.x_BN.double())
        assert sae.engine_choice.impl == "numba"
        assert output.loss.item() == pytest.approx(sum(truth(p)[0]).item(), rel=1e-5)

    @pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
    def test_normalisation_at_run_time_takes_the_plain_step(self, normalization):
        sae, p = training_sae(normalize_activations=normalization), sparse_problem()
        losses = step(sae, p.x_BN).losses
        assert sae.engine_choice.impl == "reference"
        normalised = sae.run_time_activation_norm_fn_in(p.x_BN)
        expected = truth(p, normalised)[0]
        for name, value in zip(
            ("l1_loss", "auxiliary_reconstruction_loss"), expected[1:], strict=True
        ):
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5)

    def test_after_inference_mode_it_goes_on(self):
        sae, x = training_sae(), sparse_problem().x_BN
        with torch.inference_mode():
            sae.encode(x)
            sae(x)
        step(sae, x).loss.backward()
        assert sae.W_enc.grad is not None

    def test_an_optimizer_learns_on_the_engine_as_on_autograd(self):
        p, found = sparse_problem(), {}
        for impl in ("auto", "reference"):
            sae = training_sae()
            optimizer = torch.optim.SGD(sae.parameters(), lr=1e-4)
            with use(impl=impl):
                for _ in range(5):
                    optimizer.zero_grad()
                    step(sae, p.x_BN).loss.backward()
                    optimizer.step()
            found[impl] = {name: getattr(sae, name).detach() for name in WEIGHTS}
        for name in WEIGHTS:
            assert relative_error(found["auto"][name], found["reference"][name]) < 1e-6, name
