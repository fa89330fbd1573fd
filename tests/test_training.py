import subprocess
import sys

import pytest
import torch
from torch import nn

from mlguide.training import batch_order, evaluate, fit


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def two_clouds(n=40):
    labels = torch.arange(n) % 2
    return torch.randn(n, 3, generator=generator()) + 4 * labels[:, None], labels


def linear(width=3):
    layer = nn.Linear(width, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_fit_learns_and_tells_its_losses():
    inputs, labels = two_clouds()
    model = linear()
    history = fit(model, inputs, labels, steps=100, learning_rate=0.1, generator=generator())
    assert evaluate(model, inputs, labels) > 0.95
    assert len(history.losses) == 100 and history.losses[-1] < history.losses[0] / 2
    assert history.seconds > 0 and not model.training


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    inputs, labels = two_clouds()
    weights = []
    for seed in (0, 0, 1):
        model = linear()
        fit(model, inputs, labels, steps=7, learning_rate=0.1, generator=generator(seed),
            batch_size=4)  # fmt: skip
        weights.append(model.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_rate_falls_to_zero():
    """One step at full rate moves AdamW by the rate; of two steps the second has half of it."""
    inputs, labels = two_clouds()
    moved = []
    for steps in (1, 2):
        model = linear()
        fit(model, inputs, labels, steps=steps, learning_rate=0.1, generator=generator())
        moved.append(float(model.bias.detach().abs().max()))
    assert moved[0] == pytest.approx(0.1, rel=0.01)
    assert moved[1] == pytest.approx(0.15, rel=0.05)


def test_the_transform_is_applied_to_every_batch_with_the_generator():
    inputs, labels = two_clouds()
    seen = []

    def note(batch, generator):
        seen.append(torch.rand(1, generator=generator).item())
        return batch

    fit(linear(), inputs, labels, steps=5, learning_rate=0.1, generator=generator(), transform=note)
    assert len(set(seen)) == 5


def test_only_what_is_trainable_is_trained():
    inputs, labels = two_clouds()
    model = nn.Sequential(nn.Linear(3, 3), linear())
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, inputs, labels, steps=5, learning_rate=0.1, generator=generator())
    assert torch.equal(model[0].weight, before) and model[1].weight.abs().max() > 0
    with pytest.raises(ValueError, match="all its parameters are frozen"):
        fit(model[0], inputs, labels, steps=5, learning_rate=0.1, generator=generator())


def test_every_example_is_seen_once_before_any_is_seen_again():
    order = batch_order(10, 3, 7, generator())
    assert order.shape == (7, 3)
    for epoch in (order[:3], order[3:6]):
        assert len(epoch.flatten().unique()) == 9
    assert batch_order(4, 32, 2, generator()).shape == (2, 4)


@pytest.mark.parametrize("name", ["n", "batch_size", "steps"])
def test_an_empty_order_is_refused(name):
    numbers = {"n": 4, "batch_size": 2, "steps": 3} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        batch_order(**numbers, generator=generator())


@pytest.mark.parametrize("name", ["steps", "batch_size"])
def test_a_training_without_steps_or_batches_is_refused(name):
    inputs, labels = two_clouds()
    numbers = {"steps": 3} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        fit(linear(), inputs, labels, learning_rate=0.1, generator=generator(), **numbers)


def test_evaluate_counts_right_answers_in_eval_mode_and_restores_the_mode():
    model = nn.Sequential(nn.Dropout(0.999), nn.Identity()).train()
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert evaluate(model, scores, torch.tensor([1, 0, 1, 0])) == 0.75
    assert model.training


@pytest.mark.parametrize(
    ("inputs", "labels", "says"),
    [
        (torch.ones(0, 3), torch.ones(0, dtype=torch.int64), "label budget"),
        (torch.ones(2, 3), torch.ones(3, dtype=torch.int64), "labels must be int64 of shape"),
        (torch.ones(2, 3), torch.ones(2), "labels must be int64"),
        (torch.tensor([[1.0, float("nan"), 0.0]] * 2), torch.tensor([0, 1]), "2 of 2 hold NaN"),
    ],
)
def test_examples_that_cannot_be_learned_from_are_refused(inputs, labels, says):
    with pytest.raises(ValueError, match=says):
        fit(linear(), inputs, labels, steps=1, learning_rate=0.1, generator=generator())
    with pytest.raises(ValueError, match=says):
        evaluate(linear(), inputs, labels)


def threads_after_import(**environment):
    code = "import mlguide.training, torch; print(torch.get_num_threads())"
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()


def test_one_thread_unless_asked_otherwise():
    assert threads_after_import(OMP_NUM_THREADS="2") == "1"
    assert threads_after_import(MLGUIDE_THREADS="2") == "2"
