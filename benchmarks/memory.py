"""Peak memory of a training step above weights, gradients and optimizer state.

Measured in a process of its own, since a high-water mark is the process's. Counted is the largest
resident memory during `STEPS` updates, less what the process held after updates of the same
implementation at a toy size (code, libraries), the batch, the shared weights that it was built
from, the model's parameters, one gradient of each, and the optimizer's state. So what an
implementation keeps from step to step counts, as do SAELens' two statistics of d_sae numbers.

The mark is Linux' VmHWM, set back before the updates; where /proc does not let us, a thread reads
the resident memory every millisecond. On a GPU: torch's own count of allocated memory.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import torch
from torch import Tensor

from benchmarks.implementations import Training, build
from benchmarks.workload import Case, Workload, make

WARM_UP, STEPS = 2, 3
PROCESS = Path("/proc/self")
SAMPLING_SECONDS = 1e-3


def working_megabytes(name: str, case: Case, threads: int) -> float | None:
    """Peak of a step in MB, or None where neither /proc nor a GPU tells.

    On a CPU this forks: call it before torch has computed anything in this process.
    """
    if case.device == "cpu" and not PROCESS.exists():
        return None
    # A fork saves the imports; CUDA does not survive one.
    context = multiprocessing.get_context("fork" if case.device == "cpu" else "spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_measure, name, case, threads).result()


def _measure(name: str, case: Case, threads: int) -> float:
    torch.set_num_threads(threads)
    toy = replace(case, rows=256, d_in=64, d_sae=512, l0=4)
    _update(_trained(name, make(toy)), WARM_UP)
    floor = _held(case.device)
    workload = make(case)
    training = _trained(name, workload)
    _update(training, WARM_UP)
    peak = _peak(lambda: _update(training, STEPS), case.device)
    return round((peak - floor - _owned(training, workload)) / 1e6, 1)


def _trained(name: str, workload: Workload) -> Training:
    training = build(name, workload).training
    assert training is not None
    return training


def _update(training: Training, times: int) -> None:
    for _ in range(times):
        training.update()


def _owned(training: Training, workload: Workload) -> int:
    parameters = list(training.model.parameters())
    state = [value for values in training.optimizer.state.values() for value in values.values()]
    tensors = (value for value in state if isinstance(value, Tensor))
    shared = (workload.x_BN, workload.W_dec_MN)
    return 2 * _bytes(parameters) + _bytes(tensors) + _bytes(shared)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _held(device: str) -> int:
    gc.collect()
    if device != "cpu":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _peak(run: Callable[[], None], device: str) -> int:
    _held(device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return _sampled_peak(run)
    run()
    return _status("VmHWM")


def _sampled_peak(run: Callable[[], None]) -> int:
    done, seen = Event(), [_status("VmRSS")]

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            seen.append(_status("VmRSS"))

    sampler = Thread(target=sample)
    sampler.start()
    try:
        run()
    finally:
        done.set()
        sampler.join()
    return max(seen)


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
