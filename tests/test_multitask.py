import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torchjd.aggregation import MGDA, PCGrad

from mlguide.experiments import fit_many
from mlguide.models import EfficientNet, SmallCNN
from mlguide.multitask import (
    MultiTaskModel,
    UncertaintyWeighting,
    classification,
    count_costs,
    fit_tasks,
    gradient_cosine,
    mgda,
    pack_labels,
    pcgrad,
    regression,
    task_gradients,
    task_losses,
    weighted_loss,
)
from mlguide.training import fit

TASKS = (classification("garment", 4), regression("angle", 2), regression("light"))
NAN = float("nan")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    return MultiTaskModel(SmallCNN(4, seed=0), TASKS, seed=1)


@pytest.fixture
def pictures():
    g = generator()
    labels = {
        "garment": torch.arange(40) % 4,
        "angle": torch.rand(40, 2, generator=g),
        "light": torch.rand(40, generator=g),
    }
    return torch.rand(40, 1, 28, 28, generator=g), pack_labels(TASKS, labels)


def test_every_head_answers_from_the_shared_features(model, pictures):
    answers = model.eval()(pictures[0])
    assert {name: tuple(a.shape) for name, a in answers.items()} == {
        "garment": (40, 4), "angle": (40, 2), "light": (40, 1)
    }  # fmt: skip
    features = model.backbone(pictures[0])
    assert torch.equal(answers["angle"], model.heads["angle"](features))
    assert torch.equal(
        model.backbone.block1[0].weight, SmallCNN(4, seed=0).backbone.block1[0].weight
    )  # noqa: E501


def test_it_takes_any_backbone_of_the_book():
    model = MultiTaskModel(EfficientNet(2, seed=0, pretrained=False), TASKS, seed=0)
    assert model.eval()(torch.rand(2, 3, 32, 32))["garment"].shape == (2, 4)


def test_a_loss_reaches_the_backbone_and_its_own_head_alone(model, pictures):
    losses = task_losses(TASKS, model(pictures[0]), pictures[1])
    losses[1].backward()
    reached = {n.rsplit(".", 1)[0] for n, p in model.named_parameters() if p.grad.any()}
    assert {n for n in reached if n.startswith("heads")} == {"heads.angle"}
    assert "backbone.block1.0" in reached


def test_losses_are_those_of_each_task_over_the_examples_that_have_a_label(model, pictures):
    images, labels = pictures
    labels[5:, 0] = NAN
    labels[::2, 3] = NAN
    answers = model.eval()(images)
    found = task_losses(TASKS, answers, labels)
    expected = torch.stack([
        F.cross_entropy(answers["garment"][:5], labels[:5, 0].long()),
        F.mse_loss(answers["angle"], labels[:, 1:3]),
        F.mse_loss(answers["light"][1::2], labels[1::2, 3:]),
    ])  # fmt: skip
    assert torch.allclose(found, expected)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_weights_multiply(model, pictures):
    answers = model.eval()(pictures[0])
    losses = task_losses(TASKS, answers, pictures[1])
    assert torch.allclose(weighted_loss(TASKS)(answers, pictures[1]), losses.sum())
    weighted = weighted_loss(TASKS, {"garment": 2.0, "angle": 0.0, "light": 0.5})
    assert torch.allclose(weighted(answers, pictures[1]), 2 * losses[0] + losses[2] / 2)


def test_many_at_once_get_the_weights_of_one_by_one(pictures):
    images, labels = (part.double().expand(2, *part.shape) for part in pictures)
    together = [MultiTaskModel(SmallCNN(4, seed=s), TASKS, seed=s).double() for s in range(2)]
    alone = copy.deepcopy(together)
    settings = {"steps": 6, "learning_rate": 0.01, "loss": weighted_loss(TASKS)}
    fit_many(together, images, labels, generators=[generator(s) for s in range(2)], **settings)
    for s, one in enumerate(alone):
        fit(one, images[s], labels[s], generator=generator(s), **settings)
        for name, value in one.state_dict().items():
            assert torch.allclose(value, together[s].state_dict()[name], atol=1e-10), name


def test_learned_weights_come_to_the_closed_form(model, pictures):
    """With losses that stay as they are, s ends at log 2L."""
    weighting = UncertaintyWeighting(model, TASKS)
    answers, _ = weighting(pictures[0])
    answers = {name: a.detach() for name, a in answers.items()}
    constant = task_losses(TASKS, answers, pictures[1])
    optimizer = torch.optim.LBFGS([weighting.log_variance], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = weighting.loss((answers, weighting.log_variance), pictures[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(weighting.log_variance, (2 * constant).log(), atol=1e-3)


def test_learned_weights_are_trained_with_the_model(model, pictures):
    weighting = UncertaintyWeighting(model, TASKS)
    fit(weighting, *pictures, steps=5, learning_rate=0.1, generator=generator(),
        loss=weighting.loss)  # fmt: skip
    assert (weighting.log_variance.abs() > 0.01).all()


# Gradients, and the library that does it for real


def test_task_gradients_are_those_of_each_loss_alone(model, pictures):
    losses = task_losses(TASKS, model(pictures[0]), pictures[1])
    rows = task_gradients(losses, model.backbone)
    for row, loss in zip(rows, losses, strict=True):
        model.zero_grad()
        loss.backward(retain_graph=True)
        alone = torch.cat([p.grad.flatten() for p in model.backbone.parameters()])
        assert torch.allclose(row, alone)


def test_cosines():
    gradients = torch.tensor([[1.0, 0], [2.0, 0], [-1.0, 1]])
    found = gradient_cosine(gradients)
    assert torch.allclose(found[0], torch.tensor([1.0, 1.0, -math.sqrt(0.5)]))
    assert torch.allclose(found, found.T)


def random_gradients(tasks, size, seed):
    """Gradients of unequal length, many of them in conflict."""
    scale = 10 ** (2 * torch.rand(tasks, 1, generator=generator(seed)) - 1)
    return scale.double() * torch.randn(tasks, size, generator=generator(seed + 1)).double()


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_pcgrad_is_torchjds(tasks):
    conflicts = 0
    for seed in range(40):
        gradients = random_gradients(tasks, 4, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # TorchJD draws its orders from the global state
            theirs = PCGrad()(gradients)
        ours = pcgrad(gradients, generator(seed))
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)
        conflicts += not torch.allclose(ours, gradients.sum(0))
    assert conflicts > 10


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_mgda_is_torchjds_and_the_shortest_vector(tasks):
    for seed in range(15):
        gradients = random_gradients(tasks, 6, seed)
        theirs = MGDA(epsilon=1e-9, max_iters=1500)(gradients)
        ours = mgda(gradients, steps=1500)
        scale = gradients.norm(dim=1).max()
        assert (ours - theirs).norm() < 1e-3 * scale
        # Karush, Kuhn, Tucker: no task's gradient has less of the direction than its own length
        assert (gradients @ ours).min() >= ours.square().sum() - 1e-3 * scale**2


def test_mgda_with_two_tasks_has_a_closed_form():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.allclose(mgda(torch.stack([a, b])), torch.tensor([0.3, 0.9]))
    assert torch.allclose(mgda(torch.stack([a, 2 * a])), a)


# The loop


def test_summed_gradients_are_the_plain_loop(model, pictures):
    images, labels = pictures[0].double(), pictures[1].double()
    model.double()
    plain = copy.deepcopy(model)
    settings = {"steps": 8, "learning_rate": 0.01, "generator": generator()}
    history = fit_tasks(model, TASKS, images, labels, combine=lambda g: g.sum(0), **settings)
    settings["generator"] = generator()
    fit(plain, images, labels, loss=weighted_loss(TASKS), **settings)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-10), name
    assert history.losses.shape == (8, 3) and history.cosines.shape == (8,)
    assert history.losses[-1].sum() < history.losses[0].sum()


def test_combine_decides_the_backbones_step_and_leaves_the_heads(model, pictures):
    before = copy.deepcopy(model.state_dict())
    fit_tasks(model, TASKS, *pictures, steps=3, learning_rate=0.01, generator=generator(),
              combine=lambda g: 0 * g[0])  # fmt: skip
    after = model.state_dict()
    # AdamW's weight decay, and BatchNorm's statistics, move without a gradient
    assert torch.allclose(
        after["backbone.block1.0.weight"], before["backbone.block1.0.weight"], rtol=1e-3
    )  # noqa: E501
    assert (after["heads.angle.weight"] - before["heads.angle.weight"]).abs().max() > 0.005


def test_a_batch_without_a_label_and_a_loss_of_nan_are_refused_by_name(model, pictures):
    images, labels = pictures
    settings = {"steps": 3, "learning_rate": 0.01, "combine": lambda g: g.sum(0)}
    labels[:, 3] = NAN
    with pytest.raises(ValueError, match="step 0 has no label at all for the task 'light'"):
        fit_tasks(model, TASKS, images, labels, generator=generator(), **settings)
    for wrong, says in (
        ((images, labels[:4]), f"labels must have a row for each of {len(images)} inputs"),
        ((images * NAN, labels), f"{len(images)} of {len(images)} hold NaN"),
    ):
        with pytest.raises(ValueError, match=says):
            fit_tasks(model, TASKS, *wrong, generator=generator(), **settings)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        fit_tasks(model, TASKS, images, labels, generator=generator(), **settings | {"steps": 0})
    labels[:, 3] = float("inf")
    with pytest.raises(ValueError, match="loss of the task 'light' is inf at step 0"):
        fit_tasks(model, TASKS, images, labels, generator=generator(), **settings)


def test_tasks_heads_and_labels_must_belong_together(model, pictures):
    labels = {"garment": torch.zeros(3), "angle": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match="labels must be those of the tasks"):
        pack_labels(TASKS, labels)
    with pytest.raises(ValueError, match=r"labels of 'angle' must be \(3, 2\), got \(3, 1\)"):
        pack_labels(TASKS, labels | {"angle": torch.zeros(3), "light": torch.zeros(3)})
    with pytest.raises(ValueError, match="but heads are"):
        task_losses(TASKS[:2], model(pictures[0]), pictures[1])
    with pytest.raises(ValueError, match="weights must be one for each"):
        weighted_loss(TASKS, {"garment": 1.0})
    with pytest.raises(ValueError, match="tasks must have different names"):
        MultiTaskModel(SmallCNN(2, seed=0), [TASKS[0], TASKS[0]], seed=0)


# What it costs


def test_costs_are_the_hand_count(model):
    images = torch.rand(8, 1, 28, 28, generator=generator())
    single = SmallCNN(7, seed=0)
    costs, alone = count_costs(model, images), count_costs(single, images)
    # the same backbone, and heads of together seven outputs: the same work to the letter
    assert costs.parameters == alone.parameters == sum(p.numel() for p in single.parameters())
    assert costs.operations == alone.operations
    maps = [(8, 1, 9, 7), (16, 8, 9, 4), (32, 16, 9, 2)]  # out, in, kernel, side
    convolutions = sum(2 * 8 * out * i * k * side**2 for out, i, k, side in maps)
    assert alone.operations == convolutions + 2 * 8 * (128 * 32 + 32 * 7)
    assert 2 < costs.training_operations / costs.operations < 3
    larger = count_costs(model, torch.cat([images, images])).activation_bytes
    assert 1.9 < larger / costs.activation_bytes <= 2
    assert costs.checkpoint_bytes >= 4 * costs.parameters
    assert all(p.grad is None for p in model.parameters())
