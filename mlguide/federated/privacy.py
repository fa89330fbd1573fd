"""Differential privacy: clip each client's update, add noise to the sum, and count what leaks.

What is protected is a *client* with all its examples: whether it took part must hardly be seen in
the model. ``clipped_mean`` bounds what one client can do, ``gaussian_noise`` drowns it, and
``epsilon`` says how well, for rounds to which each client is called by its own coin.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mlguide.federated.aggregation import Aggregator, ServerOptimizer

__all__ = [
    "ORDERS",
    "clip",
    "clipped_mean",
    "epsilon",
    "gaussian_noise",
    "private_rounds",
    "sampled_gaussian_rdp",
]

ORDERS = (*(k / 10 for k in range(11, 110)), *range(11, 64), 128, 256, 512, 1024)
"""Orders of the Renyi divergence among which ``epsilon`` takes the best, as dp-accounting does."""


def clip(updates: Tensor, norm: float) -> Tensor:
    """Updates ``(m, P)``, each shortened to length ``norm`` where it is longer."""
    length = torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    return updates * (norm / length.clamp(min=1e-30)).clamp(max=1)


def clipped_mean(norm: float, expected_clients: float) -> Aggregator:
    """The sum of clipped updates, divided by the number of clients that a round has on average.

    So one client, there or not, moves the result by ``norm`` / ``expected_clients`` at most. The
    number that came would be another number without it, and clients' sizes are secrets of theirs
    too: neither is used (McMahan et al. 2018, arXiv:1710.06963).

    Raises:
        ValueError: if ``norm`` or ``expected_clients`` is not above 0.
    """
    if not norm > 0 or not expected_clients > 0:
        raise ValueError(
            f"norm and expected_clients must be above 0, got {norm} and {expected_clients}"
        )

    def aggregate(updates: Tensor, weights: Tensor) -> Tensor:
        return clip(updates, norm).sum(0) / expected_clients

    return aggregate


def gaussian_noise(deviation: float, seed: int) -> ServerOptimizer:
    """Adds normal noise of this standard deviation to each number of the server's step.

    Noise depends on the seed and on how many steps had noise before, a number that the federation
    saves: a run that was stopped and taken up again draws what the whole run draws. A seed that
    others can guess protects nobody, and a production system draws from a secure source.

    Raises:
        ValueError: if ``deviation`` is negative or not finite.
    """
    if not 0 <= deviation < math.inf:
        raise ValueError(f"deviation must be at least 0 and finite, got {deviation}")

    def optimize(step: Tensor, state: dict[str, Tensor]) -> Tensor:
        state["noised"] = state.get("noised", torch.zeros((), dtype=torch.int64)) + 1
        name = f"noise {seed} {int(state['noised'])}"  # hashed: near no seed that draws clients
        drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        noise = torch.empty_like(step).normal_(generator=torch.Generator().manual_seed(drawn))
        return step + deviation * noise

    return optimize


def private_rounds(
    *, clip_norm: float, noise_multiplier: float, per_round: int, seed: int
) -> dict[str, Any]:
    """The settings that make a ``Federation`` private, all of them: ``Federation(..., **these)``.

    ``noise_multiplier`` is the noise on the *sum* in multiples of ``clip_norm``, what the sum may
    change by one client; ``per_round`` clients come on average, each by its own coin (DP-FedAvg,
    McMahan et al. 2018).

    Raises:
        ValueError: if a number is not above 0 (noise: at least 0).
    """
    return {
        "poisson": True,
        "per_round": per_round,
        "aggregate": clipped_mean(clip_norm, per_round),
        "server": gaussian_noise(noise_multiplier * clip_norm / per_round, seed),
    }


@cache
def sampled_gaussian_rdp(rate: float, noise_multiplier: float, order: float) -> float:
    """What one round can tell of a client: the Renyi divergence of order ``order`` > 1.

    The sum, in multiples of the clip, is normal noise around 0; with the client it is so with
    probability 1 - ``rate``, and around 1 with probability ``rate`` (Mironov, Talwar and Zhang
    2019, arXiv:1908.10530, whose integral A is computed here for any order).
    """
    q, z = rate, noise_multiplier
    x = np.arange(-20 * z, order + 20 * z, z / 20)  # all sums that matter, finely
    log_without = -(x**2) / (2 * z**2) - math.log(z * math.sqrt(2 * math.pi))
    log_there = math.log(q) + (2 * x - 1) / (2 * z**2)
    log_ratio = np.logaddexp(math.log1p(-q), log_there) if q < 1 else log_there
    logs = log_without + order * log_ratio + math.log(z / 20)
    most = logs.max()
    return float(most + math.log(np.exp(logs - most).sum())) / (order - 1)


def epsilon(
    rate: float,
    noise_multiplier: float,
    rounds: int,
    delta: float,
    *,
    conversion: Literal["tight", "2016"] = "tight",
    orders: Sequence[float] = ORDERS,
) -> float:
    """What all rounds together can tell of a client: (epsilon, ``delta``)-differential privacy.

    Rounds add up; the best order counts. Holds for Poisson sampling, where each client is asked by
    its own coin of ``rate``, for neighbours that differ by one client there or not.

    Args:
        rate: each client's chance to be asked in a round. orders: among which to look, above 1.
        conversion: from Renyi to epsilon: "2016" is that of the moments accountant (Abadi et al.
            2016, arXiv:1607.00133), "tight" that of Canonne et al. 2020 (arXiv:2004.00010).

    Raises:
        ValueError: if a number is out of range.
    """
    if not 0 < rate <= 1 or not noise_multiplier > 0 or rounds < 1 or not 0 < delta < 1:
        raise ValueError(
            "rate must be in (0, 1], noise_multiplier above 0, rounds at least 1, delta in (0, 1); "
            f"got {rate}, {noise_multiplier}, {rounds} and {delta}"
        )
    found: list[float] = []
    for order in orders:
        bound = rounds * sampled_gaussian_rdp(rate, noise_multiplier, order)
        bound -= math.log(delta) / (order - 1)
        if conversion == "tight":
            bound += math.log1p(-1 / order) - math.log(order) / (order - 1)
        found.append(bound)
    return max(0.0, min(found))
