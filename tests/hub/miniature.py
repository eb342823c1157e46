"""A trained and evaluated run in miniature, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.runs import Run

D_IN, D_SAE = 16, 64

RECIPE = """\
name: miniature
model_name: embedded/books-gelu-1l-256
hook_name: blocks.0.mlp.hook_post
dataset_path: embedded/books
context_size: 128
prepend_bos: true
sae:
  architecture: gated
  d_in: 16
  d_sae: 64
  l1_coefficient: 0.75
  normalize_activations: expected_average_only_in
training_tokens: 100_000
train_batch_size_tokens: 512
lr: 0.003
adam_beta1: 0.0
evaluation:
  dataset_path: embedded/books-heldout
publish:
  license: mit
  base_model_terms: The language model is MIT licensed.
"""

FIGURES = {
    "l0": 12.34,
    "loss_recovered": 0.9512,
    "gamma": 1.0021,
    "alive": 0.875,
    "fvu": 0.0813,
    "ce_clean": 3.4567,
    "ce_sae": 3.6789,
    "ce_zero": 8.0123,
    "tokens_evaluated": 20_000,
    "tokens_trained": 99_840,
    "dataset_path": "embedded/books-heldout",
    "context_size": 128,
    "seconds": 1.5,
}


def make_run(path: Path) -> None:
    """Writes the run; decoder norms are free, so that folding has work to do."""
    run = Run(path)
    run.path.mkdir()
    run.recipe.write_text(RECIPE)
    run.evaluation.write_text(json.dumps(FIGURES))
    generator = torch.Generator().manual_seed(0)
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    sae.cfg.metadata.hook_name = "blocks.0.mlp.hook_post"
    sae.save_inference_model(run.sae)
    (run.sae / "runner_cfg.json").write_text(json.dumps({"output_path": str(run.path)}))
    save_file({"sparsity": torch.full((D_SAE,), -1.5)}, run.sae / "sparsity.safetensors")
    activations = torch.randn(256, D_IN, generator=generator)
    save_file({"activations": activations}, run.activations)
    run.plots.mkdir()
    (run.plots / "training.png").write_bytes(b"\x89PNG\r\n\x1a\n")
