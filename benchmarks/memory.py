"""Peak memory of a training step above weights, gradients and optimizer state.

Counted is the most that is held during `STEPS` updates, less the model's parameters, one gradient of
each, the optimizer's state, and what else was there. So what an implementation keeps from step to
step counts, as do SAELens' two statistics of d_sae numbers.

On a CPU it is resident memory, in a process of its own, since a high-water mark is the process's.
What else was there is then the batch, the shared weights that the model was built from, and what the
process held after updates of the same implementation at a toy size (code, libraries). The mark is
Linux' VmHWM, set back before the updates; where /proc does not let us, a thread reads the resident
memory every millisecond. On a GPU it is torch's own count of allocated memory, and what else was
there is what was allocated before the model.
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
    """Peak of a step on a CPU in MB, or None where /proc does not tell.

    This forks, which saves the imports: call it before torch has computed anything in this process.
    """
    if not PROCESS.exists():
        return None
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_measure, name, case, threads).result()


def working_megabytes_of(training: Training, before: int, device: str) -> float:
    """Peak of a step in MB, of a model that has been stepped before.

    Args:
        before: bytes that were held before the model was made.
    """
    peak = peak_bytes(lambda: _update(training, STEPS), device)
    return round((peak - before - _owned(training)) / 1e6, 1)


def _measure(name: str, case: Case, threads: int) -> float:
    torch.set_num_threads(threads)
    toy = replace(case, rows=256, d_in=64, d_sae=512, l0=4)
    _update(_trained(name, make(toy)), WARM_UP)
    libraries = held_bytes(case.device)
    workload = make(case)
    training = _trained(name, workload)
    _update(training, WARM_UP)
    shared = bytes_of((workload.x_BN, workload.W_dec_MN))
    return working_megabytes_of(training, libraries + shared, case.device)


def _trained(name: str, workload: Workload) -> Training:
    training = build(name, workload).training
    assert training is not None
    return training


def _update(training: Training, times: int) -> None:
    for _ in range(times):
        training.update()


def _owned(training: Training) -> int:
    parameters = list(training.model.parameters())
    state = [value for values in training.optimizer.state.values() for value in values.values()]
    tensors = (value for value in state if isinstance(value, Tensor))
    return 2 * bytes_of(parameters) + bytes_of(tensors)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of their elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held_bytes(device: str) -> int:
    """What the process, or on a GPU torch, holds now."""
    gc.collect()
    if device != "cpu":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak_bytes(run: Callable[[], None], device: str) -> int:
    """The most that was held while something ran."""
    held_bytes(device)
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
