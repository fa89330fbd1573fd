"""What the server makes of the answers: one step from many updates.

An *aggregator* is a function of updates ``(m, P)``, one row for each client that answered, and of
weights ``(m,)``, the clients' numbers of examples; it returns one step ``(P,)``. A *server
optimizer* is a function of that step, and of a dict in which it keeps what it must remember.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from mlguide.federated.client import Weights, to_vector

__all__ = [
    "Aggregator",
    "ServerOptimizer",
    "accept",
    "adam",
    "krum",
    "mean",
    "median",
    "momentum",
    "trimmed_mean",
]

Aggregator = Callable[[Tensor, Tensor], Tensor]
ServerOptimizer = Callable[[Tensor, dict[str, Tensor]], Tensor]


def mean(updates: Tensor, weights: Tensor) -> Tensor:
    """FedAvg: the mean of updates ``(m, P)``, weighted by ``weights`` ``(m,)``; returns ``(P,)``.

    McMahan et al. 2017, arXiv:1602.05629.
    """
    shares = weights.to(updates.dtype)
    return (shares / shares.sum()) @ updates


def median(updates: Tensor, weights: Tensor) -> Tensor:
    """The middle value in each place, whatever the clients' sizes; of two middles, their mean.

    Yin et al. 2018, arXiv:1803.01498.
    """
    ordered, m = _sorted(updates), len(updates)
    return (ordered[(m - 1) // 2] + ordered[m // 2]) / 2


def trimmed_mean(fraction: float) -> Aggregator:
    """The mean in each place without the ``fraction`` largest and as many of the smallest values.

    Yin et al. 2018, arXiv:1803.01498. Clients count alike, whatever their sizes.

    Raises:
        ValueError: if ``fraction`` is not from 0 to less than a half.
    """
    if not 0 <= fraction < 0.5:
        raise ValueError(f"fraction must be from 0 to less than 0.5, got {fraction}")

    def aggregate(updates: Tensor, weights: Tensor) -> Tensor:
        cut = int(fraction * len(updates))
        return _sorted(updates)[cut : len(updates) - cut].mean(0)

    return aggregate


def krum(hostile: int, *, keep: int = 1) -> Aggregator:
    """The mean of the ``keep`` updates that lie closest to their neighbours; 1 is Krum itself.

    An update's score is the sum of its squared distances to the m - ``hostile`` - 2 others that are
    nearest to it (Blanchard et al. 2017, arXiv:1703.02757; with more kept, Multi-Krum).

    Raises:
        ValueError: when called with fewer than 2 ``hostile`` + 3 updates, or fewer than ``keep``.
    """

    def aggregate(updates: Tensor, weights: Tensor) -> Tensor:
        m = len(updates)
        if m < max(2 * hostile + 3, keep):
            raise ValueError(
                f"krum needs at least {max(2 * hostile + 3, keep)} updates to resist {hostile} "
                f"hostile ones and keep {keep}; got {m}"
            )
        products = updates.double() @ updates.double().T
        squares = products.diagonal()
        distances = (squares + squares[:, None] - 2 * products).fill_diagonal_(torch.inf)
        nearest = distances.sort(1).values[:, : m - hostile - 2]
        return updates[nearest.sum(1).argsort(stable=True)[:keep]].mean(0)

    return aggregate


def _sorted(updates: Tensor) -> Tensor:
    """Each column in order; NumPy sorts many short columns ten times as fast as PyTorch."""
    return torch.from_numpy(np.sort(updates.numpy(), axis=0))


def momentum(learning_rate: float = 1.0, beta: float = 0.9) -> ServerOptimizer:
    """FedAvgM: the server's step rolls on (Hsu et al. 2019, arXiv:1909.06335)."""

    def optimize(step: Tensor, state: dict[str, Tensor]) -> Tensor:
        state["velocity"] = beta * state.get("velocity", torch.zeros_like(step)) + step
        return learning_rate * state["velocity"]

    return optimize


def adam(
    learning_rate: float, *, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> ServerOptimizer:
    """FedAdam: Adam at the server, with the clients' mean update in place of a gradient.

    Reddi et al. 2021, arXiv:2003.00295, with the correction of the first rounds (Kingma and Ba
    2015) that they leave out; it counts one round more than were played, as Flower does. ``tau``
    keeps places with tiny updates from large steps.
    """

    def optimize(step: Tensor, state: dict[str, Tensor]) -> Tensor:
        zero = torch.zeros_like(step)
        state["rounds"] = state.get("rounds", torch.zeros((), dtype=step.dtype)) + 1
        state["mean"] = beta1 * state.get("mean", zero) + (1 - beta1) * step
        state["square"] = beta2 * state.get("square", zero) + (1 - beta2) * step**2
        t = float(state["rounds"]) + 1
        rate = learning_rate * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        return rate * state["mean"] / (state["square"].sqrt() + tau)

    return optimize


def accept(
    answers: Mapping[str, Weights | None], sent: Weights
) -> tuple[list[str], Tensor, dict[str, str]]:
    """Let in only what can be averaged: the shapes that were sent, and finite numbers.

    Args:
        answers: client's name -> its new weights, or None if it did not answer.
        sent: the weights that all clients started from.

    Returns:
        The names of the clients let in, their updates ``(m, P)`` in that order, and for every
        other client by name the reason.
    """
    start, names, rows, refused = to_vector(sent), list[str](), list[Tensor](), dict[str, str]()
    for name, answer in answers.items():
        if answer is None:
            refused[name] = "no answer"
        elif answer.keys() != sent.keys():
            refused[name] = f"weights named {sorted(answer)}, not {sorted(sent)}"
        elif wrong := [key for key in sent if answer[key].shape != sent[key].shape]:
            got, takes = tuple(answer[wrong[0]].shape), tuple(sent[wrong[0]].shape)
            refused[name] = f"{wrong[0]} has shape {got}, not {takes}"
        elif not torch.isfinite(vector := to_vector({key: answer[key] for key in sent})).all():
            bad = int((~torch.isfinite(vector)).sum())
            refused[name] = f"{bad:,} of {len(vector):,} weights are NaN or infinite"
        else:
            names.append(name)
            rows.append(vector - start)
    return names, torch.stack(rows) if rows else start.new_empty(0, len(start)), refused
