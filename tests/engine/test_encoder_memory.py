"""W_enc, whose features the engine lays one after another in memory, stays what it is."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from built_saes import MANY, M, N, inference_sae, sparse_problem, step, training_sae
from safetensors.torch import load_file


def used(make=training_sae):
    """An SAE whose W_enc the engine has brought into the order that it reads."""
    sae = make()
    sae.encode(sparse_problem().x_BN)
    return sae


def test_its_shape_stays():
    sae = used()
    assert sae.W_enc.shape == (N, M)
    assert sae.W_enc.stride() == (1, N)
    assert isinstance(sae.W_enc, torch.nn.Parameter)
    assert torch.equal(sae.W_enc, sparse_problem().weights.W_enc_NM)


def test_files_hold_it_contiguous(tmp_path):
    weights, _ = used().save_model(tmp_path)
    loaded = load_file(weights)
    assert torch.equal(loaded["W_enc"], sparse_problem().weights.W_enc_NM)


def test_its_state_dict_is_itself_as_with_any_module():
    sae = used()
    sae.state_dict()["W_enc"].fill_(2)
    assert (sae.W_enc == 2).all()


def test_shared_memory_stays_shared():
    sae = inference_sae().share_memory()
    sae.encode_sparse(sparse_problem().x_BN)
    assert sae.W_enc.is_shared()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_transforms_of_functions_leave_it_alone_and_are_right(transform):
    sae, x = inference_sae(), sparse_problem().x_BN
    found = transform(lambda given: sae(given).square().sum())(x)
    plain = x.clone().requires_grad_()
    (true,) = torch.autograd.grad(sae(plain).square().sum(), plain)
    torch.testing.assert_close(found, true)


@pytest.mark.parametrize("make", [inference_sae, training_sae])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))],
    ids=["copy", "pickle"],
)
def test_copies_go_on_alone(make, copied):
    sae, x = used(make), sparse_problem().x_BN
    expected, other = sae(x), copied(sae)
    assert torch.equal(other(x), expected)
    if make is training_sae:
        step(other, x).loss.backward()
        assert sae.W_enc.grad is None
    with torch.no_grad():
        other.W_enc.zero_()
    assert torch.equal(sae(x), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_can_be_loaded_after_use(assign):
    sae, source = used(), training_sae(MANY)
    x = sparse_problem(MANY).x_BN
    sae.load_state_dict(copy.deepcopy(source.state_dict()), assign=assign)
    torch.testing.assert_close(sae(x), source(x))
    for who in (sae, source):
        step(who, x).loss.backward()
    for mine, theirs in zip(sae.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    assert sae.W_enc.shape == (N, M)


def test_a_move_to_another_type_and_back_goes_on():
    sae, x = used(), sparse_problem().x_BN
    expected = sae(x)
    sae.to(torch.float64).encode(x.double())
    assert torch.equal(sae.to(torch.float32)(x), expected)
