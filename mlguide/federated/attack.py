"""What a server that is honest but curious reads in a single update.

It plays by the rules, knows the model that it sent, and looks at what one client sends back. A
dense first layer gives a picture away exactly; other networks do by search for the picture whose
gradient is the one that was sent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mlguide.federated.client import Weights, check_no_statistics, to_vector, trained_weights

__all__ = ["Match", "gradient_of", "invert_linear", "label_of", "match_gradients"]


def gradient_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Weights:
    """What a client sends that takes no step of its own: its gradient, by the weights' names.

    Of the mean cross-entropy of inputs ``(n, ...)`` and labels ``(n,)``. ``model`` is not changed.

    Raises:
        ValueError: if the model has BatchNorm in training mode.
    """
    check_no_statistics(model)
    weights = {name: w.requires_grad_() for name, w in trained_weights(model).items()}
    loss = F.cross_entropy(functional_call(model, weights, (inputs,)), labels)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, gradients, strict=True))


def invert_linear(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """What a dense layer saw: a row of its weights' gradient, divided by that of the bias.

    Exact if one example made the gradient (Phong et al. 2018, eprint 2017/715). Of several
    examples, a row is a mix of those that woke its unit.

    Args:
        weight_gradient: ``(units, inputs)`` and bias_gradient ``(units,)`` of one layer. An update
            does as well, new weights minus old: what it is multiplied by cancels.

    Returns:
        ``(woken, inputs)``: a row for each unit whose bias has a gradient, the largest first, which
        has the least rounding.

    Raises:
        ValueError: if the shapes do not go together, or no unit woke.
    """
    if weight_gradient.ndim != 2 or bias_gradient.shape != weight_gradient.shape[:1]:
        raise ValueError(
            "weight_gradient must be (units, inputs) and bias_gradient (units,); "
            f"got {tuple(weight_gradient.shape)} and {tuple(bias_gradient.shape)}"
        )
    order = bias_gradient.abs().argsort(descending=True, stable=True)
    woken = order[bias_gradient[order] != 0]
    if len(woken) == 0:
        raise ValueError("bias_gradient must have a number that is not 0: no unit woke")
    return weight_gradient[woken] / bias_gradient[woken, None]


def label_of(last_bias_gradient: Tensor) -> Tensor:
    """The label of the one example behind a gradient ``(..., classes)``; int64 ``(...)``.

    The gradient of the last bias is p - 1 for the true class and p for every other, with p the
    model's probability: only the true class is below 0 (Zhao et al. 2020, arXiv:2001.02610).

    Raises:
        ValueError: if not exactly one class is below 0, as with several examples. (Of an update,
            which goes against the gradient, pass the negative.)
    """
    below = last_bias_gradient < 0
    if not (below.sum(-1) == 1).all():
        raise ValueError(
            "last_bias_gradient must have one class below 0, as one example's has; "
            f"got {sorted(set(below.sum(-1).flatten().tolist()))}"
        )
    return last_bias_gradient.argmin(-1)


class Match(NamedTuple):
    """The input found, the distance left (1 is that of a gradient of zeros), and the way there.

    ``path`` is ``(steps + 1, ...)``, from the noise to the input found.
    """

    picture: Tensor
    distance: float
    path: Tensor


def match_gradients(
    model: nn.Module,
    gradient: Weights,
    shape: tuple[int, ...],
    label: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 40,
    starts: int = 1,
) -> Match:
    """Search for the input whose gradient is ``gradient``: deep leakage from gradients.

    From noise, L-BFGS lowers the squared distance between the two gradients (Zhu et al. 2019,
    arXiv:1906.08935; with the label known, Zhao et al. 2020, arXiv:2001.02610). It needs a model
    whose gradient is smooth: sigmoid rather than ReLU.

    Args:
        shape: of the input, without N. label: int64 ``()``, as ``label_of`` gives it.
        steps: of four iterations each. starts: how often to try from other noise; the nearest
            counts.

    Raises:
        ValueError: if ``gradient`` names other weights than the model trains, a number is less than
            1, or the model has BatchNorm in training mode.
    """
    weights = {name: w.requires_grad_() for name, w in trained_weights(model).items()}
    if gradient.keys() != weights.keys() or min(steps, starts) < 1:
        raise ValueError(
            f"gradient must be of {sorted(weights)}, and steps and starts at least 1; "
            f"got {sorted(gradient)}, {steps} and {starts}"
        )
    check_no_statistics(model)
    sent = to_vector({name: gradient[name] for name in weights})

    def distance(guess: Tensor) -> Tensor:
        loss = F.cross_entropy(functional_call(model, weights, (guess[None],)), label[None])
        mine = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        mine = to_vector(dict(zip(weights, mine, strict=True)))
        return (mine - sent).square().sum() / sent.square().sum()

    def search(guess: Tensor) -> Match:
        def measure() -> float:
            left = distance(guess)
            (guess.grad,) = torch.autograd.grad(left, [guess])
            return float(left.detach())

        exact: dict[str, Any] = {"tolerance_grad": 0, "tolerance_change": 0}
        optimizer = torch.optim.LBFGS([guess], max_iter=4, line_search_fn="strong_wolfe", **exact)
        path = [guess.detach().clone()]
        for _ in range(steps):
            optimizer.step(measure)
            path.append(guess.detach().clone())
        left = distance(guess).detach().nan_to_num(torch.inf)
        return Match(path[-1], float(left), torch.stack(path))

    noises = [torch.randn(shape, generator=generator, dtype=sent.dtype) for _ in range(starts)]
    return min((search(n.requires_grad_()) for n in noises), key=lambda match: match.distance)
