"""Deal examples to clients: at random, by shards of sorted labels, or by a Dirichlet draw.

Each function returns one tensor of indices for each client, int64; no example goes to two clients.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dirichlet", "iid", "shards"]


def iid(examples: int, clients: int, generator: torch.Generator) -> list[Tensor]:
    """``examples`` dealt at random, to each client as many (one more to some if it must be).

    Raises:
        ValueError: if there is not an example for each client.
    """
    _check(examples, clients)
    return list(torch.randperm(examples, generator=generator).tensor_split(clients))


def shards(
    labels: Tensor, clients: int, generator: torch.Generator, *, per_client: int = 2
) -> list[Tensor]:
    """Sorted by label and cut into equal shards, of which each client gets ``per_client``.

    So most clients know ``per_client`` classes only (McMahan et al. 2017, arXiv:1602.05629). What
    does not fill the last shards is left out.

    Args:
        labels: ``(N,)`` int64.

    Raises:
        ValueError: if there is not an example for each shard.
    """
    count = clients * per_client
    _check(len(labels), clients)
    _check(len(labels), count, "shards")
    mixed = torch.randperm(len(labels), generator=generator)  # which of a class, is left to chance
    ordered = mixed[labels[mixed].argsort(stable=True)]
    pieces = ordered[: len(labels) // count * count].view(count, -1)
    dealt = torch.randperm(count, generator=generator).view(clients, per_client)
    return [pieces[mine].flatten() for mine in dealt]


def dirichlet(
    labels: Tensor, clients: int, alpha: float, generator: torch.Generator
) -> list[Tensor]:
    """As many examples for each client, its mix of classes drawn from a Dirichlet distribution.

    A large ``alpha`` gives every client the mix of all, a small one hardly more than one class.
    Each client draws its mix, then its examples, of the classes that are left (Hsu et al. 2019,
    arXiv:1909.06335). What does not go evenly is left out.

    Args:
        labels: ``(N,)`` int64. alpha: above 0, the sum over the classes, as in Hsu et al.; where
            others give each class an alpha, this is theirs times the number of classes.

    Raises:
        ValueError: if ``alpha`` is not above 0, or there is not an example for each client.
    """
    _check(len(labels), clients)
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    counts = torch.bincount(labels)
    pools = [
        (labels == label).nonzero()[:, 0][torch.randperm(int(count), generator=generator)].tolist()
        for label, count in enumerate(counts)
    ]
    # A Dirichlet draw is a row of Gamma draws made to sum to one. In logarithms, as for a small
    # alpha all of a row may be too small to be told from 0.
    concentration = alpha * counts.double() / len(labels)
    mixes = _log_gamma_draws(concentration.expand(clients, -1), generator)
    mixes = (mixes - mixes.amax(1, keepdim=True)).exp()
    mine: list[Tensor] = []
    for mix in mixes:
        drawn: list[int] = []
        while missing := len(labels) // clients - len(drawn):
            left = torch.tensor([float(len(pool) > 0) for pool in pools], dtype=torch.float64)
            chances = mix * left
            if not chances.sum() > 0:  # all of this client's classes are given away
                chances = left
            wanted = torch.multinomial(chances, missing, replacement=True, generator=generator)
            for label, count in enumerate(torch.bincount(wanted, minlength=len(pools)).tolist()):
                drawn += pools[label][:count]
                del pools[label][:count]
        mine.append(torch.tensor(drawn))
    return mine


def _log_gamma_draws(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Logarithms of Gamma draws of these shapes: Marsaglia and Tsang (2000), boosted by U^(1/a)."""
    d = shape + 1 - 1 / 3
    draws, waiting = torch.zeros_like(d), torch.ones_like(d, dtype=torch.bool)
    while waiting.any():
        normal = torch.randn(d.shape, generator=generator, dtype=d.dtype)
        uniform = torch.rand(d.shape, generator=generator, dtype=d.dtype)
        v = (1 + normal / (9 * d).sqrt()) ** 3
        good = (v > 0) & (uniform.log() < 0.5 * normal**2 + d - d * v + d * v.clamp(1e-300).log())
        draws = torch.where(waiting & good, d * v, draws)
        waiting &= ~good
    return draws.log() + torch.rand(d.shape, generator=generator, dtype=d.dtype).log() / shape


def _check(examples: int, clients: int, what: str = "clients") -> None:
    if not 1 <= clients <= examples:
        raise ValueError(f"{what} must be 1 to {examples}, the number of examples; got {clients}")
