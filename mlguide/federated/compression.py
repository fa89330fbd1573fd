"""Fewer bytes on the way up: what a small device sends in place of its whole update.

A *codec* turns one update ``(P,)`` into the bytes that a device would send, and back; nothing else
reaches the server, so the length of these bytes is what the upload costs. An ``Uplink`` does so for
all clients of a round and is what ``Federation(uplink=...)`` takes. Numbers travel in the machine's
own byte order, which on phones and servers of today is little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlguide.federated.client import to_vector, to_weights

__all__ = ["Codec", "LowRank", "Quantised", "Sign", "TopK", "Uplink", "Whole"]


class Codec(Protocol):
    """``decode(encode(update), len(update))`` is what the server sees of ``update`` ``(P,)``."""

    def encode(self, update: Tensor) -> bytes:
        """What a device sends, for an update of finite numbers."""
        ...

    def decode(self, message: bytes, size: int) -> Tensor:
        """The update ``(size,)`` that the server reads in it."""
        ...


class Whole:
    """No compression: four bytes for each number."""

    def encode(self, update: Tensor) -> bytes:
        return _floats(update)

    def decode(self, message: bytes, size: int) -> Tensor:
        return _read(message, size)


class Quantised:
    """A few bits for each number: its place on an even scale from -end to +end.

    QSGD (Alistarh et al. 2017, arXiv:1610.02132): every ``bucket`` numbers have their own scale,
    whose end is sent as a float. Between two marks of the scale the ``generator`` throws a weighted
    coin, so that the mean over many throws is the number itself: *unbiased*. Without a generator a
    number goes to the nearer mark, which is biased.

    Args:
        bits: 8, 4 or 2, for 255, 15 or 3 marks.
        end: of the scale, the "largest" of a bucket's numbers, as the paper runs it, or the
            "length" of its vector, as the paper's theorem has it.

    Raises:
        ValueError: if ``bits`` or ``end`` is another, or ``bucket`` is less than 1.
    """

    def __init__(
        self,
        bits: int,
        generator: torch.Generator | None,
        *,
        bucket: int = 512,
        end: Literal["largest", "length"] = "largest",
    ) -> None:
        if bits not in (2, 4, 8) or end not in ("largest", "length"):
            raise ValueError(
                f"bits must be 2, 4 or 8, end 'largest' or 'length'; got {bits} and {end!r}"
            )
        if bucket < 1:
            raise ValueError(f"bucket must be at least 1, got {bucket}")
        self.bits, self.generator, self.bucket, self.end = bits, generator, bucket, end
        self.marks = 2 ** (bits - 1) - 1  # on either side of zero

    def encode(self, update: Tensor) -> bytes:
        """``ceil(P / bucket)`` floats, then ``bits`` for each number."""
        _check_finite(update)
        rows = _in_buckets(update, self.bucket)
        order = torch.inf if self.end == "largest" else 2
        scales = torch.linalg.vector_norm(rows, order, dim=1, keepdim=True)
        places = rows / scales.clamp(min=torch.finfo(rows.dtype).tiny) * self.marks
        if self.generator is None:
            places = places.round()
        else:
            coins = torch.rand(places.shape, generator=self.generator, dtype=places.dtype)
            places = (places + coins).floor().clamp(max=self.marks)
        codes = (places + self.marks).flatten()[: len(update)].to(torch.uint8).numpy()
        return _floats(scales) + _pack(codes, self.bits)

    def decode(self, message: bytes, size: int) -> Tensor:
        scales = _read(message, -(-size // self.bucket))
        codes = torch.from_numpy(_unpack(message[4 * len(scales) :], self.bits)[:size])
        rows = _in_buckets(codes.float() - self.marks, self.bucket)
        return (rows / self.marks * scales[:, None]).flatten()[:size]


class Sign:
    """One bit for each number, its sign, and one scale for every ``bucket``: the mean size.

    signSGD (Bernstein et al. 2018, arXiv:1802.04434), scaled as Karimireddy et al. 2019
    (arXiv:1901.09847) do, who also show that it needs error feedback.

    Raises:
        ValueError: if ``bucket`` is less than 1.
    """

    def __init__(self, *, bucket: int = 512) -> None:
        if bucket < 1:
            raise ValueError(f"bucket must be at least 1, got {bucket}")
        self.bucket = bucket

    def encode(self, update: Tensor) -> bytes:
        """``ceil(P / bucket)`` floats, then a bit for each number."""
        _check_finite(update)
        rows = _in_buckets(update, self.bucket)
        filled = torch.full((len(rows),), float(self.bucket), dtype=rows.dtype)
        filled[-1] = len(update) - self.bucket * (len(rows) - 1)
        signs = _pack((update >= 0).to(torch.uint8).numpy(), 1)
        return _floats(rows.abs().sum(1) / filled) + signs

    def decode(self, message: bytes, size: int) -> Tensor:
        scales = _read(message, -(-size // self.bucket))
        signs = torch.from_numpy(_unpack(message[4 * len(scales) :], 1)[:size]).float() * 2 - 1
        return (_in_buckets(signs, self.bucket) * scales[:, None]).flatten()[:size]


class TopK:
    """Only the ``keep`` numbers farthest from zero, with their places; zero for the others.

    Deep gradient compression (Lin et al. 2018, arXiv:1712.01887); that it converges with error
    feedback show Stich et al. 2018 (arXiv:1809.07599).

    Raises:
        ValueError: if ``keep`` is less than 1; when encoding, if there are not as many numbers.
    """

    def __init__(self, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.keep = keep

    def encode(self, update: Tensor) -> bytes:
        """``keep`` floats, then ``keep`` places of 2 bytes each, or 4 if 65,536 are not enough."""
        _check_finite(update)
        if self.keep > len(update):
            raise ValueError(f"keep must be at most {len(update)} here, got {self.keep}")
        places = update.abs().topk(self.keep).indices.sort().values
        return _floats(update[places]) + places.numpy().astype(_place(len(update))).tobytes()

    def decode(self, message: bytes, size: int) -> Tensor:
        places = np.frombuffer(message, _place(size), offset=4 * self.keep)
        update = torch.zeros(size)
        update[torch.from_numpy(places.astype(np.int64))] = _read(message, self.keep)
        return update


class LowRank:
    """Each matrix of the update as a product of a tall and a wide one, of ``rank`` between them.

    The best product of that rank, which the singular value decomposition gives; PowerSGD (Vogels et
    al. 2019, arXiv:1905.13727) comes near it at less cost. Biases, and matrices that would not get
    smaller, go whole.

    Args:
        like: the weights that the update changes, by name, which tell where a matrix lies in it.

    Raises:
        ValueError: if ``rank`` is less than 1; when encoding, if the update has another size.
    """

    def __init__(self, rank: int, like: Mapping[str, Tensor]) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank, self.like = rank, {name: w.detach() for name, w in like.items()}

    def encode(self, update: Tensor) -> bytes:
        """For a matrix ``(a, b)``, ``rank`` x (a + b) floats; for others all their numbers."""
        _check_finite(update)
        message = b""
        for part in to_weights(update, self.like).values():
            if self._shrinks(part):
                u, s, v = torch.linalg.svd(part.flatten(1), full_matrices=False)
                message += _floats(u[:, : self.rank] * s[: self.rank]) + _floats(v[: self.rank])
            else:
                message += _floats(part)
        return message

    def decode(self, message: bytes, size: int) -> Tensor:
        parts: dict[str, Tensor] = {}
        at = 0
        numbers = _read(message, len(message) // 4)
        for name, w in self.like.items():
            if self._shrinks(w):
                a, b = w.flatten(1).shape
                tall, wide = numbers[at:].split([a * self.rank, len(numbers[at:]) - a * self.rank])
                product = tall.view(a, self.rank) @ wide[: b * self.rank].view(self.rank, b)
                parts[name], used = product, (a + b) * self.rank
            else:
                parts[name], used = numbers[at : at + w.numel()], w.numel()
            at += used
        return to_vector(parts)

    def _shrinks(self, part: Tensor) -> bool:
        return part.ndim > 1 and self.rank * sum(part.flatten(1).shape) < part.numel()


class Uplink:
    """What lies between clients and server: each update is encoded, counted, sent and decoded.

    With ``feedback`` each client keeps what the bytes could not say and adds it to its next update
    (*error feedback*, Seide et al. 2014): nothing is lost, only late. It is meant for codecs that
    leave less behind than there was; ``Quantised`` with a generator may leave more.

    An update that is not finite goes on as it is, for the server to refuse, and is not remembered.

    The memory belongs to this object, as on a phone it belongs to the phone. ``Federation.save``
    does not hold it: to take up a run, keep ``memory``, and the state of a codec's generator, too.
    A federation wants an uplink of its own.
    """

    def __init__(self, codec: Codec, *, feedback: bool = False) -> None:
        self.codec, self.feedback = codec, feedback
        self.memory: dict[int, Tensor] = {}  # client -> what is still to be said (P,)
        self.messages, self.bytes_sent = 0, 0

    def __call__(self, updates: Tensor, clients: Tensor) -> Tensor:
        """Updates ``(m, P)`` as they arrive, for those of ``clients`` ``(m,)``, by number."""
        arrived = updates.clone()
        for row, client in enumerate(clients.tolist()):
            wanted = updates[row] + self.memory[client] if client in self.memory else updates[row]
            if not wanted.isfinite().all():
                continue
            message = self.codec.encode(wanted)
            self.messages += 1
            self.bytes_sent += len(message)
            arrived[row] = self.codec.decode(message, updates.shape[1])
            if self.feedback:
                self.memory[client] = wanted - arrived[row]
        return arrived


def _floats(numbers: Tensor) -> bytes:
    return numbers.detach().float().contiguous().numpy().tobytes()


def _read(message: bytes, count: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(message, np.float32, count=count).copy())


def _pack(codes: npt.NDArray[np.uint8], bits: int) -> bytes:
    """Codes of ``bits`` each (1, 2, 4 or 8), side by side in bytes, the last filled up."""
    rows = np.pad(codes, (0, -len(codes) % (8 // bits))).reshape(-1, 8 // bits)
    packed = rows[:, 0].copy()
    for column in rows.T[1:]:
        packed = packed << bits | column
    return packed.tobytes()


def _unpack(packed: bytes, bits: int) -> npt.NDArray[np.uint8]:
    """The way back; what filled up the last byte comes as codes too."""
    whole = np.frombuffer(packed, np.uint8)
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (whole[:, None] >> shifts & (2**bits - 1)).flatten()


def _place(size: int) -> npt.DTypeLike:
    """The smallest whole number that can tell ``size`` places apart, of 2 or 4 bytes."""
    return np.uint16 if size <= 2**16 else np.uint32


def _in_buckets(numbers: Tensor, bucket: int) -> Tensor:
    """``(P,)`` as rows of ``bucket``, the last filled up with zeros."""
    return torch.nn.functional.pad(numbers, (0, -len(numbers) % bucket)).view(-1, bucket)


def _check_finite(update: Tensor) -> None:
    if not update.isfinite().all():
        raise ValueError(
            f"update must be finite, got {int((~update.isfinite()).sum())} NaN or infinite numbers"
        )
