"""Dead features begin anew at badly reconstructed inputs, exactly and once."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import weakref
from collections.abc import Iterator

import pytest
import torch
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig, TrainStepInput
from torch import Tensor
from torch.optim import Adam

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.engine import options as engine
from gated_plugin.errors import GatedError
from gated_plugin.non_finite import NonFiniteLossError
from gated_plugin.resampling_plan import OFF, SCHEMES
from gated_plugin.trainer_hooks import resampling, revival
from gated_plugin.trainer_hooks.resampling import STATE_FILENAME, Resampled

N, M, B = 12, 40, 64
SCHEDULE = {"resampling": "paper", "resample_steps": [6, 13], "resample_window": 4}
DEAD = [3, 17, 18, 39]
ALIVE = [feature for feature in range(M) if feature not in DEAD]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_sae(architecture: str = "gated", **settings: object) -> TrainingSAE:
    """All features fire often; `train` closes the gates of `DEAD` after the first step."""
    torch.manual_seed(0)
    cfg = {"architecture": architecture, "d_in": N, "d_sae": M, "l1_coefficient": 0.1}
    fields = {**cfg, **SCHEDULE, "rewarm_steps": 5, **settings}
    sae = TrainingSAE.from_dict(TrainingSAEConfig.from_dict(fields).to_dict())
    sae.b_dec.data = 0.1 * torch.randn(N)
    return sae


def close(sae, features: int | list[int]) -> None:
    (sae.b_gate if hasattr(sae, "b_gate") else sae.b_enc).data[features] = -1e3


def batch(step: int, rows: int = B) -> Tensor:
    return torch.randn(rows, N, generator=torch.Generator().manual_seed(step))


def forward(sae, step: int, x: Tensor | None = None):
    x = batch(step) if x is None else x
    return sae.training_forward_pass(TrainStepInput(x, {"l1": 0.1}, None, step, False))


def train(sae, optimizer, steps: range) -> None:
    for step in steps:
        if step == 1:
            close(sae, DEAD)
        forward(sae, step).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adam_of(sae, beta1: float = 0.0) -> Adam:
    return Adam(sae.parameters(), lr=1e-3, betas=(beta1, 0.999))


def state_of(sae, optimizer) -> dict[str, Tensor]:
    """Everything of every feature, features first."""
    moments = optimizer.state_dict()["state"]
    found = {}
    for number, (name, parameter) in enumerate(sae.named_parameters()):
        for kind, value in {"weight": parameter.data, **moments[number]}.items():
            if kind != "step":
                found[f"{name} {kind}"] = (value.T if name == "W_enc" else value).clone()
    return found


@pytest.mark.parametrize("impl", ["numba", "reference"])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("architecture", ["gated", "l1_baseline"])
def test_dead_features_alone_begin_anew_as_the_paper_has_it(architecture, beta1, impl):
    with engine.use(impl=impl):
        sae, twin = (
            make_sae(architecture),
            make_sae(architecture, resampling=OFF, resample_steps=[]),
        )
        optimizer, twins = adam_of(sae, beta1), adam_of(twin, beta1)
        train(sae, optimizer, range(5))
        train(twin, twins, range(5))
        assert sae.resampler.history == []
        assert optimizer.state[sae.W_dec]["exp_avg_sq"][DEAD].any()
        train(sae, optimizer, range(5, 6))
        train(twin, twins, range(5, 6))
    assert sae.resampler.history == [Resampled(step=6, dead=4, resampled=4)]
    found, untouched = state_of(sae, optimizer), state_of(twin, twins)
    for name, value in found.items():
        if name.startswith("b_dec"):
            assert torch.equal(value, untouched[name]), name
        else:
            assert torch.equal(value[ALIVE], untouched[name][ALIVE]), name
            assert "exp_avg" not in name or not value[DEAD].any(), name
            assert name[0] == "W" or not value[DEAD].any(), name

    offered = torch.cat([batch(step) for step in range(2, 6)]).double() - sae.b_dec.detach()
    directions = offered / offered.norm(dim=1, keepdim=True)
    rows = found["W_dec weight"][DEAD].double()
    nearest = (rows @ directions.T).max(dim=1)
    assert (nearest.values > 1 - 1e-6).all()
    assert len(set(nearest.indices.tolist())) == len(DEAD)
    mean_norm = found["W_enc weight"][ALIVE].double().norm(dim=1).mean()
    torch.testing.assert_close(found["W_enc weight"][DEAD].double(), 0.2 * mean_norm * rows)


def test_inputs_are_drawn_by_their_squared_loss(monkeypatch):
    offers = []
    monkeypatch.setattr(
        resampling.Reservoir,
        "offer",
        lambda self, rows, log_weights, seed: offers.append((rows.clone(), log_weights, seed)),
    )
    sae = make_sae()
    for step in range(6):
        output = forward(sae, step)
        x, x_hat = output.sae_in.double(), output.sae_out.detach().double()
        if offers:
            rows, log_weights, _ = offers[-1]
            loss = (x - x_hat).square().sum(1)
            assert torch.equal(rows, output.sae_in)
            torch.testing.assert_close(log_weights, (loss**2).log(), rtol=1e-5, atol=1e-5)
        sae.resampler.after_step(sae, None)
    assert len(offers) == SCHEDULE["resample_window"]
    assert len({seed for *_, seed in offers}) == len(offers)


def test_the_last_inputs_before_the_step_are_collected_and_no_more(monkeypatch):
    monkeypatch.setattr(resampling, "INPUTS_PER_PLACE", 3)
    sae = make_sae()
    optimizer = adam_of(sae)
    train(sae, optimizer, range(4))
    assert sae.resampler.reservoir.rows_RN is None
    train(sae, optimizer, range(4, 5))
    assert sae.resampler.reservoir.rows_RN is not None
    train(sae, optimizer, range(5, 6))
    assert sae.resampler.reservoir.rows_RN is None


def test_who_fires_on_one_row_of_the_window_or_was_just_revived_is_not_dead():
    sae = make_sae(resample_steps=[6, 8], l1_coefficient=0.0)
    optimizer = Adam(sae.parameters(), lr=0.0)
    for step, lucky in enumerate((3, None, 17, None, None, 18, None, None)):
        sae.b_gate.data[DEAD] = -1e3
        if step >= 6:
            sae.b_gate.data[ALIVE] = 0.0
        if lucky is not None:
            sae.b_gate.data[lucky] = 1e3
            sae.b_mag.data[lucky] = 1e3
        train(sae, optimizer, range(step, step + 1))
    # 3 fired at step 1, before the window of step 6; 17 at step 3 and 18 at step 6, in it. At step
    # 8, 17 has been silent for five steps; 3 and 39 have, but begun anew two steps ago.
    assert [(e.step, e.dead) for e in sae.resampler.history] == [(6, 2), (8, 1)]


def test_more_dead_features_than_inputs_wait_for_the_next_step(monkeypatch, caplog):
    monkeypatch.setattr(resampling, "LARGEST_RESERVOIR", 3)
    sae = make_sae()
    with caplog.at_level(logging.INFO, "gated_plugin"):
        train(sae, adam_of(sae), range(13))
    assert sae.resampler.history == [Resampled(6, 4, 3), Resampled(13, 1, 1)]
    assert "Step 6: resampled 3 of 4 dead features." in caplog.messages
    assert sae.resampler.metrics["resampled_features"] == 4


def test_where_all_are_dead_the_encoder_rows_take_the_mean_of_all():
    sae = make_sae(resample_steps=[4])
    sae.b_gate.data[:] = -1e3
    sae.W_enc.data *= torch.linspace(1, 2, M)
    expected = 0.2 * sae.W_enc.detach().norm(dim=0).mean()
    train(sae, Adam(sae.parameters(), lr=0.0), range(4))
    assert sae.resampler.history == [Resampled(4, M, M)]
    torch.testing.assert_close(sae.W_enc.norm(dim=0), expected.expand(M))


def test_nothing_dead_leaves_weights_and_learning_rate_alone():
    sae = make_sae()
    optimizer = adam_of(sae)
    train(sae, optimizer, range(2))
    sae.b_gate.data[DEAD] = 0.0
    train(sae, optimizer, range(2, 6))
    assert sae.resampler.history == [Resampled(6, 0, 0)]
    assert sae.resampler.metrics == {"resampled_features": 0, "lr_factor": 1.0}


def test_the_learning_rate_drops_and_the_metrics_say_so():
    sae = make_sae()
    optimizer = adam_of(sae)
    train(sae, optimizer, range(6))
    metrics = forward(sae, 6).metrics
    assert metrics == {"resampled_features": 4, "lr_factor": pytest.approx(0.1)}
    before = sae.b_dec.detach().clone()
    sae.b_dec.grad = torch.ones(N)
    optimizer.step()
    # β1 = 0, and a second moment near that of the gradients before: about lr, but for the factor.
    assert (sae.b_dec - before).abs().max() < 1e-3 * 0.1 * 32
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_steps_are_counted_by_optimizer_steps_that_followed_a_training_pass():
    sae = make_sae()
    optimizer = adam_of(sae)
    (forward(sae, 0).loss + forward(sae, 1).loss).backward()  # accumulated
    optimizer.step()
    optimizer.step()
    with torch.no_grad():
        forward(sae, 2)
    optimizer.step()
    with pytest.raises(NonFiniteLossError):
        forward(sae, 3, torch.full((B, N), torch.nan))
    optimizer.step()
    Adam([torch.nn.Parameter(torch.zeros(1))]).step()
    assert sae.resampler.step == 1


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_a_checkpoint_at_any_step_goes_on_bit_for_bit(beta1, tmp_path):
    def go_on(sae, optimizer, first: int) -> Iterator[int]:
        for step in range(first, 20):
            yield step
            if step == 4:  # fired in the window of step 6, which only a checkpoint remembers
                close(sae, 5)
            train(sae, optimizer, range(step, step + 1))

    sae = make_sae()
    optimizer = adam_of(sae, beta1)
    saved = []
    for step in go_on(sae, optimizer, 0):
        saved.append((tmp_path / str(step), copy.deepcopy(optimizer.state_dict())))
        sae.save_model(saved[-1][0])
    assert sae.resampler.history == [Resampled(6, 4, 4), Resampled(13, 1, 1)]
    expected = state_of(sae, optimizer)
    for first, (folder, moments) in enumerate(saved):
        resumed = make_sae()
        resumed.load_weights_from_checkpoint(folder)
        again = adam_of(resumed, beta1)
        again.load_state_dict(moments)
        list(go_on(resumed, again, first))
        assert resumed.resampler.history == sae.resampler.history
        for name, value in state_of(resumed, again).items():
            assert torch.equal(value, expected[name]), (first, name)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))])
def test_copies_go_on_alone(duplicate):
    sae = make_sae()
    train(sae, adam_of(sae), range(5))
    other = duplicate(sae)
    train(other, adam_of(other), range(5, 6))
    assert (sae.resampler.step, other.resampler.step) == (5, 6)
    train(sae, adam_of(sae), range(5, 6))
    assert torch.equal(sae.W_dec, other.W_dec)
    assert other.resampler.history == [Resampled(6, 4, 4)]


def test_parameters_that_are_assigned_are_resampled_too():
    sae = make_sae()
    train(sae, adam_of(sae), range(5))
    sae.load_state_dict(copy.deepcopy(sae.state_dict()), assign=True)
    train(sae, adam_of(sae), range(5, 6))
    assert sae.resampler.history == [Resampled(6, 4, 4)]


def test_nothing_keeps_a_trained_sae_in_memory():
    sae = make_sae()
    train(sae, adam_of(sae), range(1))
    remembered = weakref.ref(sae)
    del sae
    gc.collect()
    assert remembered() is None


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_directions_are_in_the_units_that_the_decoder_writes_in(normalization):
    sae = make_sae(normalize_activations=normalization)
    train(sae, Adam(sae.parameters(), lr=0.0), range(6))
    x = torch.cat([batch(step) for step in range(2, 6)])
    seen = torch.nn.functional.normalize(sae.process_sae_in(x), dim=1)
    assert ((sae.W_dec[DEAD] @ seen.T).max(dim=1).values > 1 - 1e-5).all()


def test_an_encoder_that_does_not_see_b_dec_gets_the_input_itself():
    sae = make_sae(apply_b_dec_to_input=False)
    train(sae, Adam(sae.parameters(), lr=0.0), range(6))
    x = torch.nn.functional.normalize(torch.cat([batch(step) for step in range(2, 6)]), dim=1)
    assert ((sae.W_dec[DEAD] @ x.T).max(dim=1).values > 1 - 1e-6).all()


def test_other_optimizers_and_stacked_batches_will_do():
    sae = make_sae()
    optimizer = torch.optim.SGD(sae.parameters(), lr=1e-3, momentum=0.9)
    train(sae, optimizer, range(2))
    assert optimizer.state[sae.W_dec]["momentum_buffer"][DEAD].any()
    for step in range(2, 6):
        forward(sae, step, batch(step).view(4, B // 4, N)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sae.resampler.history == [Resampled(6, 4, 4)]
    assert not optimizer.state[sae.W_dec]["momentum_buffer"][DEAD].any()
    assert optimizer.state[sae.W_dec]["momentum_buffer"][ALIVE].any()


def test_a_compiled_step_is_watched():
    sae = make_sae()
    sae.training_forward_pass = torch.compile(sae.training_forward_pass, backend="eager")
    train(sae, adam_of(sae), range(6))
    assert sae.resampler.history == [Resampled(6, 4, 4)]


def test_an_inference_model_knows_nothing_of_it(tmp_path):
    make_sae().save_inference_model(tmp_path)
    assert not (tmp_path / STATE_FILENAME).exists()


def test_off_is_the_default_and_holds_no_state(tmp_path):
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=N, d_sae=M))
    assert sae.resampler is None
    assert forward(sae, 0).metrics == {}
    sae.save_model(tmp_path)
    assert not (tmp_path / STATE_FILENAME).exists()


def test_every_scheme_that_can_be_named_has_its_function():
    assert set(SCHEMES) == {OFF, *revival.SCHEMES}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resampling": "papre"}, "give one of off, paper"),
        ({"resample_steps": []}, "give the steps with a scheme"),
        ({"resampling": "off"}, "give the steps with a scheme"),
        ({"resample_steps": [6, 6]}, "ascending, each of them once"),
        ({"resample_steps": [13, 6]}, "ascending"),
        ({"resample_steps": [6.5]}, "whole numbers"),
        ({"resample_steps": [3, 13]}, "begins at 3, when no feature"),
        ({"resample_window": 0}, "at least 1"),
        ({"rewarm_steps": -1}, "at least 0"),
    ],
)
def test_what_cannot_go_together_is_refused_when_the_configuration_is_made(fields, said):
    with pytest.raises(GatedError, match=said) as caught:
        GatedTrainingSAEConfig(d_in=N, d_sae=M, **{**SCHEDULE, **fields})
    assert str(caught.value).endswith(".")
