"""When the Triton kernels serve, whole SAEs on them, and that every kernel fits its chips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from built_saes import inference_sae, sparse_problem, step, training_sae
from problems import problem, relative_error
from torch import Tensor
from torch.optim import Adam

from gated_plugin.engine import dispatch, gpu
from gated_plugin.engine.encode import encode
from gated_plugin.errors import GatedError


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of this CPU count as those of a GPU, which Triton's interpreter plays."""

    def plays_gpu(*tensors: Tensor) -> bool:
        return all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)

    monkeypatch.setattr(dispatch, "_are_float32_on_cpu", lambda *_: False)
    monkeypatch.setattr(dispatch, "_are_on_new_gpu", plays_gpu)


@pytest.fixture
def tf32() -> Iterator[None]:
    """Lets torch round the operands of float32 products on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def test_float32_on_a_cpu_is_not_for_triton():
    p = problem(252, 123, 507, 0.03)
    assert encode(p.x_BN, p.weights)[1].impl == "numba"


def test_triton_on_a_cpu_is_refused_unless_it_is_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    p = problem(3, 7, 123, 0.03)
    with pytest.raises(GatedError, match=r"compute capability 8.0 or newer, .*TRITON_INTERPRET=1"):
        encode(p.x_BN, p.weights, impl="triton")


def test_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "_has", lambda package: package != "triton")
    p = problem(3, 7, 123, 0.03)
    with pytest.raises(GatedError, match=r"needs the package triton, .*pip install triton"):
        encode(p.x_BN, p.weights, impl="triton")


def test_many_open_gates_are_for_dense_products(as_on_gpu):
    p = problem(252, 123, 507, 0.3)
    assert encode(p.x_BN, p.weights)[1].impl == "dense"


def test_where_tensor_cores_multiply_float32_dense_products_serve_sooner(as_on_gpu, tf32):
    p = problem(252, 123, 507, 0.03)
    assert encode(p.x_BN, p.weights)[1].impl == "dense"


def test_what_is_encoded_dense_is_decoded_on_its_support(as_on_gpu, monkeypatch):
    calls, sae, x = [], inference_sae(), sparse_problem().x_BN
    decode = gpu.decode
    monkeypatch.setattr(gpu, "decode", lambda *given: calls.append(given) or decode(*given))
    with torch.no_grad():
        features = sae.encode(x)
        found = sae.decode(features)
    assert len(calls) == 1
    assert relative_error(found, features @ sae.W_dec + sae.b_dec) < 1e-5


def test_the_search_runs_as_deep_as_shared_memory_allows():
    by_chip = {"H200": 227, "A100": 163, "RTX 4090": 99, "RTX 5090": 99}
    stages = {chip: gpu.stages_in(kilobytes << 10) for chip, kilobytes in by_chip.items()}
    assert stages == {"H200": 4, "A100": 3, "RTX 4090": 2, "RTX 5090": 2}


def trained(sae, x: Tensor) -> list[float]:
    """The losses of two steps, by the engine that serves."""
    optimizer, losses = Adam(sae.parameters(), lr=1e-3, betas=(0.0, 0.999)), []
    for _ in range(2):
        output = step(sae, x)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    return losses


def test_a_float32_sae_trains_as_by_the_kernels_of_the_cpu(request):
    x = sparse_problem().x_BN
    on_cpu = training_sae()
    expected, on_numba = trained(on_cpu, x), on_cpu.engine_choice
    request.getfixturevalue("as_on_gpu")
    sae = training_sae()
    assert trained(sae, x) == pytest.approx(expected, rel=1e-5)
    assert (sae.engine_choice.impl, on_numba.impl) == ("triton", "numba")
    assert sae.engine_choice.screened
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-6
    for name, weight in sae.named_parameters():
        assert relative_error(weight, on_cpu.get_parameter(name)) < 1e-4, name


def test_a_bfloat16_sae_trains_and_encodes_on_its_support(request, monkeypatch):
    x = sparse_problem().x_BN
    losses = trained(training_sae(), x)
    request.getfixturevalue("as_on_gpu")
    monkeypatch.setattr(dispatch, "DENSEST_ON_TENSOR_CORES", 0.05)
    sae = training_sae().to(torch.bfloat16)
    assert trained(sae, x) == pytest.approx(losses, rel=0.03)
    assert sae.engine_choice.impl == "triton"
    assert (sae.W_enc.dtype, sae.b_gate.dtype) == (torch.bfloat16, torch.float32)
    sae = inference_sae().to(torch.bfloat16)
    assert sae(x.bfloat16()).dtype == sae.encode(x.bfloat16()).dtype == torch.bfloat16
    assert sae.engine_choice.impl == "triton"


def test_a_bfloat16_sae_with_many_open_gates_trains_by_dense_products(as_on_gpu):
    x = sparse_problem(0.3).x_BN
    losses = trained(training_sae(0.3), x)
    sae = training_sae(0.3).to(torch.bfloat16)
    assert trained(sae, x) == pytest.approx(losses, rel=0.03)
    assert sae.engine_choice.impl == "dense"


@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_for_a_chip_spills_next_to_nothing_and_fits(tmp_path, capability):
    from benchmarks.kernels import SHARED_BYTES

    report = tmp_path / "kernels.json"
    compile_ = [sys.executable, "-m", "benchmarks.kernels", "--json", str(report)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run(
        [*compile_, "--capability", str(capability)],
        check=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    kernels = json.loads(report.read_text())
    assert len(kernels) >= 20
    assert {k["kernel"] for k in kernels if k["spilled_bytes"] > 16} == set()
    assert max(k["shared_bytes"] for k in kernels) <= SHARED_BYTES[capability]
    products = {k["weights"]: k["product"] for k in kernels if k["kernel"] == "mark_candidates"}
    assert products == {"fp32": "–", "bf16": {80: "mma.sync", 90: "wgmma"}[capability]}
