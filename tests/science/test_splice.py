"""Replaced activations: what is touched, and that a pass from the middle is the whole pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_plugin.science.splice import Entry, Passes, Place, entry


@pytest.mark.parametrize(
    ("shape", "head"), [((2, 5, 12), None), ((2, 5, 3, 4), None), ((2, 5, 3, 12), 1)]
)
def test_every_other_number_stays_bit_for_bit(shape: tuple[int, ...], head: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 5, generator=generator) < 0.5
    activation = torch.randn(shape, generator=generator)
    before = activation.clone()
    place = Place(head, mask)
    x = place.take(activation)
    assert x.shape == (mask.sum(), 12)
    values = torch.randn(x.shape, generator=generator)
    spliced, zeroed = place.put(activation, values), place.put(activation, 0.0)
    assert torch.equal(activation, before)
    assert spliced.shape == zeroed.shape == shape
    assert torch.equal(place.take(spliced), values)
    touched = torch.zeros(shape, dtype=torch.bool)
    if head is None:
        touched[mask] = True
    else:
        touched[:, :, head][mask] = True
    assert torch.equal(zeroed, activation.masked_fill(touched, 0))
    assert torch.equal(spliced[~touched], activation[~touched])
    assert torch.equal(place.put(activation, x), activation)


def model(**settings: Any) -> HookedTransformer:
    """Three blocks with random weights."""
    given = {"n_layers": 3, "d_model": 16, "n_ctx": 12, "d_head": 4, "n_heads": 4, "d_vocab": 50}
    given |= {"act_fn": "gelu", "seed": 1, "device": "cpu", "init_weights": True}
    random_state = torch.get_rng_state()
    made = HookedTransformer(HookedTransformerConfig(**{**given, **settings}))
    torch.set_rng_state(random_state)
    return made.eval()


def configured(hook_name: str) -> Any:
    return SimpleNamespace(hook_name=hook_name, model_kwargs={})


TOKENS = torch.arange(2 * 12).view(2, 12) * 7 % 50
SERIAL: dict[str, Any] = {}
PARALLEL = {
    "positional_embedding_type": "rotary",
    "parallel_attn_mlp": True,
    "rotary_dim": 2,
    "final_rms": True,
    "normalization_type": "RMS",
}


@pytest.mark.parametrize("settings", [SERIAL, PARALLEL], ids=["gpt2", "pythia"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    "point",
    [
        "hook_resid_pre",
        "hook_resid_post",
        "hook_mlp_out",
        "mlp.hook_post",
        "attn.hook_z",
        "attn.hook_q",
    ],
)
def test_a_pass_that_begins_at_the_block_equals_the_whole_pass(
    point: str, layer: int, settings: dict[str, Any]
) -> None:
    language_model = model(**settings)
    cfg = configured(f"blocks.{layer}.{point}")
    begin = entry(language_model, cfg)
    assert begin is not None
    short, whole = (Passes(language_model, cfg, TOKENS, e) for e in (begin, None))
    assert torch.equal(short.clean, whole.clean)
    assert torch.equal(short.activation, whole.activation)
    noise = torch.randn(short.activation.shape, generator=torch.Generator().manual_seed(2))
    for replacement in (noise, torch.zeros_like(noise)):
        assert torch.equal(short.with_activation(replacement), whole.with_activation(replacement))
        assert not torch.equal(short.with_activation(replacement), whole.clean)
    assert torch.equal(short.with_activation(short.activation), short.clean)


def test_losses_are_those_of_what_follows_each_token() -> None:
    language_model = model()
    passes = Passes(language_model, configured("blocks.1.hook_resid_post"), TOKENS, None)
    logits = language_model(TOKENS).double()
    expected = -logits.log_softmax(-1)[:, :-1].gather(2, TOKENS[:, 1:, None])[..., 0]
    assert torch.allclose(passes.clean.double(), expected, atol=1e-5)


def test_earlier_blocks_run_once() -> None:
    language_model = model()
    cfg = configured("blocks.1.mlp.hook_post")
    ran: list[int] = []
    for layer, block in enumerate(language_model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    passes = Passes(language_model, cfg, TOKENS, entry(language_model, cfg))
    for _ in range(2):
        passes.with_activation(passes.activation)
    assert ran == [0, 1, 2, 1, 2, 1, 2]


def test_after_the_last_block_none_runs_again() -> None:
    language_model = model()
    assert entry(language_model, configured("blocks.2.hook_resid_post")) == Entry(
        3, "blocks.2.hook_resid_post"
    )


@pytest.mark.parametrize("hook_name", ["hook_embed", "ln_final.hook_normalized", "transformer.h.0"])
def test_a_hook_point_outside_of_the_blocks_takes_the_whole_pass(hook_name: str) -> None:
    assert entry(model(), configured(hook_name)) is None


def test_blocks_that_see_more_than_the_residual_stream_take_the_whole_pass() -> None:
    cfg = configured("blocks.1.mlp.hook_post")
    assert entry(model(positional_embedding_type="shortformer"), cfg) is None
    padded = model()
    padded.tokenizer = SimpleNamespace(padding_side="left")
    assert entry(padded, cfg) is None
    assert entry(object(), cfg) is None
    with_arguments = SimpleNamespace(hook_name=cfg.hook_name, model_kwargs={"attention_mask": 1})
    assert entry(model(), with_arguments) is None
