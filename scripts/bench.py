"""Print the speed ratios that the book speaks of, each from two runs side by side: `make bench`.

A ratio of two times from one machine and one moment means more than either time. Each pair is run
five times in turn; the middle ratio is printed, with the smallest and the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from mlguide import data, experiments, training, transfer
from mlguide.models import EfficientNet, SmallCNN


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, slow: Callable[[], object], fast: Callable[[], object]) -> None:
    slow(), fast()  # the first run of anything is the time to load it
    ratios = sorted(seconds(slow) / seconds(fast) for _ in range(5))
    print(f"{name:62} {ratios[2]:6.1f}x   ({ratios[0]:.1f}x to {ratios[-1]:.1f}x)", flush=True)


def head_on(backbone: torch.nn.Module, head: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(transfer.freeze(backbone), head)


def cached_features(
    name: str,
    model: SmallCNN | EfficientNet,
    images: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
) -> None:
    """Train a head through the frozen network, and on features that were computed once."""
    settings = {"steps": steps, "learning_rate": 0.01}

    def recomputed() -> None:
        generator = torch.Generator().manual_seed(0)
        training.fit(
            head_on(model.backbone, model.head), images, labels, generator=generator, **settings
        )  # noqa: E501

    def cached() -> None:
        generator = torch.Generator().manual_seed(0)
        features = transfer.extract_features(model.backbone, images)
        training.fit(model.head, features, labels, generator=generator, **settings)

    compare(name, recomputed, cached)


def seeds_at_once(per_class: int) -> None:
    """Train ten networks from scratch, one after the other and all at once."""
    few = data.few_labels(data.wardrobe()[0], per_class, torch.Generator().manual_seed(0))
    images, labels = few.images.expand(10, *few.images.shape), few.labels.expand(10, -1)

    def networks() -> list[SmallCNN]:
        return [SmallCNN(10, seed=seed) for seed in range(10)]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(10)]

    def in_turn() -> None:
        for model, x, y, g in zip(networks(), images, labels, generators(), strict=True):
            training.fit(model, x, y, steps=50, learning_rate=0.01, generator=g)

    def at_once() -> None:
        experiments.fit_many(
            networks(), images, labels, steps=50, learning_rate=0.01, generators=generators()
        )

    name = f"ten seeds in turn / at once, batches of {min(32, 10 * per_class)}"
    compare(name, in_turn, at_once)


def main() -> None:
    few = data.few_labels(data.wardrobe()[0], 50, torch.Generator().manual_seed(0))
    small = SmallCNN(10, seed=0)
    for steps in (50, 500):
        name = f"features recomputed / cached, small network, {steps} steps"
        cached_features(name, small, few.images, few.labels, steps)
    photos = data.photographs()
    name = "features recomputed / cached, EfficientNet at 128 px, 25 steps"
    cached_features(name, EfficientNet(4, seed=0), photos.images, photos.labels, 25)
    for per_class in (1, 20):
        seeds_at_once(per_class)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, numpy {np.__version__}")


if __name__ == "__main__":
    main()
