"""Which implementation serves, and how a caller decides."""

from __future__ import annotations

import threading

import pytest
import torch
from problems import L1, Problem, problem

from gated_plugin.engine import dispatch, products
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.decode import decode
from gated_plugin.engine.encode import encode, encode_dense
from gated_plugin.engine.options import IMPLEMENTATIONS, SCREENING, Options, options, use
from gated_plugin.engine.step import gated_step
from gated_plugin.errors import GatedError

FEW = 0.03


def few_open(rows: int = 252) -> Problem:
    return problem(rows, 123, 507, FEW)


def choices(p: Problem, **asked: str) -> dict[str, dispatch.Choice]:
    """What every encoding door says served it."""
    return {
        "encode": encode(p.x_BN, p.weights, **asked)[1],
        "encode_dense": encode_dense(p.x_BN, p.weights, **asked)[1],
        "gated_step": gated_step(p.x_BN, p.weights, p.W_dec_MN, p.b_dec_N, L1, **asked).choice,
    }


def served(p: Problem, **asked: str) -> set[str]:
    return {choice.impl for choice in choices(p, **asked).values()}


def test_few_open_gates_are_served_by_the_compiled_kernels():
    for door, choice in choices(few_open()).items():
        assert choice.impl == "numba", door
        assert choice.density == pytest.approx(FEW, rel=0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: problem(252, 123, 507, 0.3),
        lambda: few_open(rows=3),
        lambda: few_open().to(torch.float64),
        lambda: few_open().to(torch.bfloat16),
    ],
    ids=["many open gates", "few rows", "float64", "bfloat16"],
)
def test_everything_else_is_served_by_dense_products(make):
    assert served(make()) == {"dense"}


class Wrapped(torch.Tensor):
    """A tensor of a type of its own, as tracing and distributed tensors are."""


@pytest.mark.parametrize("which", ["x", "W_enc"])
def test_tensors_of_other_types_are_served_by_dense_products(which):
    p = few_open()
    given = {"x": p.x_BN, "W_enc": p.weights.W_enc_NM}
    given[which] = given[which].as_subclass(Wrapped)
    weights = p.weights._replace(W_enc_NM=given["W_enc"])
    assert encode(given["x"], weights)[1].impl == "dense"


def test_a_step_may_be_denser_than_an_encode_before_dense_products_serve():
    p = problem(252, 123, 507, 0.08)
    found = choices(p)
    assert (found["encode"].impl, found["gated_step"].impl) == ("dense", "numba")


def test_a_sample_tells_the_density():
    p = problem(252, 7, 4100, FEW)
    sampled = dispatch.sampled_density(p.x_BN, p.weights)
    assert sampled == pytest.approx(p.open_gates().double().mean().item(), rel=0.3)


def test_nan_in_the_sample_leaves_the_batch_to_dense_products():
    p = few_open()
    x = p.x_BN.clone()
    x[0, 0] = torch.nan
    assert encode(x, p.weights)[1].impl == "dense"


@pytest.mark.parametrize("rows", [0, 1, 31, 32])
def test_any_number_of_rows_can_be_encoded(rows):
    p = few_open()
    codes, choice = encode(p.x_BN[:rows], p.weights)
    assert choice.impl == ("numba" if rows >= dispatch.FEWEST_ROWS else "dense")
    assert codes.shape == (rows, 507)


class TestTheChoiceDependsOnTheInputAlone:
    def test_not_on_when_or_where_it_is_made(self, set_threads):
        p = few_open()
        first = choices(p)
        choices(problem(252, 123, 507, 0.3))
        torch.manual_seed(1234)
        set_threads(1)
        assert choices(p) == first

    def test_and_draws_no_random_numbers(self):
        products._measured_to_pay.cache_clear()
        p, state = few_open(), torch.get_rng_state()
        choices(p)
        assert torch.equal(torch.get_rng_state(), state)

    def test_nor_does_it_read_a_clock_if_it_shall_be_deterministic(self, monkeypatch):
        def read(*_):
            raise AssertionError("timed")

        products._measured_to_pay.cache_clear()
        monkeypatch.setattr(products, "_seconds", read)
        with use(deterministic=True):
            screened = {choice.screened for choice in choices(few_open()).values()}
        assert screened == {products.has_bfloat16_matrix_unit()}

    def test_a_clock_is_read_once_per_process_otherwise(self, monkeypatch):
        calls = []
        products._measured_to_pay.cache_clear()
        monkeypatch.setattr(products, "_seconds", lambda *given: calls.append(given) or 1.0)
        choices(few_open())
        measured = len(calls)
        choices(few_open())
        assert measured == len(calls) > 0
        products._measured_to_pay.cache_clear()

    @pytest.mark.parametrize(("float32", "bfloat16"), [(1.0, 0.5), (1.0, 0.9)])
    def test_screening_is_chosen_where_it_is_measured_to_pay(self, monkeypatch, float32, bfloat16):
        seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
        products._measured_to_pay.cache_clear()
        monkeypatch.setattr(products, "_seconds", lambda x, w, out: seconds[x.dtype])
        screened = {choice.screened for choice in choices(few_open()).values()}
        assert screened == {bfloat16 < products.WORTH_SCREENING * float32}
        products._measured_to_pay.cache_clear()


@pytest.mark.parametrize("rows", [33, 252])
@pytest.mark.parametrize("impl", ["numba", "torch"])
def test_screening_is_always_or_never_as_told(rows, impl):
    for screening, expected in (("always", True), ("never", False)):
        with use(screening=screening):
            found = choices(few_open(rows), impl=impl)
        assert {choice.screened for choice in found.values()} == {expected}


def test_few_rows_are_not_worth_screening():
    assert not products.screening_pays(products.FEWEST_ROWS - 1, deterministic=True)


class TestAsTold:
    @pytest.mark.parametrize("impl", [name for name in IMPLEMENTATIONS if name != "auto"])
    def test_every_implementation_serves_if_asked_for(self, impl):
        p = few_open(rows=3)
        expected = dict.fromkeys(("encode", "encode_dense", "gated_step"), impl)
        assert {door: choice.impl for door, choice in choices(p, impl=impl).items()} == expected
        with use(impl=impl):
            assert {door: choice.impl for door, choice in choices(p).items()} == expected

    def test_an_argument_goes_before_the_options(self):
        with use(impl="dense"):
            assert served(few_open(), impl="torch") == {"torch"}

    def test_auto_may_be_asked_for_within_other_options(self):
        with use(impl="dense"):
            assert served(few_open(), impl="auto") == {"numba"}

    def test_codes_are_decoded_by_what_their_density_asks_for(self):
        p = few_open()
        values, W = torch.ones(3), p.W_dec_MN
        assert dispatch.choose_for_codes(values, W, 0.01, None) == "numba"
        assert dispatch.choose_for_codes(values, W, 0.3, None) == "dense"
        assert dispatch.choose_for_codes(values.double(), W, 0.01, None) == "torch"
        assert dispatch.choose_for_codes(values, W, 0.3, "torch") == "torch"


ALL_IMPLEMENTATIONS = r"auto, dense, numba, triton, torch, reference"


class TestWhatDoesNotExistIsRefusedWithTheChoices:
    @pytest.mark.parametrize("door", ["encode", "encode_dense", "decode", "gated_step", "use"])
    def test_an_implementation(self, door):
        p = few_open()
        codes = SparseCodes.from_dense(torch.zeros(3, 507))
        calls = {
            "encode": lambda: encode(p.x_BN, p.weights, impl="numpy"),
            "encode_dense": lambda: encode_dense(p.x_BN, p.weights, impl="numpy"),
            "decode": lambda: decode(codes, p.W_dec_MN, p.b_dec_N, impl="numpy"),
            "gated_step": lambda: gated_step(
                p.x_BN, p.weights, p.W_dec_MN, p.b_dec_N, L1, impl="numpy"
            ),
            "use": lambda: use(impl="numpy").__enter__(),
        }
        with pytest.raises(GatedError, match=rf"Unknown impl 'numpy'.*{ALL_IMPLEMENTATIONS}"):
            calls[door]()

    def test_a_way_of_screening(self):
        with (
            pytest.raises(
                GatedError, match=r"Unknown screening 'sometimes'.*auto, always, never, unchecked"
            ),
            use(screening="sometimes"),
        ):
            raise AssertionError("entered")
        assert options() == Options()


class TestUse:
    def test_blocks_nest_and_restore(self):
        assert options() == Options()
        with use(impl="dense"):
            with use(screening="never"):
                assert options() == Options(impl="dense", screening="never")
            with use(impl="torch", deterministic=True):
                assert options() == Options(impl="torch", deterministic=True)
            assert options() == Options(impl="dense")
        assert options() == Options()

    def test_an_error_restores_too(self):
        with pytest.raises(KeyError), use(impl="dense"), use(screening="never"):
            raise KeyError
        assert options() == Options()

    def test_another_thread_is_not_affected(self):
        seen = []
        with use(impl="dense"):
            thread = threading.Thread(target=lambda: seen.append(options()))
            thread.start()
            thread.join()
        assert seen == [Options()]

    @pytest.mark.parametrize("screening", SCREENING)
    def test_every_way_of_screening_is_taken(self, screening):
        with use(screening=screening):
            assert options().screening == screening


@pytest.mark.usefixtures("without_numba")
class TestWithoutNumba:
    def test_what_is_chosen_does_without(self):
        p = few_open()
        assert served(p) == {"dense"}
        codes, _ = encode(p.x_BN, p.weights, impl="torch")
        torch.testing.assert_close(
            decode(codes, p.W_dec_MN, p.b_dec_N), codes.to_dense() @ p.W_dec_MN + p.b_dec_N
        )

    def test_very_few_open_gates_are_served_by_plain_sparse_torch(self):
        assert served(problem(252, 123, 507, 0.001)) == {"torch"}

    @pytest.mark.parametrize("impl", ["torch", "dense", "reference"])
    def test_every_other_implementation_works(self, impl):
        assert choices(few_open(), impl=impl)["gated_step"].impl == impl

    def test_numba_is_refused_with_what_to_type(self):
        p = few_open()
        with pytest.raises(GatedError, match=r"not installed.*pip install numba.*impl='torch'"):
            encode(p.x_BN, p.weights, impl="numba")
        with (
            use(impl="numba"),
            pytest.raises(GatedError, match=r"pip install numba"),
        ):
            gated_step(p.x_BN, p.weights, p.W_dec_MN, p.b_dec_N, L1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numba_is_refused_for_what_its_kernels_do_not_take(dtype):
    p = few_open().to(dtype)
    with pytest.raises(GatedError, match=r"float32.*impl='torch'"):
        encode(p.x_BN, p.weights, impl="numba")
