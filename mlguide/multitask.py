"""Multi-task learning: one backbone that is shared, a head for each task, one step for all.

``MultiTaskModel`` is the network. What a task wants is one loss each (``task_losses``); as there is
only one step to take, they are combined: as a weighted sum (``weighted_loss``), with weights that
are learned (``UncertaintyWeighting``), or by what their gradients say (``pcgrad``, ``mgda``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mlguide.training import Loss, adamw, batch_order, check_labelled

__all__ = [
    "Costs",
    "MultiTaskModel",
    "Task",
    "TaskHistory",
    "UncertaintyWeighting",
    "classification",
    "count_costs",
    "fit_tasks",
    "gradient_cosine",
    "mgda",
    "pack_labels",
    "pcgrad",
    "regression",
    "task_gradients",
    "task_losses",
    "weighted_loss",
]


@dataclass(frozen=True)
class Task:
    """What one task asks: a name, how wide its head is, and its loss.

    loss: from answers (N, outputs) and labels (N, columns), the loss of each example (N,).
    columns: how many numbers one label is.
    """

    name: str
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    columns: int = 1


def classification(name: str, classes: int) -> Task:
    """A task that picks one of ``classes``; its loss is cross-entropy, its label a whole number."""

    def loss(answers: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(answers, labels[:, 0].long(), reduction="none")

    return Task(name, classes, loss)


def regression(name: str, outputs: int = 1) -> Task:
    """A task that gives ``outputs`` numbers; its loss is their mean squared error."""

    def loss(answers: Tensor, labels: Tensor) -> Tensor:
        return (answers - labels).square().mean(1)

    return Task(name, outputs, loss, columns=outputs)


def pack_labels(tasks: Sequence[Task], labels: Mapping[str, Tensor]) -> Tensor:
    """The labels of all tasks side by side, ``(N, columns)`` float32, for ``fit`` and ``fit_many``.

    labels: task -> ``(N,)`` or ``(N, columns)``. NaN says that an example has no label for a task.

    Raises:
        ValueError: if a task has no labels, or labels have no task, or their shapes do not fit.
    """
    if set(labels) != {task.name for task in tasks}:
        raise ValueError(
            f"labels must be those of the tasks {[t.name for t in tasks]}; got {list(labels)}"
        )
    columns: list[Tensor] = []
    for task in tasks:
        of_task = labels[task.name].float()
        of_task = of_task[:, None] if of_task.ndim == 1 else of_task
        number = len(columns[0]) if columns else len(of_task)
        if of_task.shape != (number, task.columns):
            raise ValueError(
                f"labels of {task.name!r} must be ({number}, {task.columns}), "
                f"got {tuple(of_task.shape)}"
            )
        columns.append(of_task)
    return torch.cat(columns, dim=1)


class MultiTaskModel(nn.Module):
    """A shared ``backbone`` and, as its branches, a linear head for each task.

    It takes the backbone of ``network``, one of ``mlguide.models``, whose head it leaves. Input as
    the network's; output: task -> answers ``(N, outputs)``. ``seed`` draws the heads.

    Raises:
        ValueError: if there is no task, or two have one name.
    """

    def __init__(self, network: nn.Module, tasks: Sequence[Task], *, seed: int) -> None:
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must have different names, at least one; got {names}")
        super().__init__()
        self.backbone = cast(nn.Module, network.backbone)
        width = cast(nn.Linear, network.head).in_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleDict({t.name: nn.Linear(width, t.outputs) for t in tasks})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """The answers of every head."""
        features = self.backbone(inputs)
        return {name: head(features) for name, head in self.heads.items()}


def task_losses(tasks: Sequence[Task], answers: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """The mean loss of each task over the examples that have a label for it: ``(tasks,)``.

    A task without any label in the batch has a loss of NaN.

    Args:
        answers: as ``MultiTaskModel`` gives them. labels: as ``pack_labels`` gives them.

    Raises:
        ValueError: if a task has no head, or a head no task.
    """
    if set(answers) != {task.name for task in tasks}:
        raise ValueError(f"tasks are {[t.name for t in tasks]}, but heads are {list(answers)}")
    losses: list[Tensor] = []
    for task, of_task in zip(tasks, labels.split([t.columns for t in tasks], dim=1), strict=True):
        known = ~of_task.isnan().any(1)
        each = task.loss(answers[task.name], of_task.nan_to_num())
        losses.append(torch.where(known, each, 0).sum() / known.sum())
    return torch.stack(losses)


# One number for all


def weighted_loss(tasks: Sequence[Task], weights: Mapping[str, float] | None = None) -> Loss:
    """The weighted sum of the tasks' losses, for ``fit`` and ``fit_many``; unit weights if none.

    Raises:
        ValueError: if a task has no weight, a weight no task, or one is negative.
    """
    given = {task.name: 1.0 for task in tasks} if weights is None else dict(weights)
    if set(given) != {t.name for t in tasks} or min(given.values()) < 0:
        raise ValueError(
            f"weights must be one for each of {[t.name for t in tasks]}, not below 0; got {given}"
        )
    factors = torch.tensor([given[task.name] for task in tasks])

    def loss(answers: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        return (factors * task_losses(tasks, answers, labels)).sum()

    return loss


class UncertaintyWeighting(nn.Module):
    """Weights that are learned (Kendall et al. 2018, arXiv:1705.07115): each task has a number s,
    and its loss L counts as ``exp(-s) L + s / 2``, which is least at ``s = log 2L``.

    It wraps a ``MultiTaskModel``, so that s is trained with the rest; ``loss`` goes with it.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.model, self.tasks = model, tuple(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def forward(self, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The answers of every head, and s ``(tasks,)``."""
        return self.model(inputs), self.log_variance

    def loss(self, output: tuple[dict[str, Tensor], Tensor], labels: Tensor) -> Tensor:
        """One number from what ``forward`` gives and labels as ``pack_labels`` gives them."""
        answers, s = output
        return ((-s).exp() * task_losses(self.tasks, answers, labels) + s / 2).sum()


# What the gradients say


def task_gradients(losses: Tensor, backbone: nn.Module) -> Tensor:
    """The gradient of each loss ``(tasks,)`` for the shared weights: ``(tasks, weights)``.

    The graph is kept, so that the heads' gradients can still be taken.
    """
    shared = [p for p in backbone.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def gradient_cosine(gradients: Tensor) -> Tensor:
    """Cosine between the gradients ``(tasks, weights)`` of every two tasks: ``(tasks, tasks)``."""
    unit = F.normalize(gradients)
    return unit @ unit.T


def pcgrad(gradients: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient surgery (PCGrad, Yu et al. 2020, arXiv:2001.06782): ``(weights,)``.

    From each task's gradient, whatever points against another task's is taken out, the others in
    random order; then all are summed.

    Args:
        gradients: ``(tasks, weights)``. generator: draws the orders.
    """
    total = torch.zeros_like(gradients[0])
    for i, gradient in enumerate(gradients):
        mine = gradient.clone()
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            against = mine @ gradients[j]
            if j != i and against < 0:
                mine -= against / gradients[j].square().sum() * gradients[j]
        total += mine
    return total


def mgda(gradients: Tensor, *, steps: int = 250) -> Tensor:
    """The shortest weighted mean of the gradients (MGDA, Désidéri 2012; Sener and Koltun 2018,
    arXiv:1810.04650), along which no task gets worse: ``(weights,)``.

    Frank-Wolfe: go towards the gradient that points most against the mean, as far as it shortens.
    With two tasks the first step is exact.

    Args:
        gradients: ``(tasks, weights)``. steps: at most so many.
    """
    products = gradients @ gradients.T
    weights = torch.full((len(gradients),), 1 / len(gradients)).to(gradients)
    precision = 4 * torch.finfo(gradients.dtype).eps * products.diagonal().amax().sqrt()
    for _ in range(steps):
        towards = int((products @ weights).argmin())
        step = -weights.clone()
        step[towards] += 1
        length = step @ products @ step
        far = (-(weights @ products @ step) / length.clamp_min(1e-30)).clamp(0, 1)
        weights += far * step
        if far * length.sqrt() <= precision:
            break
    return weights @ gradients


@dataclass(frozen=True)
class TaskHistory:
    """What a run leaves behind: each task's loss and the least cosine of two gradients by step."""

    losses: Tensor  # (steps, tasks)
    cosines: Tensor  # (steps,)
    seconds: float


def fit_tasks(
    model: MultiTaskModel,
    tasks: Sequence[Task],
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
    combine: Callable[[Tensor], Tensor],
    batch_size: int = 32,
) -> TaskHistory:
    """``training.fit`` where ``combine`` makes one step for the backbone of the tasks' gradients.

    combine: ``(tasks, weights)`` to ``(weights,)``, such as ``mgda``. Each head follows its own
    task. The rest is as in ``fit``.

    Raises:
        ValueError: as ``fit``, if a batch has no label at all for a task, or a loss is not finite.
    """
    check_labelled(inputs, labels, loss=weighted_loss(tasks))
    order = batch_order(len(inputs), batch_size, steps, generator)
    optimizer = adamw(dict(model.named_parameters()), learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    shared, heads = list(model.backbone.parameters()), list(model.heads.parameters())
    history: list[Tensor] = []
    cosines: list[Tensor] = []
    start = time.perf_counter()
    model.train()
    for step, rows in enumerate(order):
        losses = task_losses(tasks, model(inputs[rows]), labels[rows])
        _check(losses, tasks, labels[rows], step)
        gradients = task_gradients(losses, model.backbone)
        optimizer.zero_grad()
        losses.sum().backward(inputs=heads)
        parts = combine(gradients).split([p.numel() for p in shared])
        for parameter, part in zip(shared, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        schedule.step()
        history.append(losses.detach())
        cosines.append(gradient_cosine(gradients).min())
    model.eval()
    return TaskHistory(torch.stack(history), torch.stack(cosines), time.perf_counter() - start)


def _check(losses: Tensor, tasks: Sequence[Task], labels: Tensor, step: int) -> None:
    if losses.isfinite().all():
        return
    task = tasks[int((~losses.isfinite()).nonzero()[0])]
    place = [t.name for t in tasks].index(task.name)
    of_task = labels.split([t.columns for t in tasks], dim=1)[place]
    if of_task.isnan().any(1).all():
        raise ValueError(f"the batch of step {step} has no label at all for the task {task.name!r}")
    raise ValueError(f"the loss of the task {task.name!r} is {losses[place]:g} at step {step}")


# What it costs


@dataclass(frozen=True)
class Costs:
    """What a network takes: counted, not timed.

    operations: floating-point operations for a batch, forwards (and forwards and backwards).
    activation_bytes: what the forward pass keeps for the backward pass, weights left out.
    checkpoint_bytes: the size of its weights and buffers as safetensors.
    """

    parameters: int
    operations: int
    training_operations: int
    activation_bytes: int
    checkpoint_bytes: int


def count_costs(model: nn.Module, inputs: Tensor) -> Costs:
    """Count what ``model`` takes for the batch ``inputs``; it is not changed."""

    def total(output: Any) -> Tensor:
        answers = output.values() if isinstance(output, dict) else [output]
        return torch.stack([answer.sum() for answer in answers]).sum()

    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), inputs)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(inputs)
    with FlopCounterMode(display=False) as both, saved_tensors_hooks(note, lambda tensor: tensor):
        loss = total(model(inputs))
        loss.backward()
    model.zero_grad()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    return Costs(
        sum(p.numel() for p in model.parameters()),
        forward.get_total_flops(),
        both.get_total_flops(),
        sum(kept.values()),
        len(save(state)),
    )
