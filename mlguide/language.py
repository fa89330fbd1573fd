"""Text, one character at a time: cut it for training, measure a model on it, let a model write.

A language model here is a ``models.CharTransformer``: its scores at each place of a text say what
the next character may be.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mlguide.data import decode, encode
from mlguide.models import CharTransformer

__all__ = ["LEARNED", "UNSEEN", "bits_per_character", "generate", "next_character_loss", "windows"]

UNSEEN = "comedies"
"""The genre of ``data.shakespeare`` that the bundled model has learned nothing from."""

LEARNED = 0.9
"""How much of each role of the other genres it has learned from: the first part of ``data.cut``."""


def windows(ids: Tensor, size: int, *, stride: int | None = None) -> tuple[Tensor, Tensor]:
    """A text as examples: inputs and labels, both ``(N, size)`` int64, the labels one place later.

    A window begins every ``stride`` characters, by default where the one before ends; what does
    not fill a last window is left out. With a stride of less than ``size`` windows overlap, so cut
    the text (``data.cut``) *before* this, never the windows after.

    Raises:
        ValueError: if ``ids`` are not ``(length,)`` int64 or too few for one window, or ``size``
            or ``stride`` is less than 1.
    """
    stride = size if stride is None else stride
    for name, value in (("size", size), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    _check_text(ids, size + 1)
    pieces = ids.unfold(0, size + 1, stride)
    return pieces[:, :-1], pieces[:, 1:]


def next_character_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of ``training.fit`` for ``windows``: every place of every window is an example.

    Args:
        scores: ``(N, T, alphabet)``. labels: ``(N, T)`` int64.
    """
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten())


@torch.no_grad()
def bits_per_character(model: CharTransformer, ids: Tensor) -> float:
    """What ``model`` needs to tell each character of a text, in bits: less is better.

    The mean of -log2 of the probability that it gives to the true next character, over all of
    ``ids`` ``(length,)`` but the first. Knowing nothing is log2 of the alphabet, 6 bits. The text
    is read in windows of the model's context that overlap by half, and only what a window has new
    is counted: so each character counts once, and all but the first few are told from at least
    half a context of what comes before.

    Raises:
        ValueError: if ``ids`` are not ``(length,)`` int64 of at least two characters.
    """
    _check_text(ids, 2)
    n = len(ids) - 1
    size = min(model.context, n)
    step = max(size // 2, 1)
    # Filled up to whole windows; what is filled in comes last, so it changes no score before it.
    filled = F.pad(ids, (0, (size - n) % step))
    inputs, labels = windows(filled, size, stride=step)
    was_training = model.training
    model.eval()
    scores = torch.cat([model(part).transpose(1, 2) for part in inputs.split(64)])
    model.train(was_training)
    losses = F.cross_entropy(scores, labels, reduction="none")
    told = torch.cat([losses[0], losses[1:, -step:].flatten()])[:n]
    return told.double().mean().item() / math.log(2)


@torch.no_grad()
def generate(
    model: CharTransformer,
    prompt: str,
    length: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
) -> str:
    """``length`` characters that ``model`` writes after ``prompt``, which is not repeated.

    Each is drawn by the model's probabilities, from at most its context of what comes before.
    Below 1, ``temperature`` makes likely characters likelier; 0 always takes the likeliest.

    Raises:
        ValueError: if the prompt has no character of the alphabet, or ``length`` or
            ``temperature`` is negative.
    """
    ids = encode(prompt)
    if len(ids) == 0:
        raise ValueError(f"prompt must have a character of the alphabet; got {prompt!r}")
    if length < 0 or not temperature >= 0:
        raise ValueError(
            f"length and temperature must be at least 0; got {length} and {temperature}"
        )
    was_training = model.training
    model.eval()
    for _ in range(length):
        scores = model(ids[None, -model.context :])[0, -1]
        if temperature == 0:
            drawn = scores.argmax()[None]
        else:
            drawn = torch.multinomial((scores / temperature).softmax(0), 1, generator=generator)
        ids = torch.cat([ids, drawn])
    model.train(was_training)
    return decode(ids[len(ids) - length :])


def _check_text(ids: Tensor, least: int) -> None:
    if ids.ndim != 1 or ids.dtype != torch.int64 or len(ids) < least:
        raise ValueError(
            f"ids must be int64 of shape (length,), at least {least} characters; "
            f"got {ids.dtype} of shape {tuple(ids.shape)}"
        )
