"""Gradients in memory that is used again: never while anybody else can see it."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from problems import L1, Problem, problem, relative_error
from torch import Tensor
from torch.nn import Parameter

from gated_plugin.engine.kept_memory import ACTIVATIONS, GRADIENTS, KeptMemory
from gated_plugin.engine.step import gated_step
from gated_plugin.engine.support import EncoderWeights

BIG = ("W_enc", "W_dec")


class Model:
    """The weights of a problem, as parameters, and a step on them."""

    def __init__(self, p: Problem, impl: str) -> None:
        W_enc, *vectors = p.weights
        self.problem, self.impl = p, impl
        self.W_enc = Parameter(W_enc.T.clone().T)
        self.vectors = [Parameter(vector.clone()) for vector in vectors]
        self.W_dec, self.b_dec = Parameter(p.W_dec_MN.clone()), Parameter(p.b_dec_N.clone())

    def loss(self, rows: int | None = None) -> Tensor:
        weights = EncoderWeights(self.W_enc, *self.vectors)
        step = gated_step(
            self.problem.x_BN[:rows], weights, self.W_dec, self.b_dec, L1, impl=self.impl
        )
        return torch.stack(list(step.losses)).sum()

    def gradients(self, rows: int | None = None) -> dict[str, Tensor]:
        """By `backward`, copied; the gradients themselves are dropped, as a trainer does."""
        self.loss(rows).backward()
        copies = {name: getattr(self, name).grad.clone() for name in BIG}
        self.drop()
        return copies

    def drop(self) -> None:
        for parameter in (self.W_enc, *self.vectors, self.W_dec, self.b_dec):
            parameter.grad = None

    def address(self, name: str) -> int:
        """Where the gradient of a step lies; it is dropped."""
        self.loss().backward()
        address = getattr(self, name).grad.data_ptr()
        self.drop()
        return address


@pytest.fixture(params=["numba", "torch", "dense"])
def model(request) -> Model:
    return Model(problem(33, 252, 507, 0.03), request.param)


HOLDS = {
    "itself": lambda grad: grad,
    "detached": lambda grad: grad.detach(),
    "slice": lambda grad: grad[3:5, 7],
    "transposed": lambda grad: grad.T,
    "array": lambda grad: grad.numpy(),
    "part of an array": lambda grad: grad.numpy()[3:, ::2],
    "buffer": lambda grad: memoryview(grad.numpy()),
    "storage": lambda grad: grad.untyped_storage(),
    "DLPack": lambda grad: torch.utils.dlpack.to_dlpack(grad),
}


@pytest.mark.parametrize("name", BIG)
class TestMemoryIsUsedAgain:
    def test_for_the_next_gradient_once_the_last_one_is_dropped(self, model, name):
        addresses = {model.address(name) for _ in range(4)}
        (array,) = GRADIENTS._kept[getattr(model, name)]
        assert addresses == {array.ctypes.data}

    @pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS.keys())
    def test_but_not_while_somebody_holds_it(self, model, name, hold):
        model.loss().backward()
        address, held = getattr(model, name).grad.data_ptr(), hold(getattr(model, name).grad)
        model.drop()
        assert address not in {model.address(name) for _ in range(3)}
        assert held is not None

    def test_and_not_while_an_optimizer_keeps_it_as_its_moment(self, model, name):
        parameter = getattr(model, name)
        optimizer = torch.optim.SGD([parameter], lr=0.0, momentum=0.9)
        model.loss().backward()
        first = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        model.gradients(rows=5)
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], first)


def test_nothing_grows_over_many_steps(model):
    addresses = {name: {model.address(name) for _ in range(10)} for name in BIG}
    assert {name: len(found) for name, found in addresses.items()} == {"W_enc": 1, "W_dec": 1}


def test_batches_of_changing_size_do_not_grow_it_either():
    memory, weight = KeptMemory(), Parameter(torch.zeros(4, 7))
    for rows in (8, 16, 32, 8, 64, 128, 16, 256):
        for _ in range(3):
            assert memory.take(weight, (rows, 7)).shape == (rows, 7)
    (arrays,) = memory._kept.values()
    assert len(arrays) <= 2


def test_what_is_kept_is_told_whether_it_is_free_or_not():
    memory, weight = KeptMemory(), Parameter(torch.zeros(4, 7))
    assert memory.kept(weight) == []
    held, address = memory.take(weight, (4, 7)), memory.take(weight, (4, 7)).data_ptr()
    kept = {array.data_ptr() for array in memory.kept(weight)}
    assert kept == {held.data_ptr(), address}
    assert memory.take(weight, (4, 7)).data_ptr() == address


@pytest.mark.parametrize("impl", ["numba", "dense"])
def test_it_goes_with_the_weight(impl):
    model = Model(problem(33, 252, 507, 0.03), impl)
    model.gradients()
    kept = [weakref.ref(array) for name in BIG for array in GRADIENTS._kept[getattr(model, name)]]
    assert len(kept) == 2
    del model
    assert [array() for array in kept] == [None, None]


def test_a_sparse_step_lets_the_dense_ones_memory_go():
    model = Model(problem(33, 252, 507, 0.03), "dense")
    model.gradients()
    assert model.W_dec in ACTIVATIONS._kept
    model.impl = "numba"
    model.gradients()
    assert model.W_dec not in ACTIVATIONS._kept


def test_what_a_dense_step_gave_is_not_written_over_by_the_next():
    p = problem(33, 252, 507, 0.3)
    model = Model(p, "dense")
    weights = EncoderWeights(model.W_enc, *model.vectors)
    steps = [
        gated_step(rows, weights, model.W_dec, model.b_dec, L1, impl="dense")
        for rows in (p.x_BN, 2 * p.x_BN, 3 * p.x_BN)
    ]
    before = [(step.features.clone(), step.x_hat_BN.clone()) for step in steps]
    for step in steps:
        torch.stack(list(step.losses)).sum().backward()
        model.drop()
    for step, (features, x_hat) in zip(steps, before, strict=True):
        assert torch.equal(step.features, features)
        assert torch.equal(step.x_hat_BN, x_hat)


def test_two_backward_passes_accumulate_their_sum(model):
    model.loss().backward()
    model.loss(rows=5).backward()
    found = {name: getattr(model, name).grad.clone() for name in BIG}
    model.drop()
    first, second = model.gradients(), model.gradients(rows=5)
    for name in BIG:
        assert relative_error(found[name], first[name] + second[name]) < 1e-6


def test_passes_that_overlap_do_not_mix(model):
    first, second = model.loss(), model.loss(rows=5)
    wanted = [model.W_enc, model.W_dec]
    of_second, of_first = (torch.autograd.grad(loss, wanted) for loss in (second, first))
    expected_first, expected_second = model.gradients(), model.gradients(rows=5)
    for found, expected in ((of_first, expected_first), (of_second, expected_second)):
        assert all(map(torch.equal, found, expected.values()))


def test_a_graph_that_is_kept_gives_the_same_gradients_again(model):
    loss, wanted = model.loss(), [model.W_enc, model.W_dec]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    copies = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, wanted)
    assert all(map(torch.equal, first, copies))
    assert all(map(torch.equal, second, copies))


@pytest.mark.parametrize("name", BIG)
def test_hooks_see_and_change_gradients(model, name):
    expected, seen = model.gradients()[name], []
    parameter = getattr(model, name)

    def triple(parameter: Tensor) -> None:
        parameter.grad.mul_(3)

    parameter.register_hook(lambda grad: seen.append(grad.clone()) or 2 * grad)
    parameter.register_post_accumulate_grad_hook(triple)
    assert torch.equal(model.gradients()[name], 2 * expected * 3)
    assert torch.equal(seen[0], expected)


def test_copies_of_a_weight_have_memory_of_their_own(model):
    expected = model.gradients()
    other = copy.deepcopy(model)
    model.loss().backward()
    other.loss(rows=5).backward()
    for name in BIG:
        assert torch.equal(getattr(model, name).grad, expected[name])
