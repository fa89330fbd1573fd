"""What runs on a device: some steps of SGD from the server's weights, on the device's own data.

``local_sgd`` is *the* client of this book. The simulation must give what it gives, and a real
fleet runs it as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

__all__ = [
    "ExampleLoss",
    "Weights",
    "check_no_statistics",
    "client_generator",
    "cross_entropy",
    "draw_batches",
    "local_sgd",
    "to_vector",
    "to_weights",
    "trained_weights",
]

Weights = dict[str, Tensor]
"""The trained weights of a model by name, which is all that travels."""

ExampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Loss of each example ``(batch,)``, from the model's scores and the labels of a batch."""


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Loss of each example ``(batch,)``, for scores ``(batch, classes)`` and labels ``(batch,)``.

    Each place of a text is an example too: for scores ``(batch, T, classes)`` and labels
    ``(batch, T)`` the loss of a text is the mean over its places.
    """
    each = F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none")
    return each.flatten(1).mean(1) if each.ndim > 1 else each


def draw_batches(
    sizes: Sequence[int],
    batch_size: int | None,
    epochs: int,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """Which examples each local step of K clients sees: ``(K, steps, batch)`` int64.

    Every client goes through all of its examples ``epochs`` times, in another order each time.
    Where it has no more, there is -1: at the end of an epoch, or if others have more examples.

    Args:
        sizes: how many examples each client has. batch_size: None takes them all at once.
        generator: one for all, or one for each client, whose batches then depend on no other's.

    Raises:
        ValueError: if ``batch_size``, ``epochs`` or a size is less than 1.
    """
    for name, value in (("sizes", min(sizes)), ("batch_size", batch_size), ("epochs", epochs)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    own = [generator] * len(sizes) if isinstance(generator, torch.Generator) else generator
    draws = [torch.rand(size, epochs, generator=g) for size, g in zip(sizes, own, strict=True)]
    padded = pad_sequence(draws, batch_first=True, padding_value=torch.inf).mT
    most = padded.shape[-1]
    missing = torch.arange(most) >= torch.tensor(sizes)[:, None, None]
    order = padded.argsort(-1).masked_fill(missing, -1)
    width = most if batch_size is None else min(batch_size, most)
    return F.pad(order, (0, -most % width), value=-1).view(len(sizes), -1, width)


def client_generator(seed: int, round: int, client: int) -> torch.Generator:
    """What a client draws from in a round; nothing else shares it.

    So on its own device, knowing these three numbers, it draws what the simulation draws for it.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + round) * 1_000_003 + client)


def local_sgd(
    model: nn.Module,
    weights: Weights,
    inputs: Tensor,
    labels: Tensor,
    batches: Tensor,
    *,
    learning_rate: float,
    proximal: float = 0.0,
    correction: Mapping[str, Tensor] | None = None,
    loss: ExampleLoss = cross_entropy,
) -> Weights:
    """Train from ``weights`` on one client's examples; returns its new weights, nothing else.

    FedAvg's client (McMahan et al. 2017, arXiv:1602.05629). Two more terms of the gradient make it
    the client of FedProx and of SCAFFOLD.

    Args:
        model: gives the shape of the computation; it is not changed.
        weights: what the server sent, as ``trained_weights`` names them.
        inputs: ``(n, ...)`` and labels ``(n, ...)``, the client's own.
        batches: ``(steps, batch)`` rows of these, one client's of ``draw_batches``; -1 is no row.
        proximal: mu of FedProx (Li et al. 2020, arXiv:1812.06127), which pulls to ``weights``.
        correction: c - c_i of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378), added to
            every gradient.

    Raises:
        ValueError: if the model would update running statistics: of those no mean is right.
    """
    check_no_statistics(model)
    local = {name: w.clone().requires_grad_() for name, w in weights.items()}
    for rows in batches:
        rows = rows[rows >= 0]
        if len(rows) == 0:
            continue
        scores = functional_call(model, local, (inputs[rows],))
        gradients = torch.autograd.grad(loss(scores, labels[rows]).mean(), list(local.values()))
        with torch.no_grad():
            for (name, w), gradient in zip(local.items(), gradients, strict=True):
                step = gradient + proximal * (w - weights[name])
                if correction is not None:
                    step += correction[name]
                w -= learning_rate * step
    return {name: w.detach() for name, w in local.items()}


def trained_weights(model: nn.Module) -> Weights:
    """Copies of the model's trainable parameters, by name; frozen ones stay where they are.

    Raises:
        ValueError: if nothing is trainable.
    """
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("model has nothing to train: all its parameters are frozen")
    return weights


def to_vector(weights: Mapping[str, Tensor], *, stacked: bool = False) -> Tensor:
    """All weights in one row ``(P,)``; if they are stacked, a row for each client ``(m, P)``."""
    return torch.cat([w.flatten(int(stacked)) for w in weights.values()], dim=-1)


def to_weights(vector: Tensor, like: Mapping[str, Tensor]) -> Weights:
    """The way back: ``vector`` ``(P,)`` or ``(m, P)`` as weights with the shapes of ``like``.

    Raises:
        ValueError: if ``like`` has another number of weights than the vector.
    """
    sizes = [w.numel() for w in like.values()]
    if vector.shape[-1] != sum(sizes):
        raise ValueError(f"vector must have {sum(sizes)} numbers, got {vector.shape[-1]}")
    parts = vector.split(sizes, dim=-1)
    return {
        name: part.reshape(*vector.shape[:-1], *w.shape)
        for (name, w), part in zip(like.items(), parts, strict=True)
    }


def check_no_statistics(model: nn.Module) -> None:
    """Refuse a model that would update running statistics while clients train.

    Raises:
        ValueError: naming the layer.
    """
    for name, module in model.named_modules():
        if module.training and getattr(module, "track_running_stats", False):
            raise ValueError(
                f"model has {type(module).__name__} {name!r} in training mode, whose running "
                "statistics differ from client to client and are not sent; put it into eval mode, "
                "or take a model without BatchNorm"
            )
