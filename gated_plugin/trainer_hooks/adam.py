"""Makes the Adam that a trainer has built as cheap as torch allows, without patching anyone.

Through torch's own optimizer hooks: torch's fused kernel is switched on, and our weights (float32,
on a GPU also bfloat16) are stepped row by row by a kernel of ours, on a CPU at a third of its cost.
It leaves out the rows whose gradient and first moment are 0; with β1 = 0 those are all that no
gradient touched. That is exact: such a row does not move, and its second moment only decays, which
is made up for when the row is touched again or the optimizer's state is asked for (arXiv 1412.6980,
algorithm 1; issues 4 and 7).

Rounding: within a few 2⁻²⁴ relative a step of torch's plain Adam, as torch's own fused kernel is;
leaving rows out changes no bit. With β1 = 0 the first moment is the gradient's own memory: who
zeroes gradients in place and raises β1 in mid-run starts from a first moment of 0. Checkpoints
hold what plain Adam's would, with contiguous moments, and load in both directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from gated_plugin.engine.weight_rows import kernels_on_rows

_ours: Any = WeakTensorKeyDictionary()
_prepared: WeakKeyDictionary[Optimizer, RowAdam] = WeakKeyDictionary()
_listening: list[Any] = []


@torch.compiler.disable
def hasten_adam(*weights: nn.Parameter) -> None:
    """From now on an Adam that steps these weights does so by the cheapest exact way. Idempotent.

    Args:
        weights: matrices with one row per feature, [M, N], or their transposes.
    """
    for weight in weights:
        _ours[weight] = True
    if not _listening:
        listen_last()


def listen_last() -> None:
    """Hear of every step after all hooks that are there by now: what they set, it steps by."""
    while _listening:
        _listening.pop().remove()
    _listening.append(register_optimizer_step_pre_hook(_before_step))


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    ours = [w for group in optimizer.param_groups for w in group["params"] if w in _ours]
    for weight in ours:
        _restride(weight, optimizer.state.get(weight, {}))
    if type(optimizer) is not Adam or not ours:
        return
    if optimizer not in _prepared:
        _prepared[optimizer] = RowAdam(optimizer)
    if args == (optimizer,) and not kwargs and not _is_scaled(optimizer):
        _prepared[optimizer].before_step(optimizer)
    else:  # a closure has yet to compute the gradients, or they are a GradScaler's
        _prepared[optimizer].pay_all(optimizer)


def state_in_place(optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()`, but for the strides: no moment is copied to be contiguous."""
    ours = _prepared.get(optimizer)
    if ours is None:
        return optimizer.state_dict()
    ours.makes_contiguous = False
    try:
        return optimizer.state_dict()
    finally:
        ours.makes_contiguous = True


def load_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """`optimizer.load_state_dict`, but into memory of its own, with the strides of its weights."""
    optimizer.load_state_dict(state_dict)
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if _is_like(weight, value):
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
            elif isinstance(value, Tensor):
                state[name] = value.to(weight.device, copy=True)


class Owed(NamedTuple):
    """What rows of a second moment have not decayed yet; in the optimizer's state as `OWED`."""

    last_step_M: Tensor
    """Up to which step each row has; int64."""

    beta2: float


OWED = "rows_owed"


class RowAdam:
    """What is kept for one optimizer between its steps."""

    def __init__(self, optimizer: Adam) -> None:
        self.set_aside: list[tuple[nn.Parameter, Tensor]] = []
        self.fused: list[int] = []
        self.makes_contiguous = True
        optimizer.register_step_post_hook(lambda *_: self.after_step())
        optimizer.register_state_dict_pre_hook(self.pay_all)
        optimizer.register_state_dict_post_hook(self.as_plain)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Step our weights' rows where that is exact, and let torch's fused kernel do the rest."""
        for place, group in enumerate(optimizer.param_groups):
            if group["fused"] is None and _may_be_fused(group):
                group["fused"] = True
                self.fused.append(place)
                _move_step_counts(group, optimizer)
            for weight in group["params"]:
                state = optimizer.state.get(weight)
                if weight not in _ours or weight.grad is None or not state:
                    continue
                kernels = _kernels_for(weight, state) if _is_plain(group) else None
                if kernels is not None:
                    self._step_rows(kernels, weight, state, group)
                else:
                    _pay(state)

    def after_step(self) -> None:
        """Give back the gradients that torch's Adam was not to see."""
        for weight, gradient in self.set_aside:
            weight.grad = gradient
        self.set_aside.clear()

    def pay_all(self, optimizer: Optimizer) -> None:
        """Bring all second moments up to date, so that the state is plain Adam's."""
        for state in optimizer.state.values():
            _pay(state)

    def as_plain(self, _: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state as a plain Adam has it: moments contiguous, no choice of kernel."""
        for place in self.fused:
            state_dict["param_groups"][place]["fused"] = None
        moments = {
            key: {name: self._stored(value) for name, value in state.items() if name != OWED}
            for key, state in state_dict["state"].items()
        }
        return {**state_dict, "state": moments}

    def _stored(self, value: Any) -> Any:
        is_moment = isinstance(value, Tensor) and self.makes_contiguous
        return value.contiguous() if is_moment else value

    def _step_rows(
        self, kernels: Any, weight: nn.Parameter, state: Any, group: dict[str, Any]
    ) -> None:
        beta1, beta2 = group["betas"]
        owed = state.get(OWED)
        if owed is None or owed.beta2 != beta2:
            _pay(state)
            last = weight.new_full((len(_rows(weight)),), int(state["step"]), dtype=torch.int64)
            owed = state[OWED] = Owed(last, beta2)
        gradient = weight.grad
        assert gradient is not None  # before_step has looked
        state["step"] += 1
        if beta1 == 0:
            state["exp_avg"] = gradient  # and its memory the next gradient's
        kernels.adam_step(
            _rows(weight),
            _rows(gradient),
            _rows(state["exp_avg"]),
            _rows(state["exp_avg_sq"]),
            owed.last_step_M,
            step=int(state["step"]),
            lr=group["lr"],
            betas=(beta1, beta2),
            eps=group["eps"],
        )
        self.set_aside.append((weight, gradient))
        weight.grad = None


def _pay(state: Any) -> None:
    owed = state.pop(OWED, None)
    if owed is not None:
        square = _rows(state["exp_avg_sq"])
        kernels_on_rows(square).pay_decay(square, owed.last_step_M, int(state["step"]), owed.beta2)


def _may_be_fused(group: dict[str, Any]) -> bool:
    return (
        group["foreach"] is None
        and not group["differentiable"]
        and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"])
    )


def _move_step_counts(group: dict[str, Any], optimizer: Optimizer) -> None:
    """torch's fused kernel takes for granted that they are where the weights are."""
    for weight in group["params"]:
        state = optimizer.state.get(weight, {})
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(weight.device)


def _is_scaled(optimizer: Optimizer) -> bool:
    """Whether a GradScaler leaves it to a fused optimizer to unscale gradients and skip infinite ones."""
    return any(getattr(optimizer, name, None) is not None for name in ("grad_scale", "found_inf"))


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether the formula is that of the paper, and so leaves a row at rest where it is."""
    return (
        group["weight_decay"] == 0
        and not group["amsgrad"]
        and not group["maximize"]
        and not group["capturable"]
        and not group["differentiable"]
        and not isinstance(group["lr"], Tensor)
        and not isinstance(group["betas"][0], Tensor)
    )


def _kernels_for(weight: nn.Parameter, state: Any) -> Any:
    """None where rows do not lie one after another, or nothing of ours serves."""
    matrices = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
    return kernels_on_rows(*map(_rows, matrices))


def _restride(weight: nn.Parameter, state: Any) -> None:
    """torch's fused kernels take for granted that all have the strides of the weight."""
    moments = {name: value for name, value in state.items() if _is_like(weight, value)}
    if any(value.stride() != weight.stride() for value in moments.values()):
        _pay(state)
    for name, value in moments.items():
        state[name] = _with_strides_of(weight, value)
    if weight.grad is not None and weight.grad.layout == torch.strided:
        weight.grad = _with_strides_of(weight, weight.grad)


def _is_like(weight: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape


def _with_strides_of(weight: Tensor, value: Tensor) -> Tensor:
    if value.stride() == weight.stride():
        return value
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _rows(matrix: Any) -> Tensor:
    """Feature after feature: [M, N] of a matrix or of its transpose."""
    rows: Tensor = matrix if matrix.is_contiguous() else matrix.T
    return rows
