"""A whole federation on one machine: all sampled clients of a round train at once.

What a client does is ``client.local_sgd``. To run a hundred of them one after the other is slow for
small models, as most of the time goes to calling PyTorch; here their weights are stacked and one
call serves all. The batches are drawn beforehand, so every way of computing gives the same weights.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlguide.federated.aggregation import Aggregator, ServerOptimizer, mean
from mlguide.federated.client import (
    ExampleLoss,
    Weights,
    check_no_statistics,
    client_generator,
    cross_entropy,
    draw_batches,
    local_sgd,
    to_vector,
    to_weights,
    trained_weights,
)
from mlguide.federated.fused import fused_sgd, linear_layers
from mlguide.interactive import has_front_end

__all__ = [
    "Engine",
    "Federation",
    "Round",
    "accuracy_by_client",
    "stack_clients",
    "stacked_sgd",
    "train_clients",
]

Engine = Literal["auto", "loop", "stacked", "fused"]
CACHE = 8 * 2**20  # bytes of stacked weights that still lie in a processor's cache


def stack_clients(clients: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``(K, n, ...)``, labels ``(K, n, ...)`` and sizes ``(K,)`` of K clients.

    n is the size of the largest client; the others are filled up with zeros.

    Raises:
        ValueError: naming the client whose inputs and labels do not match, or that has none.
    """
    if not clients:
        raise ValueError("clients must hold at least one client, got none")
    for place, (inputs, labels) in enumerate(clients):
        if not len(inputs) == len(labels) > 0:
            raise ValueError(
                f"client {place} must have a label for each input, and one at least; "
                f"got {len(inputs)} inputs and {len(labels)} labels"
            )
    sizes = torch.tensor([len(labels) for _, labels in clients])
    padded = [
        torch.nn.utils.rnn.pad_sequence([client[part] for client in clients], batch_first=True)
        for part in (0, 1)
    ]
    return padded[0], padded[1], sizes


def stacked_sgd(
    model: nn.Module,
    weights: Weights,
    inputs: Tensor,
    labels: Tensor,
    batches: Tensor,
    *,
    learning_rate: float,
    proximal: float = 0.0,
    corrections: Weights | None = None,
    loss: ExampleLoss = cross_entropy,
) -> Weights:
    """``client.local_sgd`` for m clients at once, by ``torch.func.vmap``; returns stacked weights.

    Args:
        inputs: ``(m, n, ...)``, labels ``(m, n, ...)``, batches ``(m, steps, batch)`` with -1
            where there is no row. corrections: stacked ``(m, ...)``. The rest is as there.
    """

    def of_one(local: Weights, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return (loss(functional_call(model, local, (x,)), y) * share).sum()

    m = len(inputs)
    local = {n: w.expand(m, *w.shape).clone().requires_grad_() for n, w in weights.items()}
    client = torch.arange(m)[:, None]
    dtype = next(iter(weights.values())).dtype
    for rows in batches.unbind(1):
        real = (rows >= 0).to(dtype)
        share = real / real.sum(1, keepdim=True).clamp(min=1)
        x, y = (part[client, rows.clamp(min=0)] for part in (inputs, labels))
        # The clients share no weight, so the gradient of the sum is each client's own gradient.
        with sdpa_kernel(SDPBackend.MATH):  # of the kinds of attention, the one that can be stacked
            total = vmap(of_one)(local, x, y, share).sum()
        gradients = torch.autograd.grad(total, list(local.values()))
        rates = learning_rate * real.amax(1)  # 0 for a client that has finished
        with torch.no_grad():
            for (name, w), step in zip(local.items(), gradients, strict=True):
                if proximal:
                    step = step + proximal * (w - weights[name])
                if corrections is not None:
                    step = step + corrections[name]
                w -= rates.view(-1, *[1] * (w.ndim - 1)) * step
    return {name: w.detach() for name, w in local.items()}


def train_clients(
    model: nn.Module,
    weights: Weights,
    inputs: Tensor,
    labels: Tensor,
    batches: Tensor,
    *,
    learning_rate: float,
    proximal: float = 0.0,
    corrections: Weights | None = None,
    loss: ExampleLoss = cross_entropy,
    engine: Engine = "auto",
) -> Weights:
    """``stacked_sgd`` the quickest way: the weights with which m clients end, ``(m, ...)``.

    ``engine`` "loop" runs one client after the other, "stacked" all at once, "fused" too but only
    plain stacks of Linear and ReLU. "auto" takes the fastest that can: fused, else stacked, but a
    loop for convolutions with many weights, where stacking loses. All but the loop go in chunks
    that fit a processor's cache.

    Raises:
        ValueError: if ``engine`` is none of these, or the model cannot be "fused" or has BatchNorm
            in training mode.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}; got {engine!r}")
    check_no_statistics(model)
    layers = linear_layers(model) if loss is cross_entropy and inputs.is_floating_point() else None
    if engine == "fused" and layers is None:
        raise ValueError(
            "engine 'fused' takes Linear layers with ReLU in between, all trained, and the "
            f"cross-entropy; got {type(model).__name__}"
        )
    size = sum(w.numel() for w in weights.values())
    if engine == "auto":
        convolution = any(isinstance(module, nn.Conv2d) for module in model.modules())
        engine = "fused" if layers else "loop" if convolution and size > 100_000 else "stacked"
    bytes_each = size * next(iter(weights.values())).element_size()
    chunk = 1 if engine == "loop" else max(1, CACHE // bytes_each)
    done: list[Weights] = []
    for first in range(0, len(inputs), chunk):
        at = slice(first, first + chunk)
        mine = None if corrections is None else {n: c[at] for n, c in corrections.items()}
        data = inputs[at], labels[at], batches[at]
        if engine == "loop":
            one = None if mine is None else {name: c[0] for name, c in mine.items()}
            new = local_sgd(
                model, weights, *(part[0] for part in data), learning_rate=learning_rate,
                proximal=proximal, correction=one, loss=loss,
            )  # fmt: skip
            done.append({name: w[None] for name, w in new.items()})
        elif engine == "fused" and layers is not None:
            done.append(
                fused_sgd(
                    layers, weights, *data, learning_rate=learning_rate, proximal=proximal,
                    corrections=mine,
                )
            )  # fmt: skip
        else:
            done.append(
                stacked_sgd(
                    model, weights, *data, learning_rate=learning_rate, proximal=proximal,
                    corrections=mine, loss=loss,
                )
            )  # fmt: skip
    return {name: torch.cat([part[name] for part in done]) for name in weights}


@dataclass(frozen=True)
class Round:
    """What happened in a round: clients asked, answered and refused, by number, and the score."""

    number: int
    asked: list[int]
    answered: list[int]
    refused: list[int]
    score: float | None


@dataclass
class Federation:
    """A server and its clients: ``run`` plays rounds, and can be stopped and taken up again.

    Each round the server asks some clients, sends them the weights, and makes one step of the
    updates that come back. A round is played whole or not at all: stopped in the middle, the
    federation is as it was before. What a round draws depends on ``seed`` and its number alone.

    Args:
        model: its trainable weights are the start; it always holds the latest ones.
        clients: inputs ``(n, ...)`` and labels ``(n, ...)`` of each client.
        learning_rate, epochs, batch_size: of the clients; ``batch_size`` None is all examples.
        per_round: how many clients are asked, all if None.
        seed: of everything that is drawn.
        aggregate: makes one step of the updates. server: changes the step, such as ``adam``.
        proximal: mu of FedProx. scaffold: the clients' drift is corrected by SCAFFOLD, option II.
        dropout: probability that a client that was asked does not answer.
        poisson: each client is asked by its own coin, ``per_round`` of them on average.
        uplink: changes the updates ``(m, P)`` of clients ``(m,)`` on their way to the server.
        loss, engine: as in ``train_clients``.

    Raises:
        ValueError: naming the setting that is out of range.
    """

    model: nn.Module
    clients: Sequence[tuple[Tensor, Tensor]]
    learning_rate: float
    seed: int
    epochs: int = 1
    batch_size: int | None = 10
    per_round: int | None = None
    aggregate: Aggregator = mean
    server: ServerOptimizer | None = None
    proximal: float = 0.0
    scaffold: bool = False
    dropout: float = 0.0
    poisson: bool = False
    uplink: Callable[[Tensor, Tensor], Tensor] | None = None
    loss: ExampleLoss = cross_entropy
    engine: Engine = "auto"
    rounds: list[Round] = field(default_factory=list[Round], init=False)

    def __post_init__(self) -> None:
        check_no_statistics(self.model)
        self.inputs, self.labels, self.sizes = stack_clients(self.clients)
        total = len(self.sizes)
        self.per_round = total if self.per_round is None else self.per_round
        if not 1 <= self.per_round <= total:
            raise ValueError(f"per_round must be 1 to {total}, got {self.per_round}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to less than 1, got {self.dropout}")
        if not self.learning_rate > 0 or not self.proximal >= 0:
            raise ValueError(
                "learning_rate must be above 0 and proximal must be at least 0; "
                f"got {self.learning_rate} and {self.proximal}"
            )
        self.weights = trained_weights(self.model)
        vector = to_vector(self.weights)
        self.memory: dict[str, Tensor] = {}  # of the server's optimizer
        # SCAFFOLD's control variates: c of the server, and c_i of each client
        self.control = torch.zeros_like(vector)
        self.controls = vector.new_zeros(total if self.scaffold else 0, len(vector))

    @property
    def scores(self) -> list[float]:
        """The scores of the rounds that have one."""
        return [r.score for r in self.rounds if r.score is not None]

    def run(
        self, rounds: int, exam: Callable[[nn.Module], float] | None = None, *, every: int = 1
    ) -> None:
        """Play ``rounds`` more rounds; after each ``every``-th, ``exam(model)`` gives its score.

        Where a person watches, a line tells how far it is.

        Raises:
            ValueError: if ``rounds`` is negative, or ``every`` less than 1.
        """
        if rounds < 0 or every < 1:
            raise ValueError(f"rounds must be at least 0, every at least 1; got {rounds}, {every}")
        watched = has_front_end() or sys.stderr.isatty()
        last = len(self.rounds) + rounds
        while (number := len(self.rounds) + 1) <= last:
            self._play(number, exam if number % every == 0 or number == last else None)
            if watched:
                print(f"\rround {number} of {last}", end="", file=sys.stderr, flush=True)

    def _play(self, number: int, exam: Callable[[nn.Module], float] | None) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        asked = self._draw_clients(generator)
        answers = torch.rand(len(asked), generator=generator) >= self.dropout
        mine = asked[answers]
        control, controls, memory = self.control, self.controls, dict(self.memory)
        vector, refused = to_vector(self.weights), mine[:0]
        if len(mine):
            updates, steps = self._train(mine, number)
            if self.scaffold:
                rate = (steps * self.learning_rate)[:, None]
                new = controls[mine] - control - updates / rate
                control = control + (new - controls[mine]).sum(0) / len(controls)
                controls = controls.index_copy(0, mine, new)
            if self.uplink is not None:
                updates = self.uplink(updates, mine)
            sound = updates.isfinite().all(1)  # one NaN in a mean would be the end of the model
            mine, refused, updates = mine[sound], mine[~sound], updates[sound]
        else:
            updates = vector.new_empty(0, len(vector))
        if len(mine) or self.poisson:
            step = self.aggregate(updates, self.sizes[mine])
            vector = vector + (step if self.server is None else self.server(step, memory))
        weights = to_weights(vector, self.weights)
        score = None if exam is None else self._examine(weights, exam)
        # All of the round stands: from here on it counts.
        self.weights, self.memory = weights, memory
        self.control, self.controls = control, controls
        self._show(weights)
        self.rounds.append(Round(number, asked.tolist(), mine.tolist(), refused.tolist(), score))

    def _draw_clients(self, generator: torch.Generator) -> Tensor:
        total, wanted = len(self.sizes), self.per_round or 0
        if self.poisson:
            return (torch.rand(total, generator=generator) < wanted / total).nonzero()[:, 0]
        return torch.randperm(total, generator=generator)[:wanted].sort().values

    def _train(self, mine: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Updates ``(m, P)`` of these clients, and how many local steps each took ``(m,)``."""
        sizes = self.sizes[mine].tolist()
        own = [client_generator(self.seed, number, k) for k in mine.tolist()]
        batches = draw_batches(sizes, self.batch_size, self.epochs, own)
        corrections = None
        if self.scaffold:
            corrections = to_weights(self.control - self.controls[mine], self.weights)
        new = train_clients(
            self.model, self.weights, self.inputs[mine], self.labels[mine], batches,
            learning_rate=self.learning_rate, proximal=self.proximal, corrections=corrections,
            loss=self.loss, engine=self.engine,
        )  # fmt: skip
        updates = to_vector(new, stacked=True) - to_vector(self.weights)
        steps = (batches >= 0).any(2).sum(1)
        return updates, steps.to(updates.dtype)

    def _show(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(weights), strict=False)

    def _examine(self, weights: Weights, exam: Callable[[nn.Module], float]) -> float:
        self._show(weights)
        try:
            return exam(self.model)
        except BaseException:
            self._show(self.weights)
            raise

    def save(self, path: str | Path) -> None:
        """Write the state after the last whole round; the file is replaced in one stroke."""
        path = Path(path)
        tensors = {f"weights/{name}": w for name, w in self.weights.items()}
        tensors |= {f"memory/{name}": value for name, value in self.memory.items()}
        tensors |= {"control": self.control, "controls": self.controls}
        rounds = json.dumps([asdict(r) for r in self.rounds])
        part = path.with_name(path.name + ".part")
        save_file(tensors, part, {"seed": str(self.seed), "rounds": rounds})
        os.replace(part, path)

    def load(self, path: str | Path) -> None:
        """Take up what ``save`` wrote, in a federation that was made with the same settings.

        Raises:
            ValueError: if the file is of another seed, other weights or another number of clients.
        """
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            written = file.metadata()
        if int(written["seed"]) != self.seed:
            raise ValueError(f"path was saved with seed {written['seed']}, not {self.seed}")
        here = {f"weights/{name}": w for name, w in self.weights.items()}
        here |= {"control": self.control, "controls": self.controls}
        shapes = {k: tuple(t.shape) for k, t in tensors.items() if not k.startswith("memory/")}
        if wrong := sorted(
            name for name in here.keys() | shapes.keys()
            if name not in here or shapes.get(name) != tuple(here[name].shape)
        ):  # fmt: skip
            raise ValueError(f"path holds another federation: {wrong[0]} differs")
        self.weights = {name: tensors[f"weights/{name}"] for name in self.weights}
        self.control, self.controls = tensors["control"], tensors["controls"]
        memory = {k: t for k, t in tensors.items() if k.startswith("memory/")}
        self.memory = {name.removeprefix("memory/"): value for name, value in memory.items()}
        self.rounds = [Round(**r) for r in json.loads(written["rounds"])]
        self._show(self.weights)


@torch.no_grad()
def accuracy_by_client(
    model: nn.Module, weights: Weights, clients: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Accuracy ``(K,)`` of K clients' weights, stacked ``(K, ...)``, each on its own examples.

    One set of weights for all is told by shapes without the K.
    """
    inputs, labels, sizes = stack_clients(clients)
    own = next(iter(weights.values())).ndim > next(iter(trained_weights(model).values())).ndim
    stacked = weights if own else {n: w.expand(len(sizes), *w.shape) for n, w in weights.items()}

    def of_one(mine: Weights, x: Tensor) -> Tensor:
        return functional_call(model, mine, (x,)).argmax(-1)

    right = vmap(of_one)(stacked, inputs) == labels
    real = torch.arange(labels.shape[1]) < sizes[:, None]
    return (right & real).double().sum(1) / sizes
