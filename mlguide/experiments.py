"""Measure fairly: repeat over seeds, compare in pairs, tune by one rule, and say what came out.

A number from one run is an anecdote. Here a run is repeated with other seeds, its mean comes with
a 95% interval, two methods are compared seed by seed, and ``claim`` turns the result into a
verdict that is computed, never typed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from mlguide.training import (
    Loss,
    ParameterGroup,
    Penalty,
    Transform,
    adamw,
    batch_order,
    check_labelled,
)

__all__ = [
    "Estimate",
    "claim",
    "fit_many",
    "interval",
    "mean_and_spread",
    "over_seeds",
    "prove",
    "record",
    "t_quantile",
    "tune",
]

Numbers = npt.NDArray[np.float64]
Candidate = TypeVar("Candidate")
Verdict = Literal["holds", "holds when", "fails here"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95% interval; prints as ``0.652 ± 0.021``, signed with ``:+``."""

    mean: float
    low: float
    high: float
    seeds: int

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}z.3f} ± {(self.high - self.low) / 2:.3f}"  # z: never -0.000

    def __str__(self) -> str:
        return format(self, "")


@cache
def t_quantile(freedom: int) -> float:
    """Student's t: the value that 97.5% lie below, by integrating the density (Student 1908)."""
    t = np.linspace(0.0, 15.0, 300_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    density = scale / math.sqrt(freedom * math.pi) * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * (t[1] - t[0]))])
    return float(np.interp(0.475, below, t))


def mean_and_spread(values: npt.ArrayLike) -> tuple[Numbers, Numbers]:
    """Mean and half-width of the 95% t-interval over the first axis of ``(seeds, ...)``.

    Raises:
        ValueError: if there are fewer than 2 seeds, or a value is not a finite number.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim == 0 or len(array) < 2:
        raise ValueError(f"values must hold at least 2 seeds, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite numbers, got {array[~np.isfinite(array)][0]}")
    spread = t_quantile(len(array) - 1) * array.std(0, ddof=1) / math.sqrt(len(array))
    return array.mean(0), spread


def interval(values: npt.ArrayLike) -> Estimate:
    """Mean of ``(seeds,)`` values with its 95% t-interval.

    For two methods pass the differences seed by seed, ``interval(a - b)``: what the seeds have in
    common then cancels.

    Raises:
        ValueError: if there are fewer than 2 seeds, or a value is not a finite number.
    """
    array = np.asarray(values, dtype=float)
    mean, spread = mean_and_spread(array)
    return Estimate(float(mean), float(mean - spread), float(mean + spread), array.size)


def over_seeds(run: Callable[[int], Any], seeds: Sequence[int]) -> Numbers:
    """``run(seed)`` for each seed, stacked: ``(seeds, ...)``."""
    return np.stack([np.asarray(run(seed), dtype=float) for seed in seeds])


def fit_many(
    models: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float | Sequence[ParameterGroup],
    generators: Sequence[torch.Generator],
    batch_size: int = 32,
    transform: Transform | None = None,
    loss: Loss = F.cross_entropy,
    penalty: Penalty | None = None,
) -> None:
    """``mlguide.training.fit`` for many models of one shape at once, one per seed, in place.

    The weights are stacked and ``torch.func.vmap`` runs all models in one step, which for small
    models is quicker than one after the other; each ends with the weights that ``fit`` gives it.

    Args:
        models: S models that differ in their weights only.
        inputs: ``(S, N, ...)`` and labels ``(S, N, ...)``, a row for each model.
        generators: S generators, one for each model.
        learning_rate: as in ``fit``; groups are those of the first model and serve all.
        penalty: as in ``fit``, of parameters stacked as ``(S, ...)``. The rest is as in ``fit``.

    Raises:
        ValueError: if the numbers of models, rows and generators differ, or as ``fit`` does.
    """
    if not len(models) == len(inputs) == len(labels) == len(generators) > 0:
        raise ValueError(
            f"models, inputs, labels and generators must be as many; got {len(models)}, "
            f"{len(inputs)}, {len(labels)} and {len(generators)}"
        )
    check_labelled(inputs.flatten(0, 1), labels.flatten(0, 1), loss=loss)
    one = copy.deepcopy(models[0])
    one.train()
    stacked, buffers = stack_module_state(list(models))  # pyright: ignore[reportArgumentType]
    names = [name for name, p in one.named_parameters() if p.requires_grad]
    if not names:
        raise ValueError("models have nothing to train: all their parameters are frozen")
    trained = {name: stacked[name].detach().clone().requires_grad_() for name in names}
    state = {name: p.detach() for name, p in stacked.items() if name not in trained} | buffers

    def of_one(
        trained: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        return loss(functional_call(one, {**trained, **state}, (x,)), y)

    orders = [batch_order(inputs.shape[1], batch_size, steps, g) for g in generators]
    optimizer = adamw(trained, learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model_of_row = torch.arange(len(models))[:, None]
    for rows in torch.stack(orders, dim=1):  # (S, batch)
        x, y = inputs[model_of_row, rows], labels[model_of_row, rows]
        if transform is not None:
            x = torch.stack([transform(part, g) for part, g in zip(x, generators, strict=True)])
        optimizer.zero_grad()
        # The models share no weight, so the gradient of the sum is each model's own gradient.
        total = vmap(of_one)(trained, state, x, y).sum()
        if penalty is not None:
            total = total + penalty(trained)
        total.backward()
        optimizer.step()
        schedule.step()
    for s, model in enumerate(models):
        model.load_state_dict({k: v[s].detach() for k, v in {**trained, **state}.items()})
        model.eval()


def tune(
    run: Callable[[Candidate, Sequence[int]], npt.ArrayLike],
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
) -> Candidate:
    """The candidate that does best on validation examples; the first of equals.

    The one rule of the book for every method: ``run(candidate, seeds)`` gives the accuracy of each
    seed on *validation* examples, which are neither trained on nor part of the test, with seeds
    that the comparison does not use. The highest mean wins.

    Raises:
        ValueError: if there is no candidate or no seed.
    """
    if not candidates or not seeds:
        raise ValueError(f"candidates and seeds must not be empty; got {candidates!r}, {seeds!r}")
    means = [np.asarray(run(candidate, seeds), dtype=float).mean() for candidate in candidates]
    return candidates[int(np.argmax(means))]


def claim(
    id: str,
    statement: str,
    effect: npt.ArrayLike,
    *,
    when: str = "",
    unless: Mapping[str, npt.ArrayLike] | None = None,
    page_says: Verdict,
) -> None:
    """Compute the verdict on a claim, show it as one line, and record it in the notebook.

    Args:
        id: the claim's number, such as ``"T1"``. statement: the claim, as one sentence.
        effect: ``(seeds,)`` paired differences, above 0 where the claim is right.
        when: the condition under which ``effect`` was measured, such as "labels are few".
        unless: differences under other conditions, where the claim may not hold.
        page_says: the verdict that the text around the claim relies on.

    The claim *holds* if the 95% interval of ``effect`` lies above 0, and so does that of every
    condition in ``unless``; *holds when …* if one of those does not; else it *fails here*.

    Raises:
        AssertionError: if the measured verdict is not ``page_says``: the page would be wrong.
        ValueError: if there are fewer than 2 seeds, or a value is not a finite number.
    """
    main = interval(effect)
    others = {name: interval(values) for name, values in (unless or {}).items()}
    contrary = {name: other for name, other in others.items() if other.low <= 0}
    verdict: Verdict = "holds when" if contrary else "holds"
    if main.low <= 0:
        verdict = "fails here"
    condition = f" {when}" if when and verdict != "holds" else ""
    line = f"[{id}] {verdict}{condition}: {_in_words(main)}"
    if verdict == "holds when":
        line += ". Does not hold: " + "; ".join(
            f"{name} {_in_words(other)}" for name, other in contrary.items()
        )
    if verdict != page_says:
        raise AssertionError(f"the page says that {id} {page_says!r}, but measured was: {line}")
    others_recorded = {name: asdict(other) for name, other in others.items()}
    _show(
        id,
        line,
        {
            "id": id,
            "statement": statement,
            "kind": "measured",
            "verdict": verdict,
            "when": when,
            "effect": asdict(main),
            "unless": others_recorded,
        },
    )


def prove(id: str, statement: str, checks: Mapping[str, bool]) -> None:
    """Show and record a claim that is proved exactly: every check in ``checks`` must be true.

    Raises:
        AssertionError: naming the checks that are not.
        ValueError: if there is no check.
    """
    if not checks:
        raise ValueError("checks must hold at least one, got none")
    if wrong := [name for name, passed in checks.items() if not passed]:
        raise AssertionError(f"{id} is not proved: {'; '.join(wrong)}")
    _show(
        id,
        f"[{id}] holds: proved ({'; '.join(checks)})",
        {
            "id": id,
            "statement": statement,
            "kind": "proved",
            "verdict": "holds",
            "checks": list(checks),
        },
    )


def record(name: str, value: Estimate | int | str) -> None:
    """Store ``value`` in the notebook's output under ``name``, for a page of the book to quote.

    It is what MyST-NB's ``glue`` stores, without needing MyST-NB where the notebook runs.
    """
    from IPython.display import display

    prefix = "application/papermill.record/"
    display({f"{prefix}text/plain": str(value)}, raw=True,
            metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})  # fmt: skip


def _in_words(e: Estimate) -> str:
    return f"effect {e.mean:+z.3f} (95% interval {e.low:+.3f} to {e.high:+.3f}, {e.seeds} seeds)"


def _show(id: str, line: str, recorded: dict[str, Any]) -> None:
    from IPython.display import display

    display({"text/plain": line, "application/vnd.mlguide.claim+json": recorded}, raw=True,
            metadata={"scrapbook": {"name": id, "mime_prefix": ""}})  # fmt: skip
