import copy

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from mlguide.models import SmallCNN
from mlguide.training import fit
from mlguide.transfer import extract_features, freeze, linear_probe, replace_head


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures():
    return torch.rand(40, 1, 28, 28, generator=generator()), torch.arange(40) % 4


def train(model, pictures, steps=5):
    fit(model, *pictures, steps=steps, learning_rate=0.05, generator=generator())


def changed(before, after):
    after = after.state_dict()
    return {
        name for name, value in before.state_dict().items() if not torch.equal(value, after[name])
    }  # noqa: E501


def test_frozen_weights_and_statistics_stay_bit_identical_in_training(pictures):
    model = SmallCNN(4, seed=0)
    before = copy.deepcopy(model)
    train(freeze(model, "backbone"), pictures)
    assert changed(before, model) == {"head.weight", "head.bias"}


def test_the_test_above_would_notice_the_batchnorm_trap(pictures):
    model = SmallCNN(4, seed=0)
    before = copy.deepcopy(model)
    model.backbone.requires_grad_(False)
    train(model, pictures)
    assert any("running_mean" in name for name in changed(before, model))


def test_only_the_named_layers_are_frozen(pictures):
    model = SmallCNN(4, seed=0)
    before = copy.deepcopy(model)
    train(freeze(model, "backbone.block1", "backbone.block3"), pictures)
    moved = changed(before, model)
    assert not any("block1" in name or "block3" in name for name in moved)
    assert {"backbone.block2.0.weight", "backbone.block2.1.running_mean", "head.bias"} <= moved


def test_without_a_name_all_is_frozen():
    assert not any(p.requires_grad for p in freeze(SmallCNN(4, seed=0)).parameters())


def test_a_copy_of_a_frozen_network_is_frozen(pictures):
    model = freeze(SmallCNN(4, seed=0).backbone)
    copied = copy.deepcopy(model)
    copied.train()
    copied(pictures[0])
    assert changed(model, copied) == set()


@pytest.mark.parametrize("name", ["backbone.block9", "", "Backbone"])
def test_an_unknown_layer_is_refused_and_nothing_is_frozen(name):
    model = SmallCNN(4, seed=0)
    with pytest.raises(ValueError, match="is none of backbone, backbone.pool"):
        freeze(model, "backbone", name)
    assert all(p.requires_grad for p in model.parameters())


def test_a_new_head_is_drawn_from_its_seed_and_the_backbone_is_kept():
    model = SmallCNN(4, seed=0)
    before = copy.deepcopy(model)
    assert replace_head(model, 7, seed=3) is model
    assert model.head.weight.shape == (7, 32) and model.head.weight.requires_grad
    assert changed(before.backbone, model.backbone) == set()
    other, same = (replace_head(SmallCNN(4, seed=0), 7, seed=s) for s in (4, 3))
    assert torch.equal(same.head.weight, model.head.weight)
    assert not torch.equal(other.head.weight, model.head.weight)


def test_a_head_trained_elsewhere_is_put_on_as_it_is():
    head = nn.Linear(32, 3)
    assert replace_head(SmallCNN(4, seed=0), head).head is head


@pytest.mark.parametrize(
    ("head", "says"),
    [(nn.Linear(31, 3), "head reads 31 features, but the backbone gives 32"), (1, "got 1")],
)
def test_a_head_that_does_not_fit_is_refused(head, says):
    model = SmallCNN(4, seed=0)
    with pytest.raises(ValueError, match=says):
        replace_head(model, head)
    assert model.head.out_features == 4


@pytest.mark.parametrize("model", [nn.Linear(2, 3), SmallCNN(4, seed=0).backbone])
def test_a_model_without_a_head_is_refused(model):
    with pytest.raises(ValueError, match="model must have a head that is a Linear, got NoneType"):
        replace_head(model, 3)


def test_features_are_those_of_the_network_in_eval_mode_whatever_the_batch(pictures):
    backbone = SmallCNN(4, seed=0).backbone.train()
    before = copy.deepcopy(backbone)
    features = extract_features(backbone, pictures[0], batch_size=7)
    assert changed(before, backbone) == set() and backbone.training
    assert not features.requires_grad
    with torch.no_grad():
        assert torch.allclose(features, before.eval()(pictures[0]), atol=1e-6)


def test_a_head_trained_on_cached_features_is_the_head_trained_through_the_network(pictures):
    images, labels = pictures[0].double(), pictures[1]
    model = freeze(SmallCNN(4, seed=0).double(), "backbone")
    head = copy.deepcopy(model.head)
    train(model, (images, labels), steps=30)
    train(head, (extract_features(model.backbone, images), labels), steps=30)
    assert torch.allclose(head.weight, model.head.weight, atol=1e-12)


def test_pictures_without_features_are_refused(pictures):
    backbone = SmallCNN(4, seed=0).backbone
    with pytest.raises(ValueError, match="1 of 40 hold NaN"):
        pictures[0][3, 0, 5, 5] = float("nan")
        extract_features(backbone, pictures[0])
    with pytest.raises(ValueError, match="inputs is empty"):
        extract_features(backbone, torch.ones(0, 1, 28, 28))


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_probe_is_scikit_learns_logistic_regression(penalty):
    features = torch.randn(120, 10, generator=generator(), dtype=torch.float64)
    labels = torch.arange(120) % 3
    features[:, :3] += 1.5 * nn.functional.one_hot(labels, 3)
    ours = linear_probe(features, labels, 3, penalty=penalty)
    theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(features, labels)
    with torch.no_grad():
        probability = ours(features).softmax(1)
    assert torch.allclose(probability, torch.tensor(theirs.predict_proba(features)), atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "penalty", "says"),
    [
        (torch.tensor([0, 3]), 1.0, "labels must be 0 to 2; got 0 to 3"),
        (torch.tensor([-1, 0]), 1.0, "labels must be 0 to 2; got -1 to 0"),
        (torch.tensor([0, 1]), 0.0, "penalty must be above 0, got 0.0"),
        (torch.tensor([0, 1, 2]), 1.0, "labels must be int64 of shape"),
    ],
)
def test_a_probe_that_makes_no_sense_is_refused(labels, penalty, says):
    with pytest.raises(ValueError, match=says):
        linear_probe(torch.ones(2, 5), labels, 3, penalty=penalty)
