"""Print the speed ratios that the book speaks of, each from two runs side by side: `make bench`.

A ratio of two times from one machine and one moment means more than either time. Each pair is run
five times in turn; the middle ratio is printed, with the smallest and the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from mlguide import data, experiments, training, transfer
from mlguide.federated.client import draw_batches, to_vector, trained_weights
from mlguide.federated.simulation import Engine, train_clients
from mlguide.models import MLP, EfficientNet, SmallCNN


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
        whole = head_on(model.backbone, model.head)
        training.fit(whole, images, labels, generator=generator, **settings)

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


def gemm_peak() -> float:
    """The most operations a second that one thread reaches in a large matrix product."""
    a, b = torch.rand(2, 1024, 1024)
    return 2 * 1024**3 / min(seconds(lambda: a @ b) for _ in range(20))


def federated_round(
    name: str, sizes: list[int], clients: int, examples: int, repeats: int = 5
) -> None:
    """One round of local training, batches of 10, by each engine: the same work and batches."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(clients, examples, sizes[0], generator=generator)
    labels = torch.randint(0, sizes[-1], (clients, examples), generator=generator)
    model = MLP(sizes[0], sizes[1:-1], sizes[-1], seed=0)
    batches = draw_batches([examples] * clients, 10, 1, generator)
    start = trained_weights(model)

    def play(engine: Engine) -> None:
        train_clients(model, start, inputs, labels, batches, learning_rate=0.1, engine=engine)

    def exact(engine: Engine) -> torch.Tensor:
        """The weights of the first ten clients, in float64: in float32 a ReLU may tip over."""
        new = train_clients(
            model, {n: w.double() for n, w in start.items()}, inputs[:10].double(), labels[:10],
            batches[:10], learning_rate=0.1, engine=engine,
        )  # fmt: skip
        return to_vector(new, stacked=True)

    products = [a * b for a, b in pairwise(sizes)]
    # Of each product two operations forwards, and four backwards but two for the first layer,
    # whose inputs need no gradient.
    operations = (6 * sum(products) - 2 * products[0]) * clients * examples
    engines: tuple[Engine, ...] = ("loop", "stacked", "fused")
    ends = {engine: exact(engine) for engine in engines}
    for engine in engines:
        play(engine)  # the first run of anything is the time to load it
    times: dict[Engine, list[float]] = {engine: [] for engine in engines}
    for _ in range(repeats):
        for engine in engines:
            times[engine].append(seconds(lambda engine=engine: play(engine)))
    peak = gemm_peak()
    print(f"a federated round: {name}")
    for engine in engines:
        middle = sorted(times[engine])[repeats // 2]
        ratios = sorted(a / b for a, b in zip(times["loop"], times[engine], strict=True))
        print(
            f"  {engine:8} {1 / middle:8.2f} rounds/s {ratios[repeats // 2]:6.1f}x the loop "
            f"({ratios[0]:.1f}x to {ratios[-1]:.1f}x)   {operations / middle / peak:4.0%} of GEMM "
            f"peak   weights differ by {(ends[engine] - ends['loop']).abs().max():.1e}",
            flush=True,
        )


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
    federated_round("64-32-10, 100 clients with 17 examples", [64, 32, 10], 100, 17, repeats=15)
    mcmahan = [784, 200, 200, 10]
    federated_round("784-200-200-10 (McMahan's 2NN), 10 clients with 600", mcmahan, 10, 600)
    federated_round("784-200-200-10 (McMahan's 2NN), 100 clients with 600", mcmahan, 100, 600, 3)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, numpy {np.__version__}")


if __name__ == "__main__":
    main()
