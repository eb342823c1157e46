"""The compiled kernels give the same bits whoever calls them, and in however many threads."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from problems import L1, SHAPES, SHARES, Problem, problem, relative_error
from torch import Tensor

from gated_plugin.engine import cpu
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.decode import decode
from gated_plugin.engine.encode import encode
from gated_plugin.engine.options import use
from gated_plugin.engine.step import gated_step
from gated_plugin.engine.support import EncoderWeights
from gated_plugin.engine.threads import even_ranges, in_threads

WEIGHTS = ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec")

BY_TORCH = "∂b_dec"
"""The one result that a matrix-vector product of torch's own takes part in."""


def results(p: Problem, impl: str = "numba") -> dict[str, Tensor]:
    """Of encode, decode and a training step, forward and backward."""
    given = [w.clone().requires_grad_() for w in (*p.weights, p.W_dec_MN, p.b_dec_N)]
    weights = EncoderWeights(*given[:4])
    x_BN = p.x_BN.detach().requires_grad_()
    codes, _ = encode(x_BN, weights, impl=impl)
    x_hat = decode(codes, *given[4:], impl=impl)
    names, inputs = ("x", *WEIGHTS), (x_BN, *given)
    gradients = torch.autograd.grad(x_hat.square().sum(), inputs, allow_unused=True)
    found = dict(zip((f"∂{name} through the codes" for name in names), gradients, strict=True))
    found["values"], found["features"] = codes.values.detach(), codes.features
    found["offsets"], found["x̂"] = codes.offsets, x_hat.detach()

    step = gated_step(p.x_BN, weights, *given[4:], L1, impl=impl)
    gradients = torch.autograd.grad(torch.stack(list(step.losses)).sum(), given)
    found |= dict(zip((f"∂{name}" for name in WEIGHTS), gradients, strict=True))
    found["x̂ of the step"] = step.x_hat_BN.detach()
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def different(found: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    assert found.keys() == expected.keys()
    return {name for name in expected if not torch.equal(found[name], expected[name])}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("screening", ["always", "never"])
def test_neither_a_repetition_nor_the_number_of_threads_changes_a_bit(
    shape, share, screening, set_threads
):
    p = problem(*shape, share, centred=True)
    with use(screening=screening):
        expected = results(p)
        assert different(results(p), expected) == set()
        for threads in (1, 2, 7):
            set_threads(threads)
            found = results(p)
            assert different(found, expected) <= {BY_TORCH}, threads
            assert relative_error(found[BY_TORCH], expected[BY_TORCH]) < 1e-5


@pytest.mark.parametrize("cuts", [[1], [100], [32, 33, 251]])
def test_a_row_gives_the_same_bits_in_every_batch(cuts):
    p = problem(252, 123, 507, 0.03)
    whole, _ = encode(p.x_BN, p.weights, impl="numba")
    x_hat = decode(whole, p.W_dec_MN, p.b_dec_N, impl="numba")
    parts = [encode(x, p.weights, impl="numba")[0] for x in p.x_BN.tensor_split(cuts)]
    assert torch.equal(torch.cat([part.to_dense() for part in parts]), whole.to_dense())
    decoded = [decode(part, p.W_dec_MN, p.b_dec_N.clone(), impl="numba") for part in parts]
    assert torch.equal(torch.cat(decoded), x_hat)


@pytest.mark.parametrize("screening", ["always", "never"])
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
def test_blocks_of_rows_and_tiles_of_features_change_no_bit(monkeypatch, screening, share):
    p = problem(252, 123, 507, share)
    with use(screening=screening):
        expected = results(p)
        monkeypatch.setattr(cpu, "BLOCK_ROWS", 100)
        monkeypatch.setattr(cpu, "TILE_FEATURES", 64)
        assert different(results(p), expected) == set()


def test_several_threads_may_call_at_once():
    problems = [problem(33, 252, 507, share, seed=seed) for share in (0.03, 0.3) for seed in (0, 1)]
    expected = [results(p) for p in problems]
    together = threading.Barrier(4)

    def work(k: int) -> list[set[str]]:
        together.wait()
        return [different(results(problems[k]), expected[k]) for _ in range(8)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[set()] * 8] * 4


def test_steps_on_one_weight_from_several_threads_do_not_share_gradient_memory():
    p = problem(33, 252, 507, 0.03)
    given = [w.clone().requires_grad_() for w in (*p.weights, p.W_dec_MN, p.b_dec_N)]
    together = threading.Barrier(4)

    def gradients() -> tuple[Tensor, ...]:
        step = gated_step(p.x_BN, EncoderWeights(*given[:4]), *given[4:], L1, impl="numba")
        return torch.autograd.grad(torch.stack(list(step.losses)).sum(), given)

    def work(_: int) -> list[tuple[Tensor, ...]]:
        together.wait()
        return [gradients() for _ in range(8)]

    expected = gradients()
    with ThreadPoolExecutor(4) as pool:
        for of_one_thread in pool.map(work, range(4)):
            for found in of_one_thread:
                assert all(map(torch.equal, found, expected))


def test_an_error_in_one_thread_reaches_the_caller():
    def fail(lo: int, hi: int) -> None:
        if lo:
            raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        in_threads(fail, [(0, 1), (1, 2)])


@pytest.mark.parametrize("length", [0, 1, 2, 3, 252])
def test_ranges_cover_everything_once(length, set_threads):
    set_threads(3)
    ranges = even_ranges(length)
    assert len(ranges) == max(1, min(3, length))
    assert [i for lo, hi in ranges for i in range(lo, hi)] == list(range(length))


def _decode_in_child(codes: SparseCodes, W_dec: Tensor, b_dec: Tensor, sender) -> None:
    sender.send(decode(codes, W_dec, b_dec, impl="numba").numpy())


def test_a_forked_child_computes_what_its_parent_does(set_threads):
    set_threads(2)
    p = problem(33, 252, 507, 0.03)
    codes, _ = encode(p.x_BN, p.weights, impl="numba")
    expected = decode(codes, p.W_dec_MN, p.b_dec_N, impl="numba")
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(
        target=_decode_in_child, args=(codes, p.W_dec_MN, p.b_dec_N, sender), daemon=True
    )
    child.start()
    try:
        assert receiver.poll(60), "the child hangs"
        assert np.array_equal(receiver.recv(), expected.numpy())
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()


def poisoned(make):
    """`make`, with NaN or the least integer in every element."""

    def empty(*args, **kwargs):
        made = make(*args, **kwargs)
        tensor = torch.from_numpy(made) if isinstance(made, np.ndarray) else made
        is_float = tensor.dtype.is_floating_point
        tensor.fill_(torch.nan if is_float else torch.iinfo(tensor.dtype).min)
        return made

    return empty


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("impl", ["numba", "dense"])
def test_no_result_holds_uninitialised_memory(monkeypatch, shape, share, impl):
    p = problem(*shape, share, centred=True)
    expected = results(p, impl)
    for owner, name in ((np, "empty"), (torch, "empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    assert different(results(p, impl), expected) == set()
