"""Your own pictures: compare the ways to learn from them fairly, and keep the one to use.

``cross_validate`` tries every method on a handful of pictures, with all choices made inside the
fold; ``fold_interval`` says how sure the result is; ``save`` and ``load`` keep a trained network.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mlguide.data import Pictures
from mlguide.experiments import Estimate, Numbers, mean_and_spread, t_quantile, tune
from mlguide.finetuning import lora, merge, unload
from mlguide.folders import read_picture
from mlguide.models import EfficientNet, SmallCNN
from mlguide.training import fit
from mlguide.transfer import extract_features, linear_probe, stay_in_eval_mode

__all__ = [
    "METHODS",
    "Classifier",
    "Comparison",
    "balanced_accuracy",
    "choose_setting",
    "colour_net",
    "cross_validate",
    "fold_interval",
    "least_work",
    "load",
    "look_once",
    "make_folds",
    "save",
    "train",
    "train_on_all",
]

METHODS: dict[str, tuple[float, float]] = {
    "from scratch": (0.003, 0.01),  # learning rates of a small network
    "head only": (1.0, 100.0),  # penalties of the probe, which all methods below start from
    "last 2": (0.00003, 0.0003),  # learning rates, here and below
    "LoRA": (0.0003, 0.003),
    "all": (0.00003, 0.0003),
}
"""What is compared, and the two settings of each among which every fold chooses for itself."""

TUNED = ("last 2", "LoRA", "all")  # these begin with the head of "head only"
BATCH = 16
SCRATCH = 20  # steps of the small network in place of one of the large one


def make_folds(labels: Tensor, groups: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """The fold of each picture, (N,) int64: every class spread evenly, every group on one side.

    Large groups come first, the rest at random; each goes where its class is rarest so far.

    Raises:
        ValueError: if there are fewer than 2 folds, or fewer groups than folds.
    """
    names, place = groups.unique(return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"folds must be 2 to {len(names)}, the number of groups; got {folds}")
    counts = torch.zeros(len(names), int(labels.max()) + 1)
    counts.index_put_((place, labels), torch.ones(len(labels)), accumulate=True)
    filled = torch.zeros(folds, counts.shape[1])
    fold_of = torch.zeros(len(names), dtype=torch.int64)
    order = torch.randperm(len(names), generator=generator)
    for group in order[counts[order].sum(1).argsort(descending=True, stable=True)]:
        crowded = (filled @ counts[group]) * len(labels) + filled.sum(1)
        fold_of[group] = crowded.argmin()
        filled[crowded.argmin()] += counts[group]
    return fold_of[place]


def fold_interval(values: Sequence[float] | Numbers) -> Estimate:
    """Mean of (folds,) values and a 95% interval that allows for what the folds share.

    The folds learn from mostly the same pictures, so they agree more than independent runs would.
    Nadeau and Bengio (2003) therefore add test / train, here 1 / (folds - 1), to the 1 / folds by
    which the variance is multiplied. It is an approximation: no exact one exists.
    """
    mean, naive = mean_and_spread(values)
    folds = len(values)
    half = float(naive) * (1 + folds / (folds - 1)) ** 0.5
    return Estimate(float(mean), float(mean) - half, float(mean) + half, folds)


def balanced_accuracy(answers: Tensor, labels: Tensor) -> float:
    """The share of right answers within each class that is there, averaged over these classes."""
    right = [(answers[labels == c] == c).double().mean() for c in labels.unique()]
    return torch.stack(right).mean().item()


# The methods


@cache
def _published(classes: int) -> EfficientNet:
    """The pretrained network; copied before it is trained."""
    return EfficientNet(classes, seed=0).eval()


def colour_net(classes: int, seed: int) -> SmallCNN:
    """The book's small network for colour pictures ``(N, 3, side, side)`` of any side from 16."""
    net = SmallCNN(classes, seed=seed)
    backbone: Any = net.backbone
    backbone.pool = nn.AdaptiveAvgPool2d(16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone.block1[0] = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    return net


def look_once(images: Tensor) -> dict[str, Tensor]:
    """What each method reads. What stays frozen sees every picture once, here, and never again."""
    backbone = _published(2).backbone
    maps = extract_features(backbone[:-2], images, batch_size=BATCH)
    small = F.interpolate(images, size=32, mode="area")
    features = extract_features(backbone[-2:], maps)
    return {"from scratch": small, "head only": features, "last 2": maps} | dict.fromkeys(
        ("LoRA", "all"), images
    )


def train(
    method: str,
    views: dict[str, Tensor],
    labels: Tensor,
    classes: int,
    setting: float,
    *,
    head: nn.Linear | None = None,
    steps: int,
    seed: int,
) -> nn.Module:
    """Train one method on all it is given; the result reads ``views[method]``, as `look_once` has.

    setting: one of ``METHODS[method]``. head: what "head only" has learned from the same pictures,
    for the methods that begin with it.
    """
    order = torch.Generator().manual_seed(seed)
    how: dict[str, Any] = {"learning_rate": setting, "generator": order, "batch_size": BATCH}
    if method == "from scratch":
        net = colour_net(classes, seed)
        fit(net, views[method], labels, steps=SCRATCH * steps, transform=_mirror_and_shift, **how)
        return net
    if method == "head only":
        return linear_probe(views[method], labels, classes, penalty=setting)
    net = copy.deepcopy(_published(classes))
    net.head = copy.deepcopy(head) or net.head
    if method == "last 2":
        net.backbone = cast(nn.Sequential, net.backbone[-2:])
    if method == "LoRA":
        lora(net, 4, seed=seed)
    else:  # BatchNorm keeps the statistics of a million pictures, which a batch of ours would spoil
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.register_forward_pre_hook(stay_in_eval_mode)
    fit(net, views[method], labels, steps=steps, **how)
    return net


def _mirror_and_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    by = torch.randint(-4, 5, (2,), generator=generator).tolist()
    return torch.where(mirrored, images.flip(3), images).roll(by, dims=(2, 3))


def choose_setting(
    method: str,
    views: dict[str, Tensor],
    labels: Tensor,
    groups: Tensor,
    *,
    classes: int,
    penalty: float,
    steps: int,
    seed: int,
) -> float:
    """The better of the method's two settings, on a quarter of the pictures that is held back.

    penalty: of the head that a tuned method begins with.
    """
    parts = min(4, len(groups.unique()))
    held = make_folds(labels, groups, parts, torch.Generator().manual_seed(seed)) == 0
    learned, known = {name: view[~held] for name, view in views.items()}, labels[~held]
    head = None
    if method in TUNED:
        head = linear_probe(learned["head only"], known, classes, penalty=penalty)

    def run(setting: float, _: Sequence[int]) -> float:
        model = train(method, learned, known, classes, setting, head=head, steps=steps, seed=seed)
        answers = extract_features(model, views[method][held], batch_size=BATCH).argmax(1)
        return balanced_accuracy(answers, labels[held])

    return tune(run, METHODS[method], [seed])


# The comparison


@dataclass(frozen=True)
class Comparison:
    """What ``cross_validate`` found, for each method.

    answers: (N, classes), what a network that never saw a picture gave it, adding up to 1.
    scores: (folds,) balanced accuracy. seconds: (folds,) of the processor, for choosing, training
    and answering. operations: of one training on a fold, counted.
    """

    fold_of: Tensor
    answers: dict[str, Tensor]
    scores: dict[str, Numbers]
    seconds: dict[str, Numbers]
    operations: dict[str, int]


def cross_validate(
    pictures: Pictures,
    *,
    folds: int = 5,
    steps: int = 10,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Try every method on each fold, trained on the others, by one rule for all.

    In each fold a method tries its two settings on a quarter of the pictures it may learn from,
    and trains with the better one on all of these. steps: of every network that starts from the
    backbone, in batches of 16; the one from scratch, which is small, takes 20 times as many.

    Raises:
        ValueError: as ``make_folds``.
    """
    labels, groups, classes = pictures.labels, pictures.groups, len(pictures.classes)
    fold_of = make_folds(labels, groups, folds, torch.Generator().manual_seed(seed))
    began, start = time.perf_counter(), time.process_time()
    with FlopCounterMode(display=False) as counter:
        views = look_once(pictures.images)
    looked, seen = time.process_time() - start, counter.get_total_flops() * (folds - 1) // folds
    answers = {method: torch.zeros(len(labels), classes) for method in METHODS}
    scores, seconds = ({method: np.zeros(folds) for method in METHODS} for _ in range(2))
    operations: dict[str, int] = {}
    for fold in range(folds):
        test = fold_of == fold
        learned = {name: view[~test] for name, view in views.items()}
        how: dict[str, Any] = {"classes": classes, "steps": steps, "seed": seed + fold}
        head, penalty = None, 1.0
        for method in METHODS:
            start = time.process_time()
            known = labels[~test]
            setting = choose_setting(method, learned, known, groups[~test], penalty=penalty, **how)
            counter = FlopCounterMode(display=False, custom_mapping=_GROUPED)
            with counter if fold == 0 else nullcontext():
                model = train(method, learned, known, setting=setting, head=head, **how)
            given = extract_features(model, views[method][test], batch_size=BATCH)
            answers[method][test] = given.softmax(1)
            scores[method][fold] = balanced_accuracy(given.argmax(1), labels[test])
            seconds[method][fold] = time.process_time() - start
            if fold == 0:
                operations[method] = counter.get_total_flops()
            if method == "head only":
                head, penalty = cast(nn.Linear, model), setting
        gone = time.perf_counter() - began
        left = gone / (fold + 1) * (folds - fold - 1)
        say(f"fold {fold + 1} of {folds} done after {gone:.0f} s, about {left:.0f} s to go")
    # All that the frozen backbone and the head take counts for the methods that build on them.
    operations["head only"] += seen
    seconds["head only"] += looked / folds
    for method in TUNED:
        operations[method] += operations["head only"]
        seconds[method] += seconds["head only"]
    return Comparison(fold_of, answers, scores, seconds, operations)


def _going_back(
    gradient: Sequence[int], picture: Any, weight: Sequence[int], *others: Any, out_shape: Any
) -> int:
    """Operations of a convolution's backward pass; PyTorch counts too many for grouped ones."""
    of_input, of_weight, _ = others[-1]  # which gradients are asked for
    return 2 * int(np.prod(gradient)) * int(np.prod(weight[1:])) * (of_input + of_weight)


_GROUPED = {torch.ops.aten.convolution_backward: _going_back}


def least_work(comparison: Comparison) -> str:
    """The method that took the least work, of those within one standard error of the best one.

    The rule of Breiman and others (1984), with the standard error of the paired difference.
    """
    scores = comparison.scores
    best = max(scores, key=lambda method: scores[method].mean())

    def is_near(method: str) -> bool:
        behind = fold_interval(scores[best] - scores[method])
        error = (behind.high - behind.mean) / t_quantile(behind.seeds - 1)
        return behind.mean <= error

    return min(filter(is_near, scores), key=lambda method: comparison.operations[method])


# Keeping a network


@dataclass(frozen=True)
class Classifier:
    """A trained network with all that is needed to ask it about a picture file."""

    network: nn.Module
    classes: tuple[str, ...]
    side: int

    @torch.no_grad()
    def __call__(self, file: str | Path) -> dict[str, float]:
        """How sure the network is of each class, the likeliest first.

        Raises:
            ValueError: naming the file, if it cannot be read.
        """
        pixels = torch.tensor(read_picture(Path(file), self.side)).permute(2, 0, 1)
        sure = self.network(pixels[None].float() / 255)[0].softmax(0).tolist()
        return dict(sorted(zip(self.classes, sure, strict=True), key=lambda pair: -pair[1]))


def train_on_all(method: str, pictures: Pictures, *, steps: int = 10, seed: int = 0) -> Classifier:
    """The method trained on every picture, its setting chosen as in a fold, as one whole network.

    Raises:
        ValueError: if the method is not one of ``METHODS``.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, got {method!r}")
    views, classes = look_once(pictures.images), len(pictures.classes)
    how: dict[str, Any] = {"classes": classes, "steps": steps, "seed": seed}
    network, penalty = None, 1.0
    for step in ("head only", method) if method in TUNED else (method,):
        task, head = (views, pictures.labels, pictures.groups), cast("nn.Linear | None", network)
        setting = choose_setting(step, *task, penalty=penalty, **how)
        network = train(step, views, pictures.labels, setting=setting, head=head, **how)
        penalty = setting
    assert network is not None
    if method in ("head only", "last 2"):
        whole = copy.deepcopy(_published(classes))
        whole.head = cast(nn.Linear, network if method == "head only" else network.head)
        if isinstance(network, EfficientNet):  # the last two blocks, which have kept their names
            whole.backbone.load_state_dict(network.backbone.state_dict(), strict=False)
        network = whole
    return Classifier(unload(merge(network)).eval(), pictures.classes, pictures.images.shape[-1])


def save(classifier: Classifier, path: str | Path) -> None:
    """Write ``path.safetensors`` (the weights) and ``path.json`` (what else is needed).

    Neither is ever half-written: each is written beside its place and moved there. The second holds
    the checksum of the first, so that ``load`` notices if they do not belong together.
    """
    weights, about = _files(path)
    parts = [file.with_name(file.name + ".part") for file in (weights, about)]
    try:
        save_file(classifier.network.state_dict(), parts[0])
        told = {
            "network": type(classifier.network).__name__,
            "classes": list(classifier.classes),
            "side": classifier.side,
            "pictures": "RGB from 0 to 1, the middle square, on white where transparent",
            "sha256": hashlib.sha256(parts[0].read_bytes()).hexdigest(),
        }
        parts[1].write_text(json.dumps(told, indent=2), "utf-8")
        for part, file in zip(parts, (weights, about), strict=True):
            os.replace(part, file)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def load(path: str | Path) -> Classifier:
    """Read what ``save`` wrote.

    Raises:
        ValueError: if the two files do not belong together, or are not what ``save`` writes.
    """
    weights, about = _files(path)
    told = json.loads(about.read_text("utf-8"))
    if not {"network", "classes", "side", "sha256"} <= told.keys():
        raise ValueError(f"{about.name} is not what save writes")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != told["sha256"]:
        raise ValueError(f"{weights.name} is not the file that {about.name} was written with")
    classes = tuple(told["classes"])
    known: dict[str, Callable[[], nn.Module]] = {
        "EfficientNet": lambda: EfficientNet(len(classes), seed=0, pretrained=False),
        "SmallCNN": lambda: colour_net(len(classes), seed=0),
    }
    if told["network"] not in known:
        raise ValueError(f"{about.name}: network is {told['network']!r}, none of {list(known)}")
    network = known[told["network"]]()
    network.load_state_dict(load_file(weights))
    return Classifier(network.eval(), classes, told["side"])


def _files(path: str | Path) -> tuple[Path, Path]:
    place = Path(path)
    return place.with_name(place.name + ".safetensors"), place.with_name(place.name + ".json")
