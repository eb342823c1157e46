"""What `gated-hub plan` counts, against models and steps that are there to be counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gated_plugin import quickstart
from gated_plugin.engine.step import gated_step
from gated_plugin.engine.support import EncoderWeights
from gated_plugin.errors import GatedError
from gated_plugin.plan import RunPlan, devices, plan, plan_all
from gated_plugin.plan.devices import GPUS, Device
from gated_plugin.plan.language_models import KNOWN, language_model
from gated_plugin.plan.shape import OURS
from gated_plugin.plan.work import DENSE_PRODUCTS, OTHER_PRODUCTS
from gated_plugin.recipes import Recipe

ON_THE_HUB = {
    "google/gemma-7b": 8_537_680_896,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
}
"""Parameters as the Hub's pages of these models give them, norms and biases among them."""

GEMMA = "gemma-7b/resid-20-lambda-0.0005"


def sizes(rows: int, d_in: int, d_sae: int, l0: int) -> list[str]:
    """Overrides of `tiny`."""
    return [
        f"train_batch_size_tokens={rows}",
        f"sae.d_in={d_in}",
        f"sae.d_sae={d_sae}",
        f"sae.target_l0={l0}",
        "training_tokens=4096",
    ]


def part(found: RunPlan, name: str) -> Any:
    (one,) = [one for one in (*found.memory, *found.disk, *found.work) if one.part == name]
    return one


@pytest.fixture(scope="module")
def gemma() -> RunPlan:
    return plan(GEMMA, gpu="h200")


@pytest.mark.parametrize(("name", "parameters"), ON_THE_HUB.items())
def test_known_models_have_the_parameters_that_the_hub_says(name: str, parameters: int) -> None:
    assert KNOWN[name].parameters_on_the_hub == pytest.approx(parameters, rel=1e-3)


def test_the_embedded_model_is_counted_as_it_is_held_and_run() -> None:
    model = quickstart.language_model()
    known = language_model(quickstart.MODEL_NAME)
    held = sum(p.numel() for p in model.parameters())
    assert known.parameters == pytest.approx(held, rel=3e-3) and known.parameters <= held
    tokens = torch.zeros(2, 128, dtype=torch.long)
    for stop in (None, 1):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(tokens, stop_at_layer=stop)
        assert counter.get_total_flops() == 2 * 128 * known.forward_flops(128, stop)


def products(step: Callable[[], Tensor], rows: int, d_in: int, d_sae: int) -> float:
    """Multiply-adds of a step and its backward pass, in products of [rows, d_in] × [d_in, d_sae]."""
    with FlopCounterMode(display=False) as counter:
        step().backward()
    return counter.get_total_flops() / (2 * rows * d_in * d_sae)


def test_our_dense_step_has_as_many_products_as_are_planned() -> None:
    rows, d_in, d_sae = 64, 48, 96
    sae = TrainingSAE.from_dict({"architecture": "gated", "d_in": d_in, "d_sae": d_sae})
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(0))
    weights = EncoderWeights(sae.W_enc, sae.b_gate, sae.b_mag, sae.r_mag)

    def step() -> Tensor:
        return sum(gated_step(x, weights, sae.W_dec, sae.b_dec, 1.0, impl="dense").losses)

    found = products(step, rows, d_in, d_sae)
    for architecture in OURS:
        assert found == pytest.approx(DENSE_PRODUCTS[architecture], abs=0.1)


@pytest.mark.parametrize("architecture", ["saelens_gated", "standard", "topk", "batchtopk"])
def test_saelens_steps_have_as_many_products_as_are_planned(architecture: str) -> None:
    rows, d_in, d_sae = 64, 48, 96
    fields = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae}
    fields |= {"k": 4} if "topk" in architecture else {}
    sae = TrainingSAE.from_dict(fields)
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(0))
    coefficients = dict.fromkeys(sae.get_coefficients(), 1.0)
    given = TrainStepInput(x, coefficients, None, 0, False)
    found = products(lambda: sae.training_forward_pass(given).loss, rows, d_in, d_sae)
    assert found == pytest.approx(DENSE_PRODUCTS.get(architecture, OTHER_PRODUCTS), abs=0.1)


@pytest.mark.parametrize("architecture", sorted(SAE_TRAINING_CLASS_REGISTRY))
def test_every_architecture_can_be_planned(tiny: Path, tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "one.yaml"
    text = tiny.read_text().replace("architecture: gated", f"architecture: {architecture}")
    path.write_text(text.replace("  l1_coefficient: 0.8\n", ""))
    widths = ["sae.matryoshka_widths=[16, 32]"] if "matryoshka" in architecture else []
    found = plan(str(path), widths, gpu="h100")
    sae = TrainingSAE.from_dict(Recipe.load(path, widths).runner_config().sae.to_dict())
    assert found.parameters == sum(p.numel() for p in sae.parameters())


def test_memory_and_disk_of_an_sae_are_counted_from_its_parameters(gemma: RunPlan) -> None:
    parameters = 2 * 3072 * 131072 + 3 * 131072 + 3072
    assert gemma.parameters == parameters
    for name in ("SAE, weights", "SAE, Adam", "trained SAE", "publication"):
        assert part(gemma, name).bytes == 4 * parameters
    assert part(gemma, "SAE, gradients").bytes == 8 * parameters
    assert part(gemma, "checkpoints").bytes == 2 * 12 * parameters
    assert part(gemma, "SAE, resampling").bytes == 4 * 8192 * 3072
    # 1024 prompts of 1024 tokens less their special one, three times
    assert part(gemma, "activations, buffer").bytes == 3 * 4 * 1024 * 1023 * 3072
    assert gemma.memory_total == sum(one.bytes for one in gemma.memory if one.counts)
    assert gemma.published == 4 * parameters


def test_work_is_counted_from_tokens_and_sizes(gemma: RunPlan) -> None:
    tokens, block = 300_000 * 4096, 4 * 3072 * 4096 + 3 * 3072 * 24576
    # A buffer gives 255 whole batches and reads 1024 × 1024 tokens.
    read = -(-300_000 // 255) * 1024 * 1024
    per_token = 21 * (2 * block + 4 * 1024 * 4096)
    assert gemma.tokens == tokens
    (model,) = [job for job in gemma.work if job.part == "language model"]
    assert model.flops == read * per_token
    assert model.seconds == pytest.approx(model.flops / (0.4 * 989e12))
    product = 2 * 3072 * 131072 * tokens
    assert part(gemma, "SAE, if it were dense").flops == 8 * product  # by tiles
    assert part(gemma, "SAE, sparse").flops == product + 8 * 2 * 3072 * 64 * tokens
    dense = part(plan(GEMMA, ["autocast=true"], gpu="h200"), "SAE, dense")
    assert dense.flops == 7 * product
    assert dense.seconds == pytest.approx(dense.flops / (0.5 * 989e12))


def test_a_sparse_step_on_a_gpu_takes_what_was_counted(gemma: RunPlan) -> None:
    """docs/performance.md, "What can be expected": 13 to 15 ms."""
    assert 0.013 < part(gemma, "SAE, sparse").seconds / gemma.steps < 0.015
    assert "counted, not measured" in gemma.rate


def cpu(float32: float) -> Device:
    rates = {"float32": float32, "bfloat16": 7 * float32}
    return Device(name="cpu", **rates, memory=24e9, measured=True)


@pytest.mark.parametrize(
    ("rows", "d_in", "d_sae", "l0", "seconds"),
    [(4096, 3072, 131072, 64, 7.9), (2048, 768, 24576, 64, 0.163), (1024, 768, 12288, 512, 0.171)],
)
def test_a_sparse_step_on_a_cpu_takes_about_what_was_measured(
    tiny: Path, monkeypatch: Any, rows: int, d_in: int, d_sae: int, l0: int, seconds: float
) -> None:
    """docs/engine.md and docs/performance.md: two cores that multiply 0.38 TFLOP a second."""
    monkeypatch.setattr(devices, "_this_cpu", lambda: cpu(0.38e12))
    found = plan(str(tiny), sizes(rows, d_in, d_sae, l0), gpu="cpu")
    assert part(found, "SAE, sparse").seconds / found.steps == pytest.approx(seconds, rel=0.35)


def test_the_published_file_is_as_large_as_planned(tiny: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(tiny)
    TrainingSAE.from_dict(recipe.runner_config().sae.to_dict()).save_inference_model(tmp_path)
    size = (tmp_path / "sae_weights.safetensors").stat().st_size
    assert 0 < size - plan(str(tiny), gpu="h100").published < 1000  # the file's header


def test_what_saelens_cannot_make_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    text = tiny.read_text().replace("architecture: gated", "architecture: matryoshka_batchtopk")
    path.write_text(text.replace("  l1_coefficient: 0.8\n", ""))
    with pytest.raises(GatedError, match=r"matryoshka_widths must not be empty\.?; change it\.$"):
        plan(str(path), gpu="h100")


@pytest.mark.parametrize("gpu", ["cpu", "a100"])
def test_with_few_gates_open_the_sparse_engine_serves(tiny: Path, gpu: str) -> None:
    sparse = plan(str(tiny), ["sae.d_sae=2048"], gpu=gpu)
    assert part(sparse, "SAE, sparse").flops < part(sparse, "SAE, if it were dense").flops
    assert not part(sparse, "SAE, if it were dense").counts
    crowded = plan(str(tiny), gpu=gpu)  # 64 features of 64 a token
    assert {job.part for job in crowded.work} == {"language model", "SAE, dense", "evaluation"}


@pytest.mark.parametrize(
    ("gpu", "dtype", "percent"),
    [("cpu", "float32", 8), ("h100", "float32", 5), ("h100", "bfloat16", 1)],
)
def test_how_many_open_gates_are_few_is_the_engines_threshold(
    tiny: Path, gpu: str, dtype: str, percent: int
) -> None:
    parts = []
    for l0 in (20 * percent, 20 * percent + 1):
        overrides = ["sae.d_sae=2000", f"sae.target_l0={l0}", f"sae.dtype={dtype}"]
        parts.append([job.part for job in plan(str(tiny), overrides, gpu=gpu).work])
    assert "SAE, sparse" in parts[0]
    assert "SAE, dense" in parts[1]


def test_with_one_moment_gradients_are_held_twice(tiny: Path) -> None:
    found = {beta1: plan(str(tiny), [f"adam_beta1={beta1}"], gpu="cpu") for beta1 in ("0.0", "0.9")}
    weights = 4 * found["0.0"].parameters
    names = ("SAE, gradients", "SAE, Adam")
    held = {beta1: [part(one, name).bytes for name in names] for beta1, one in found.items()}
    assert held == {"0.0": [2 * weights, weights], "0.9": [weights, 2 * weights]}


def test_memory_at_7b_size_is_what_was_measured() -> None:
    """In MB; docs/performance.md and docs/scale.md."""
    found = plan(GEMMA, ["synthetic=true"], gpu="cpu")
    assert part(found, "SAE, dense step").bytes / 1e6 == pytest.approx(617, rel=0.05)
    assert part(found, "SAE, Adam's first step").bytes / 1e6 == pytest.approx(1780, rel=0.05)
    assert part(found, "SAE, sparse step").bytes / 1e6 == pytest.approx(408, rel=0.05)
    assert found.memory_total / 1e6 == pytest.approx(16_047, rel=0.03)


def test_a_recipe_on_a_cpu_is_planned_for_this_one(tiny: Path) -> None:
    found = plan(str(tiny))
    assert found.device == "cpu" and "measured now" in found.rate
    assert found.seconds > 0


def test_a_measured_throughput_replaces_the_estimate(gemma: RunPlan) -> None:
    found = plan(GEMMA, gpu="h200", tokens_per_second=100_000)
    evaluation = part(gemma, "evaluation").seconds
    assert found.seconds == pytest.approx(gemma.tokens / 100_000 + evaluation)
    assert found.flops_total == gemma.flops_total
    assert "100000 tokens a second in training, as given" in found.rate


def test_what_lies_elsewhere_does_not_weigh_on_the_saes_device(gemma: RunPlan) -> None:
    moved = plan(GEMMA, ["act_store_device=cpu"], gpu="h200")
    assert moved.memory_total == gemma.memory_total == gemma.memory_on_device
    buffer = part(gemma, "activations, buffer").bytes
    assert moved.memory_on_device == gemma.memory_on_device - buffer


def test_all_variants_are_planned_in_their_order() -> None:
    found = plan_all("gelu-1l", gpu="h100")
    assert [one.recipe for one in found][:2] == ["gelu-1l/l0-8", "gelu-1l/l0-16"]
    alone = plan("gelu-1l/l0-16", gpu="h100")
    assert asdict(found[1]) == asdict(alone)
    assert plan_all("gelu-1l/l0-16", gpu="h100") == [alone]


def test_a_model_of_unknown_size_is_refused_unless_it_is_told(tiny: Path) -> None:
    overrides = ["model_name=me/mine", "model_from_pretrained_kwargs.dtype=bfloat16"]
    with pytest.raises(GatedError, match=r"me/mine is, is not known here; give --model-params"):
        plan(str(tiny), overrides, gpu="h100")
    told = plan(str(tiny), overrides, gpu="h100", model_parameters=1_000_000)
    assert part(told, "language model, weights").bytes == 2_000_000
    (model,) = [job for job in told.work if job.part == "language model"]
    assert model.flops == 2 * 1_000_000 * 3 * 4 * 128  # 3 buffers of 4 prompts serve 20 batches
    forward = part(told, "language model, forward pass")
    assert (forward.bytes, forward.counts) == (0, False)


def test_an_unknown_device_is_refused_with_the_choices() -> None:
    with pytest.raises(
        GatedError, match=r"'h2' to plan for, but H200, H100, A100, cpu; give --gpu H200"
    ):
        plan("quickstart", gpu="h2")


def test_a_half_as_fast_gpu_takes_twice_as_long(gemma: RunPlan, monkeypatch: Any) -> None:
    slow = replace(
        GPUS["H200"],
        bfloat16=GPUS["H200"].bfloat16 / 2,
        bandwidth=GPUS["H200"].bandwidth / 2,
    )
    monkeypatch.setitem(GPUS, "H200", slow)
    assert plan(GEMMA, gpu="h200").seconds == pytest.approx(2 * gemma.seconds)


def test_on_synthetic_activations_no_language_model_is_counted(gemma: RunPlan) -> None:
    found = plan("gemma-7b/resid-20-lambda-0.0005", ["synthetic=true"], gpu="H200")
    named = [part.part for part in (*found.memory, *found.disk, *found.work)]
    assert not [name for name in named if "language model" in name or "logits" in name]
    directions = next(part for part in found.memory if part.part == "synthetic activations")
    assert directions.bytes == 4 * (4 * 3072 + 4096) * 3072
    assert found.seconds < gemma.seconds
    assert found.parameters == gemma.parameters


def test_on_synthetic_activations_no_language_model_needs_to_be_known(tiny: Path) -> None:
    assert plan(str(tiny), ["synthetic=true", "model_name=me/mine"], gpu="h100").seconds > 0


def test_a_plan_can_be_written_as_json(gemma: RunPlan) -> None:
    assert json.loads(json.dumps(asdict(gemma)))["memory"][0]["part"] == "SAE, weights"


@pytest.mark.parametrize(
    ("rows", "d_sae", "l0", "dense", "sparse"),
    [
        (4096, 24576, 64, 283, 138),
        (2048, 24576, 64, 1093, 90),
        (1024, 12288, 64, 310, 53),
        (1024, 12288, 512, 310, 103),
    ],
)
def test_a_steps_memory_agrees_with_what_was_measured(
    tiny: Path, rows: int, d_sae: int, l0: int, dense: float, sparse: float
) -> None:
    """In MB, by `benchmarks.bounded`, at d_in 768."""
    found = plan(str(tiny), sizes(rows, 768, d_sae, l0), gpu="cpu")
    assert part(found, "SAE, sparse step").bytes / 1e6 == pytest.approx(sparse, rel=0.1)
    assert part(found, "SAE, dense step").bytes / 1e6 == pytest.approx(dense, rel=0.12)
