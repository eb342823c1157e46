"""SAELens' own runners, unmodified, train our class; and what SAELens checks of every SAE holds."""

from __future__ import annotations

import json

import pytest
import torch
from sae_lens import (
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    StandardTrainingSAEConfig,
)
from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig

from gated_plugin import (
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    quickstart,
)

HOOK = "blocks.0.hook_resid_post"
QUIET = LoggingConfig(log_to_wandb=False)


@pytest.fixture(scope="module")
def language_model():
    return quickstart.language_model()


@pytest.fixture
def rows():
    return quickstart.dataset("embedded/books").select(range(64))


def norm_error(sae: TrainingSAE) -> float:
    return (sae.W_dec.detach().double().norm(dim=1) - 1).abs().max().item()


def runner_config(sae: TrainingSAEConfig, **fields: object) -> LanguageModelSAERunnerConfig:
    values = {
        "model_name": quickstart.MODEL_NAME,
        "hook_name": HOOK,
        "context_size": 128,
        "training_tokens": 64 * 12,
        "train_batch_size_tokens": 64,
        "store_batch_size_prompts": 2,
        "n_batches_in_buffer": 2,
        "n_batches_for_norm_estimate": 2,
        "adam_beta1": 0.0,
        "lr": 1e-3,
        "logger": QUIET,
        "checkpoint_path": None,
        "output_path": None,
        "verbose": False,
    }
    return LanguageModelSAERunnerConfig(sae=sae, **{**values, **fields})


# An existing script may build SAELens' own configuration; it gets ours all the same.
@pytest.mark.parametrize("config", [GatedTrainingSAEConfig, saelens.GatedTrainingSAEConfig])
@pytest.mark.parametrize("normalization", ["none", "expected_average_only_in"])
def test_language_model_runner(config, normalization, language_model, rows, tmp_path):
    cfg = runner_config(
        config(d_in=256, d_sae=64, normalize_activations=normalization),
        output_path=str(tmp_path / "out"),
        checkpoint_path=str(tmp_path / "checkpoints"),
        n_checkpoints=1,
    )
    sae = LanguageModelSAETrainingRunner(
        cfg, override_model=language_model, override_dataset=rows
    ).run()
    assert type(sae) is GatedTrainingSAE
    assert norm_error(sae) < 1e-6
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert type(loaded) is GatedSAE
    x = torch.randn(4, 256)
    assert torch.equal(loaded(x), sae(x))
    (checkpoint,) = (path.parent for path in (tmp_path / "checkpoints").rglob("trainer_state.pt"))
    resumed = LanguageModelSAETrainingRunner(
        runner_config(cfg.sae, resume_from_checkpoint=str(checkpoint)),
        override_model=language_model,
        override_dataset=rows,
    ).run()
    assert norm_error(resumed) < 1e-6


def test_multi_sae_runner_beside_another_architecture(language_model, rows):
    cfg = MultiSAETrainingRunnerConfig(
        saes={
            "low": GatedTrainingSAEConfig(d_in=256, d_sae=64, l1_coefficient=0.5),
            "high": GatedTrainingSAEConfig(d_in=256, d_sae=64, l1_coefficient=5.0),
            "baseline": StandardTrainingSAEConfig(d_in=256, d_sae=96),
        },
        hook_names=HOOK,
        model_name=quickstart.MODEL_NAME,
        training_tokens=64 * 10,
        train_batch_size_tokens=64,
        store_batch_size_prompts=2,
        n_batches_in_buffer=2,
        adam_beta1=0.0,
        logger=QUIET,
        checkpoint_path=None,
        output_path=None,
    )
    saes = MultiSAETrainingRunner(cfg, override_model=language_model, override_dataset=rows).run()
    assert max(norm_error(saes[name]) for name in ("low", "high")) < 1e-6
    assert norm_error(saes["baseline"]) > 1e-3


@pytest.mark.parametrize("config", [GatedTrainingSAEConfig, saelens.GatedTrainingSAEConfig])
def test_synthetic_runner(config):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=32, hidden_dim=16),
        sae=config(d_in=16, d_sae=32),
        training_samples=20 * 32,
        batch_size=32,
        eval_frequency=0,
        output_path=None,
        checkpoint_path=None,
        logger=QUIET,
    )
    runner = SyntheticSAERunner(cfg)
    runner.run()
    assert type(runner.sae) is GatedTrainingSAE
    assert norm_error(runner.sae) < 1e-6


@pytest.mark.parametrize("option", ["autocast", "compile_sae"])
def test_speed_options_train_to_the_same_place(option, language_model, rows):
    trained = {}
    for chosen in (False, True):
        torch.manual_seed(0)
        sae = LanguageModelSAETrainingRunner(
            runner_config(GatedTrainingSAEConfig(d_in=256, d_sae=64), **{option: chosen}),
            override_model=language_model,
            override_dataset=rows,
        ).run()
        assert norm_error(sae) < 1e-6
        trained[chosen] = sae.W_dec.detach()
    agreement = torch.nn.functional.cosine_similarity(trained[False], trained[True], dim=1)
    assert agreement.min() > 0.99


def test_hooked_transformer_splices_it_in_with_and_without_the_error_term(language_model):
    host = HookedSAETransformer(language_model.cfg, tokenizer=language_model.tokenizer)
    host.load_state_dict(language_model.state_dict())
    sae = GatedSAE(GatedSAEConfig(d_in=256, d_sae=64))
    sae.cfg.metadata.hook_name = HOOK
    tokens = torch.tensor(quickstart.tokens("embedded/books-heldout")[:2].astype("int64"))
    clean = host(tokens)
    spliced, cache = host.run_with_cache_with_saes(tokens, saes=[sae])
    assert not torch.allclose(spliced, clean, atol=1e-2)
    assert cache[f"{HOOK}.hook_sae_acts_post"].shape == (2, 128, 64)
    exact = host.run_with_saes(tokens, saes=[sae], use_error_term=True)
    torch.testing.assert_close(exact, clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(host(tokens), clean)


def test_training_reduces_the_loss_on_the_same_batch(language_model, rows):
    cfg = runner_config(GatedTrainingSAEConfig(d_in=256, d_sae=64), lr=1e-2)
    runner = LanguageModelSAETrainingRunner(
        cfg, override_model=language_model, override_dataset=rows
    )
    batch = next(runner.activations_store)
    from sae_lens.training.sae_trainer import SAETrainer

    trainer = SAETrainer(cfg.to_sae_trainer_config(), runner.sae, iter([batch]))
    losses = [trainer.step(batch).loss.item() for _ in range(12)]
    assert losses[-1] < losses[0]
    assert trainer.n_forward_passes_since_fired.max() <= 12


class TestConfiguration:
    def test_training_config_survives_a_round_trip(self):
        cfg = GatedTrainingSAEConfig(d_in=8, d_sae=16, l1_coefficient=3.0, target_l0=4.0)
        again = TrainingSAEConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
        assert type(again) is GatedTrainingSAEConfig
        assert again == cfg

    def test_inference_config_survives_a_round_trip(self):
        cfg = GatedSAEConfig(d_in=8, d_sae=16)
        again = SAEConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
        assert type(again) is GatedSAEConfig
        assert again == cfg

    def test_inference_config_has_saelens_keys_alone(self):
        theirs = saelens.GatedSAEConfig(d_in=8, d_sae=16).to_dict()
        assert GatedSAEConfig(d_in=8, d_sae=16).to_dict() == theirs

    def test_how_it_was_trained_is_in_the_metadata(self):
        sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=8, d_sae=16, l1_coefficient=3.0))
        details = sae.cfg.get_inference_sae_cfg_dict()["metadata"]["training_architecture_details"]
        assert details["l1_coefficient"] == 3.0
        assert details["decoder_init_norm"] == 1.0

    def test_the_start_is_a_unit_decoder_and_its_transpose_scaled(self):
        sae = GatedTrainingSAE(
            GatedTrainingSAEConfig(d_in=8, d_sae=16, decoder_init_norm=0.1, encoder_init_norm=0.3)
        )
        assert norm_error(sae) < 1e-6
        torch.testing.assert_close(sae.W_enc, 0.3 * sae.W_dec.T)
        assert not any(getattr(sae, name).any() for name in ("b_gate", "b_mag", "r_mag", "b_dec"))
