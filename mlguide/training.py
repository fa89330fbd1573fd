"""Train a model and measure it: the one loop of the book, and the one place for threads.

Models this small run fastest on one processor thread, so that is what importing this module
sets. The variable ``MLGUIDE_THREADS`` asks for another number.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "History",
    "Loss",
    "ParameterGroup",
    "Penalty",
    "Transform",
    "adamw",
    "batch_order",
    "check_labelled",
    "evaluate",
    "fit",
]

torch.set_num_threads(int(os.environ.get("MLGUIDE_THREADS", "1")))

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""A random change of a batch of pictures, drawn from the generator it is given."""

Loss = Callable[[Any, Tensor], Tensor]
"""What is minimised: one number from what a model answers to a batch, and the batch's labels."""

Penalty = Callable[[Mapping[str, Tensor]], Tensor]
"""A number that is added to the loss, from the trained parameters by name."""


class ParameterGroup(TypedDict):
    """Parameters, each with its name in the model, that share a learning rate."""

    params: list[tuple[str, Tensor]]
    lr: float


@dataclass(frozen=True)
class History:
    """What a training run leaves behind: the loss at each step, and the seconds it took."""

    losses: list[float]
    seconds: float


def fit(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float | Sequence[ParameterGroup],
    generator: torch.Generator,
    batch_size: int = 32,
    transform: Transform | None = None,
    loss: Loss = F.cross_entropy,
    penalty: Penalty | None = None,
    before_step: Callable[[int], None] | None = None,
) -> History:
    """Train what is trainable in ``model``, in place, with AdamW and a rate that falls to zero.

    Args:
        model: maps a batch of inputs to scores ``(batch, classes)``; left in eval mode.
        inputs: ``(N, ...)``, pictures or features. labels: ``(N,)`` int64.
        steps: number of weight updates. batch_size: examples per update, all of them if fewer.
        learning_rate: one for all, or groups of parameters with a rate for each group.
        generator: draws the order of the examples, and whatever ``transform`` draws.
        transform: applied afresh to every batch, such as a random pose.
        loss: with another one than cross-entropy, labels are what it takes, a row per input.
        penalty: added to the loss. before_step: called with 0, 1, … before each update.

    Raises:
        ValueError: if inputs and labels do not match, hold NaN, nothing is trainable, or ``steps``
            or ``batch_size`` is less than 1.
    """
    check_labelled(inputs, labels, loss=loss)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("model has nothing to train: all its parameters are frozen")
    order = batch_order(len(inputs), batch_size, steps, generator)
    optimizer = adamw(trainable, learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: list[Tensor] = []
    start = time.perf_counter()
    model.train()
    for step, rows in enumerate(order):
        if before_step is not None:
            before_step(step)
        batch = inputs[rows] if transform is None else transform(inputs[rows], generator)
        total = loss(model(batch), labels[rows])
        if penalty is not None:
            total = total + penalty(trainable)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
        losses.append(total.detach())
    model.eval()
    return History(torch.stack(losses).tolist(), time.perf_counter() - start)


def adamw(
    trainable: Mapping[str, Tensor], learning_rate: float | Sequence[ParameterGroup]
) -> torch.optim.AdamW:
    """The optimizer of the book, for parameters by name; groups are looked up by their names.

    A group may hold parameters that are frozen now and trained later.

    Raises:
        ValueError: if there are groups, and a trainable parameter is in none of them.
    """
    if isinstance(learning_rate, int | float):
        return torch.optim.AdamW(list(trainable.values()), learning_rate, fused=True)
    groups = [
        {"params": [trainable.get(name, p) for name, p in group["params"]], "lr": group["lr"]}
        for group in learning_rate
    ]
    grouped = {name for group in learning_rate for name, _ in group["params"]}
    if left_out := sorted(trainable.keys() - grouped):
        raise ValueError(f"learning_rate has no group for {', '.join(left_out)}")
    return torch.optim.AdamW(groups, fused=True)


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Accuracy in [0, 1] of ``model``, in eval mode, on inputs ``(N, ...)`` and labels ``(N,)``.

    Raises:
        ValueError: if inputs and labels do not match or hold NaN.
    """
    check_labelled(inputs, labels)
    was_training = model.training
    model.eval()
    scores = torch.cat([model(part) for part in inputs.split(500)])
    model.train(was_training)
    return (scores.argmax(1) == labels).double().mean().item()


def batch_order(n: int, batch_size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Which examples each step sees: ``(steps, min(batch_size, n))`` indices below ``n``.

    Every example is seen once before any is seen again, but for the few that do not fill a batch.

    Raises:
        ValueError: if ``n``, ``batch_size`` or ``steps`` is less than 1.
    """
    for name, value in (("n", n), ("batch_size", batch_size), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    batch_size = min(batch_size, n)
    per_epoch = n // batch_size
    epochs = -(-steps // per_epoch)
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(epochs)])
    return order[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]


def check_labelled(
    inputs: Tensor, labels: Tensor, classes: int | None = None, *, loss: Loss = F.cross_entropy
) -> None:
    """Refuse examples that cannot be learned from: none, NaN, or labels that do not fit.

    A loss other than cross-entropy may take any labels, as long as there is a row for each input.

    Raises:
        ValueError: naming the argument, what it holds and what it should.
    """
    if len(inputs) == 0:
        raise ValueError("inputs is empty: the label budget must be at least one example")
    if loss is not F.cross_entropy:
        if len(labels) != len(inputs):
            raise ValueError(f"labels must have a row for each of {len(inputs)} inputs")
    elif labels.shape != (len(inputs),) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape ({len(inputs)},), one for each of inputs; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if not torch.isfinite(inputs).all():
        bad = int((~torch.isfinite(inputs)).flatten(1).any(1).sum())
        raise ValueError(
            f"inputs must be finite numbers; {bad} of {len(inputs)} hold NaN or infinity"
        )
    if classes is not None and not (0 <= int(labels.min()) and int(labels.max()) < classes):
        raise ValueError(
            f"labels must be 0 to {classes - 1}; got {int(labels.min())} to {int(labels.max())}"
        )
