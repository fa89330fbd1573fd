"""What an update gives away: exactly from a dense layer, by search from other networks."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mlguide.federated import attack, client
from mlguide.models import MLP

CLASSES = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    images = torch.rand(n, 1, 6, 6, generator=g, dtype=torch.float64)
    return images, torch.randint(0, CLASSES, (n,), generator=g)


def mlp(hidden: int = 12, seed: int = 0) -> MLP:
    return MLP(36, [hidden], CLASSES, seed=seed).double()


def layer(gradient: client.Weights, name: str = "backbone.layer1.0") -> tuple[Tensor, Tensor]:
    return gradient[f"{name}.weight"], gradient[f"{name}.bias"]


def convolutional(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), activation(), nn.Conv2d(8, 8, 3, stride=2, padding=1),
            activation(), nn.Flatten(), nn.Linear(72, CLASSES),
        ).double()  # fmt: skip


def test_the_gradient_is_autograds_and_leaves_the_model_alone():
    model, (images, labels) = mlp(), batch(4)
    before = copy.deepcopy(model.state_dict())
    gradient = attack.gradient_of(model, images, labels)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    F.cross_entropy(model(images), labels).backward()
    assert list(gradient) == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradient[name], p.grad, atol=1e-15, rtol=0)
        assert not gradient[name].requires_grad


@given(seed=st.integers(0, 10_000), hidden=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_every_row_of_one_example_is_that_example_and_its_label_is_read(seed: int, hidden: int):
    model, (images, labels) = mlp(hidden, seed), batch(1, seed)
    gradient = attack.gradient_of(model, images, labels)
    weight, bias = layer(gradient)
    assert int(attack.label_of(gradient["head.bias"])) == int(labels)
    if not bias.any():
        return  # nobody woke
    rows = attack.invert_linear(weight, bias)
    assert len(rows) == int((bias != 0).sum())
    torch.testing.assert_close(rows, images.flatten(1).expand(len(rows), -1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("epochs", [1, 5])
def test_an_update_of_one_example_gives_it_back_as_well(epochs: int):
    model, (images, labels) = mlp(), batch(1)
    old = client.trained_weights(model)
    rows = torch.zeros(epochs, 1, dtype=torch.int64)
    new = client.local_sgd(model, old, images, labels, rows, learning_rate=0.1)
    update = {name: new[name] - old[name] for name in old}
    torch.testing.assert_close(
        attack.invert_linear(*layer(update))[0], images.flatten(), atol=1e-9, rtol=0
    )
    assert int(attack.label_of(-update["head.bias"])) == int(labels)


def test_the_row_with_the_largest_bias_gradient_comes_first_and_sleepers_are_left_out():
    weight = torch.tensor([[1.0, 2.0], [0.0, 0.0], [-8.0, 4.0], [3.0, 3.0]])
    bias = torch.tensor([1.0, 0.0, -4.0, 2.0])
    rows = attack.invert_linear(weight, bias)
    assert rows.tolist() == [[2.0, -1.0], [1.5, 1.5], [1.0, 2.0]]


def test_of_a_batch_a_row_is_the_mix_of_the_examples_that_woke_the_unit():
    model, (images, labels) = mlp(40), batch(6)
    weight, bias = layer(attack.gradient_of(model, images, labels))
    awake = model.backbone(images) > 0  # (examples, units)
    found = attack.invert_linear(weight, bias)
    order = bias.abs().argsort(descending=True, stable=True)
    alone = [
        (row, unit) for row, unit in enumerate(order[: len(found)]) if awake[:, unit].sum() == 1
    ]
    assert alone
    for row, unit in alone:
        own = images[awake[:, unit]].flatten()
        torch.testing.assert_close(found[row], own, atol=1e-9, rtol=0)


def test_labels_of_many_gradients_at_once_and_none_of_a_mixed_batch():
    model, (images, labels) = mlp(), batch(8)
    biases = [
        attack.gradient_of(model, images[i : i + 1], labels[i : i + 1])["head.bias"]
        for i in range(8)
    ]
    assert torch.equal(attack.label_of(torch.stack(biases)), labels)
    for wrong in (torch.tensor([-1.0, -2.0, 3.0]), torch.zeros(3)):
        with pytest.raises(ValueError, match="one class below 0.*got"):
            attack.label_of(wrong)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(3, 2), torch.ones(2), r"got \(3, 2\) and \(2,\)"),
        (torch.ones(3), torch.ones(3), r"got \(3,\) and \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3), "no unit woke"),
    ],
)
def test_what_cannot_be_inverted_is_refused(weight: Tensor, bias: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        attack.invert_linear(weight, bias)


def test_a_convolutional_network_gives_its_picture_to_a_search():
    model, (images, labels) = convolutional(), batch(1)
    before = copy.deepcopy(model.state_dict())
    gradient = attack.gradient_of(model, images, labels)
    found = attack.match_gradients(model, gradient, (1, 6, 6), labels[0], generator(1), steps=60)
    torch.testing.assert_close(found.picture, images[0], atol=1e-3, rtol=0)
    assert found.distance < 1e-9
    assert found.path.shape == (61, 1, 6, 6)
    assert torch.equal(found.path[-1], found.picture)
    steps = (found.path - images[0]).flatten(1).norm(dim=1)
    assert steps[0] > 2 * steps[10] > 4 * steps[30]  # nearer and nearer
    noise = torch.randn(1, 6, 6, generator=generator(1), dtype=torch.float64)
    assert torch.equal(found.path[0], noise)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


def test_the_distance_is_relative_to_the_gradient_sent():
    model, (images, labels) = convolutional(), batch(1)
    gradient = attack.gradient_of(model, images, labels)
    found = attack.match_gradients(model, gradient, (1, 6, 6), labels[0], generator(1), steps=1)
    mine = attack.gradient_of(model, found.picture[None], labels)
    off = sum((mine[name] - gradient[name]).square().sum() for name in mine)
    assert found.distance == pytest.approx(
        float(off / sum(g.square().sum() for g in gradient.values()))
    )


def test_of_several_starts_the_nearest_counts():
    model, (images, labels) = convolutional(nn.ReLU), batch(1)  # not smooth: starts differ
    gradient = attack.gradient_of(model, images, labels)

    def left(seeds: torch.Generator, starts: int) -> float:
        how = {"steps": 5, "starts": starts}
        return attack.match_gradients(model, gradient, (1, 6, 6), labels[0], seeds, **how).distance

    one = generator(3)
    each = [left(one, 1) for _ in range(4)]
    assert min(each) < each[0]
    assert left(generator(3), 4) == pytest.approx(min(each))


def test_what_cannot_be_matched_is_refused():
    model, (images, labels) = convolutional(), batch(1)
    gradient = attack.gradient_of(model, images, labels)
    for wrong in ({"steps": 0}, {"starts": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            attack.match_gradients(model, gradient, (1, 6, 6), labels[0], generator(), **wrong)
    with pytest.raises(ValueError, match="gradient must be of"):
        attack.match_gradients(model, {"a": images}, (1, 6, 6), labels[0], generator())
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, CLASSES)).double()
    with pytest.raises(ValueError, match="BatchNorm1d"):
        attack.gradient_of(normed, *batch(3))
    own = client.trained_weights(normed)
    with pytest.raises(ValueError, match="BatchNorm1d"):
        attack.match_gradients(normed, own, (1, 6, 6), labels[0], generator())
