"""Transfer learning: keep what another task has taught, and learn only a new head.

The recipe has three steps: train a base model on a related task that has plenty of labels;
``replace_head`` with a new one and ``freeze`` the rest; train the head. As the frozen part gives
the same features for a picture every time, ``extract_features`` computes them once, and
``linear_probe`` finds the best head for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlguide.training import check_labelled

__all__ = [
    "extract_features",
    "find_layers",
    "freeze",
    "linear_probe",
    "replace_head",
    "stay_in_eval_mode",
]

Network = TypeVar("Network", bound=nn.Module)


def freeze(model: Network, *layers: str) -> Network:
    """Freeze layers of ``model`` (all of it if none is named), in place: weights *and* statistics.

    Without a gradient no weight moves. But BatchNorm layers also keep running statistics, which
    move whenever the layer is in train mode, gradient or not; so every part of a frozen layer goes
    back to eval mode each time it runs, whatever ``model.train()`` says.

    Raises:
        ValueError: if a name is not a layer of the model, such as ``"backbone.block1"``.
    """
    for layer in find_layers(model, layers):
        layer.requires_grad_(False)
        for part in layer.modules():
            part.register_forward_pre_hook(stay_in_eval_mode)
    return model


def stay_in_eval_mode(part: nn.Module, _: Any) -> None:
    """A hook that runs before each forward pass of a frozen part."""
    part.training = False


def find_layers(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The layers of ``model`` with these names, or all of it if none is given.

    Raises:
        ValueError: if a name is not a layer of the model.
    """
    known: dict[str, nn.Module] = dict(model.named_modules())
    for name in names:
        if name not in known or not name:
            raise ValueError(f"layers: {name!r} is none of {', '.join(filter(None, known))}")
    return [known[name] for name in names] or [model]


def replace_head(model: Network, head: int | nn.Linear, *, seed: int = 0) -> Network:
    """Give ``model`` a new ``head``, in place: a number of classes, or a layer trained elsewhere.

    A number of classes makes a new layer, its first weights drawn from ``seed``.

    Raises:
        ValueError: if the model's head is no linear layer, there are fewer than 2 classes, or the
            layer's width is not the backbone's.
    """
    old = getattr(model, "head", None)
    if not isinstance(old, nn.Linear):
        raise ValueError(f"model must have a head that is a Linear, got {type(old).__name__}")
    if isinstance(head, nn.Linear):
        if head.in_features != old.in_features:
            raise ValueError(
                f"head reads {head.in_features} features, but the backbone gives {old.in_features}"
            )
        model.head = head
        return model
    if head < 2:
        raise ValueError(f"head must have at least 2 classes, got {head}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.head = nn.Linear(old.in_features, head)
    return model


@torch.no_grad()
def extract_features(backbone: nn.Module, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """What ``backbone`` makes of each picture, in eval mode, computed once: ``(N, features)``.

    Raises:
        ValueError: if there is no picture, or one holds NaN.
    """
    check_labelled(images, torch.zeros(len(images), dtype=torch.int64))
    was_training = backbone.training
    backbone.eval()
    features = torch.cat([backbone(part) for part in images.split(batch_size)])
    backbone.train(was_training)
    return features


def linear_probe(
    features: Tensor, labels: Tensor, classes: int, *, penalty: float = 1.0
) -> nn.Linear:
    """The head that fits frozen features best: multinomial logistic regression.

    Minimises the summed cross-entropy plus ``penalty / 2`` times the squared weights (the bias is
    free), as scikit-learn's ``LogisticRegression(C=1 / penalty)`` does. The problem is convex, so
    the answer does not depend on a seed, a learning rate or an order.

    Args:
        features: ``(N, width)``. labels: ``(N,)`` int64 below ``classes``. penalty: above 0.

    Raises:
        ValueError: if there are no examples, NaN, labels out of range or a penalty not above 0.
    """
    check_labelled(features, labels, classes)
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}")
    linear = nn.utils.skip_init(nn.Linear, features.shape[1], classes, dtype=features.dtype)
    head = cast(nn.Linear, linear)  # without the random first weights, which would be wasted
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = F.cross_entropy(head(features), labels, reduction="sum")
        total = (fit + penalty / 2 * head.weight.square().sum()) / len(labels)
        total.backward()
        return total

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return head
