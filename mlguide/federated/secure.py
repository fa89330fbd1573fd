"""Sums that nobody can look behind: masks hide each client's update and cancel in the sum.

Secure aggregation after Bonawitz et al. 2017 (eprint 2017/281), in small. Two clients share a
seed; one adds the numbers that it gives, the other subtracts them. All is reckoned in whole numbers
modulo 2**32, where a mask hides completely and cancels exactly. This is teaching code: a dealer
hands the seeds out, where real clients agree on them by Diffie-Hellman, sign what they send, and
refuse a server that asks for too much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "MODULUS",
    "Keys",
    "deal_keys",
    "join_shares",
    "mask_stream",
    "mask_update",
    "quantise",
    "split_secret",
    "to_signed",
    "unmask_sum",
]

MODULUS = 2**32  # four bytes for each number, as many as a float32 takes
SEED_BYTES = 32
PRIME = 2**521 - 1  # the field in which secrets are split: larger than any seed


def quantise(values: Tensor, quantum: float, clients: int) -> Tensor:
    """Values ``(P,)`` as whole multiples of ``quantum``, int64 from 0 to 2**32 - 1.

    Negative ones wrap around, as in a processor's own integers: -1 is 2**32 - 1.

    Raises:
        ValueError: if a value is not finite, or so large that the sum of as many ``clients`` might
            not fit, or ``quantum`` is not above 0.
    """
    if not quantum > 0:
        raise ValueError(f"quantum must be above 0, got {quantum}")
    if not values.isfinite().all():
        raise ValueError("values must be finite, got NaN or infinity")
    whole = (values.double() / quantum).round()
    most, largest = (MODULUS // 2 - 1) // clients, float(whole.abs().max())
    if largest > most:
        raise ValueError(
            f"values must lie within {most * quantum:.4g}, so that a sum of {clients} clients fits "
            f"into 32 bits with a quantum of {quantum:.4g}; got {largest * quantum:.4g}"
        )
    return whole.long() % MODULUS


def to_signed(residues: Tensor) -> Tensor:
    """Whole numbers modulo 2**32 as the numbers from -2**31 to 2**31 - 1 that they stand for."""
    return (residues + MODULUS // 2) % MODULUS - MODULUS // 2


def mask_stream(seed: bytes, round: int, length: int) -> Tensor:
    """Numbers ``(length,)``, int64 from 0 to 2**32 - 1, that nobody can guess without the seed.

    SHAKE-256 (FIPS 202) stretches the seed to any length. The round goes in too: a mask that is
    used twice cancels in the difference of two messages, and hides it no longer.

    Raises:
        ValueError: if ``seed`` has not 32 bytes.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"seed must have {SEED_BYTES} bytes, got {len(seed)}")
    stream = hashlib.shake_256(seed + round.to_bytes(8, "big")).digest(4 * length)
    return torch.from_numpy(np.frombuffer(stream, dtype="<u4").astype(np.int64))


@dataclass(frozen=True)
class Keys:
    """The secrets of one client: a seed with each other client, and one that is all its own."""

    client: int
    pairs: dict[int, bytes]
    own: bytes


def deal_keys(clients: Sequence[int], secret: bytes) -> dict[int, Keys]:
    """Keys for these clients, all drawn from one secret: the dealer that a real fleet has not.

    Raises:
        ValueError: if there are fewer than 2 clients, or one comes twice.
    """
    if len(set(clients)) != len(clients) or len(clients) < 2:
        raise ValueError(f"clients must be at least 2, each once; got {list(clients)}")

    def seed(*who: int) -> bytes:
        return hashlib.shake_256(repr((secret, sorted(who))).encode()).digest(SEED_BYTES)

    return {me: Keys(me, {o: seed(me, o) for o in clients if o != me}, seed(me)) for me in clients}


def mask_update(update: Tensor, keys: Keys, *, round: int, quantum: float) -> Tensor:
    """What a client sends in place of its update ``(P,)``: int64 modulo 2**32, four bytes each.

    Raises:
        ValueError: as ``quantise`` does.
    """
    sent = quantise(update, quantum, 1 + len(keys.pairs))
    sent = sent + mask_stream(keys.own, round, len(update))
    for other, seed in keys.pairs.items():
        sent += _sign(keys.client, other) * mask_stream(seed, round, len(update))
    return sent % MODULUS


def unmask_sum(
    masked: Mapping[int, Tensor],
    asked: Sequence[int],
    own: Mapping[int, bytes],
    pairs: Mapping[tuple[int, int], bytes],
    *,
    round: int,
    quantum: float,
) -> Tensor:
    """The sum ``(P,)``, float64, of the updates of all clients that answered.

    Args:
        masked: client -> what it sent. asked: all that were asked, and so masked for one another.
        own: client that answered -> its own seed.
        pairs: (client that answered, client that did not) -> the seed that they share.

    Raises:
        ValueError: naming the seeds that are missing, or that nobody may hand out: of one client
            the server gets its own seed or those it shares, never both.
    """
    lost = [client for client in asked if client not in masked]
    needed = {(here, gone) for here in masked for gone in lost}
    for name, got, takes in (("own", own.keys(), masked.keys()), ("pairs", pairs.keys(), needed)):
        if missing := sorted(takes - got):
            raise ValueError(f"{name} lacks the seeds of {missing}: nothing can be read")
        if extra := sorted(got - takes):
            raise ValueError(f"{name} must stay secret for {extra}")
    total = torch.stack(list(masked.values())).sum(0)
    for seed in own.values():
        total -= mask_stream(seed, round, len(total))
    for (here, gone), seed in pairs.items():
        total -= _sign(here, gone) * mask_stream(seed, round, len(total))
    return to_signed(total % MODULUS).double() * quantum


def split_secret(secret: bytes, people: int, needed: int, entropy: bytes) -> dict[int, int]:
    """Shares 1 to ``people`` of a seed: any ``needed`` of them give it back, fewer tell nothing.

    Points on a polynomial of degree ``needed`` - 1 whose value at 0 is the secret (Shamir 1979).

    Raises:
        ValueError: if ``needed`` is not 1 to ``people``, or the secret has not 32 bytes.
    """
    if not 1 <= needed <= people or len(secret) != SEED_BYTES:
        raise ValueError(
            f"needed must be 1 to {people} and secret {SEED_BYTES} bytes; "
            f"got {needed} and {len(secret)}"
        )
    drawn = (hashlib.shake_256(entropy + k.to_bytes(4, "big")).digest(80) for k in range(1, needed))
    coefficients = [int.from_bytes(part, "big") % PRIME for part in (secret, *drawn)]
    return {
        x: sum(c * x**k for k, c in enumerate(coefficients)) % PRIME for x in range(1, people + 1)
    }


def join_shares(shares: Mapping[int, int]) -> bytes:
    """The secret of which these are shares: the value at 0 of the polynomial through them.

    Raises:
        ValueError: if they give no seed, as too few shares (almost surely) do not.
    """
    total = 0
    for x, y in shares.items():
        for other in shares:
            if other != x:
                y = y * other * pow(other - x, -1, PRIME) % PRIME
        total += y
    if (secret := total % PRIME) >= 256**SEED_BYTES:
        raise ValueError(f"shares {sorted(shares)} give no seed: too few, or altered")
    return secret.to_bytes(SEED_BYTES, "big")


def _sign(client: int, other: int) -> int:
    """The one with the lower number adds a shared mask, the other subtracts it."""
    return 1 if client < other else -1
