"""What is compared, by name: ours, ours forced to one engine, and the peers.

Imports neither torch nor a peer, so that a command line is refused before either is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from benchmarks.workload import Workload


class Training(NamedTuple):
    """A trainer's own update, and what of it can be called apart."""

    model: nn.Module
    optimizer: Optimizer
    update: Callable[[], Any]
    loss: Callable[[], Tensor]
    backward: Callable[[Tensor], None]
    optimize: Callable[[], Any]
    """Everything between `backward` and the next batch that touches the weights."""


class Coding(NamedTuple):
    """Inference on the whole batch."""

    encode: Callable[[], Any]
    decode: Callable[[Any], Tensor]
    activations: Callable[[Any], Tensor]
    """Among what `encode` returned, the numbers of which some are not 0."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One row of the table."""

    coding: Coding
    training: Training | None = None
    served: Callable[[], str | None] = lambda: None
    """Which engine served the last training step."""


class Source(NamedTuple):
    """Where an implementation comes from."""

    module: str
    needs: str
    """What must be importable."""

    install: str
    device: str | None = None
    """The only kind that it runs on, "cpu" or "cuda"."""


_SAELENS = Source("saelens", "sae_lens", "pip install sae-lens")
_OURS = Source("ours", "gated_plugin", "pip install gated-plugin")

PEERS = {
    "saelens": _SAELENS,
    "saelens[tf32]": _SAELENS._replace(device="cuda"),
    "saelens[autocast]": _SAELENS,
    "saelens_topk": _SAELENS,
    "saelens_topk_sparse": _SAELENS,
    "saelens_jumprelu": _SAELENS,
    "dictionary_learning": Source(
        "dictionary_learning", "dictionary_learning.trainers.gdm", "pip install dictionary-learning"
    ),
    "sparsify": Source("sparsify", "sparsify", "pip install eai-sparsify"),
}
OURS = {
    "gated_plugin": _OURS,
    "gated_plugin:dense": _OURS,
    "gated_plugin:numba": Source("ours", "numba", "pip install numba", device="cpu"),
    "gated_plugin:triton": Source("ours", "triton", "pip install triton", device="cuda"),
    "gated_plugin:torch": _OURS,
    "gated_plugin:encode_sparse": _OURS,
}
SOURCES = PEERS | OURS


def why_not(name: str, device: str) -> str | None:
    """Why an implementation cannot be measured here, with the next step; None if it can."""
    source = SOURCES[name]
    if source.device not in (None, device.partition(":")[0]):
        return f"{name} is skipped: measure it with --device {source.device}."
    try:
        import_module(source.needs)
    except ImportError as error:
        return f"{name} is skipped ({error}); to measure it run: {source.install}"
    return None


def build(name: str, workload: Workload) -> Implementation:
    """An implementation with the workload's weights."""
    module = import_module(f"{__name__}.{SOURCES[name].module}")
    implementation: Implementation = module.build(name, workload)
    return implementation


def within(
    context: Callable[[], AbstractContextManager[None]], implementation: Implementation
) -> Implementation:
    """All calls of an implementation, each inside a context of its own."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            with context():
                return call(*args)

        return wrapped

    encode, decode, activations = implementation.coding
    training = implementation.training
    if training is not None:
        training = training._replace(
            update=wrap(training.update),
            loss=wrap(training.loss),
            backward=wrap(training.backward),
            optimize=wrap(training.optimize),
        )
    coding = Coding(wrap(encode), wrap(decode), activations)
    return replace(implementation, coding=coding, training=training)
