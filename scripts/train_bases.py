"""Train the base models that the notebooks start from, ten seeds of each, into mlguide/bases.

    python scripts/train_bases.py            # all of them, about 20 minutes on one core
    python scripts/train_bases.py mnist      # only those named

A base has seen plenty of a related task: the source garments of a split in some pose (6,000
pictures, a fresh pose each time one is seen), or the ten digits. It learns from training pictures
only. The accuracy that each seed then has on test pictures stands in ``accuracy.csv``; a test
trains one again and compares.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace

import torch
from safetensors.torch import save_file
from torch import Tensor

from mlguide import data
from mlguide.experiments import fit_many
from mlguide.models import BASES, SmallCNN
from mlguide.training import Transform, evaluate

SEEDS = range(10)
RECIPE = {"steps": 1500, "learning_rate": 0.01, "batch_size": 64}
GARMENTS = [("near", pose) for pose in data.POSES] + [("swapped", "any pose"), ("far", "any pose")]
NAMES = [f"{split}, {pose}" for split, pose in GARMENTS] + ["mnist"]


def examples(name: str) -> tuple[data.Pictures, data.Pictures, Transform | None]:
    """Training pictures, test pictures (posed, with a fixed seed) and the transform of a base."""
    if name == "mnist":
        return *data.mnist_digits(), None
    split, pose = name.split(", ")
    degrees, invert = data.POSES[pose]

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        return data.pose(images, generator, degrees, invert).images

    train, test = (part.select(data.GARMENT_SPLITS[split].source) for part in data.wardrobe())
    posed = transform(test.images, torch.Generator().manual_seed(0))
    return train, replace(test, images=posed), transform


def train(name: str, seeds: range) -> tuple[list[SmallCNN], list[float]]:
    """A base for each seed, and its test accuracy."""
    pictures, test, transform = examples(name)
    models = [SmallCNN(len(pictures.classes), seed=seed) for seed in seeds]
    fit_many(
        models,
        pictures.images.expand(len(seeds), *pictures.images.shape),
        pictures.labels.expand(len(seeds), -1),
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        transform=transform,
        **RECIPE,
    )
    return models, [evaluate(model, test.images, test.labels) for model in models]


def main(names: list[str]) -> None:
    BASES.mkdir(exist_ok=True)
    table = BASES / "accuracy.csv"
    rows = dict(csv.reader(table.open())) if table.exists() else {}  # type: ignore[arg-type]
    for name in names or NAMES:
        models, accuracy = train(name, SEEDS)
        states = [model.state_dict() for model in models]
        stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
        save_file(stacked, BASES / f"{name.replace(', ', '_').replace(' ', '_')}.safetensors")
        rows[name] = " ".join(f"{value:.4f}" for value in accuracy)
        print(f"{name}: {rows[name]}", flush=True)
        with table.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(sorted(rows.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
