import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mlguide.experiments import fit_many
from mlguide.finetuning import (
    bitfit,
    block_names,
    fisher,
    gradual_unfreezing,
    l2_sp,
    load_checkpoint,
    lora,
    merge,
    parameter_groups,
    probe_head,
    probe_then_tune,
    save_checkpoint,
    trained_parameters,
    unfreeze,
    unfreeze_last,
    unload,
    unmerge,
)
from mlguide.models import EfficientNet, SmallCNN
from mlguide.training import adamw, evaluate, fit
from mlguide.transfer import extract_features, freeze, linear_probe

BLOCKS = ["backbone.block1", "backbone.block2", "backbone.block3", "backbone.features"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures():
    return torch.rand(40, 1, 28, 28, generator=generator()), torch.arange(40) % 4


@pytest.fixture
def model():
    return SmallCNN(4, seed=0)


def state(model):
    return copy.deepcopy(model.state_dict())


def train(model, pictures, steps=5, learning_rate=0.05, **settings):
    return fit(
        model, *pictures, steps=steps, learning_rate=learning_rate, generator=generator(),
        **settings,
    )  # fmt: skip


def layers(names):
    """The parts of a network that tensors belong to: the head, or a block of the backbone."""
    return {".".join(n.split(".")[:2]) if n.startswith("backbone") else "head" for n in names}


def test_the_blocks_are_those_with_parameters(model):
    assert block_names(model) == BLOCKS


@pytest.mark.parametrize("blocks", range(5))
def test_only_the_last_blocks_change_with_their_statistics(model, pictures, blocks):
    before = state(model)
    train(unfreeze_last(model, blocks), pictures)
    changed = trained_parameters(model, before)
    assert layers(changed) == {"head", *BLOCKS[4 - blocks :]}
    moved = {name for name in before if name.endswith("running_mean") and name in changed}
    assert layers(moved) == set(BLOCKS[:3][max(0, 4 - blocks) :])


@pytest.mark.parametrize("blocks", [-1, 5])
def test_a_depth_out_of_range_is_refused(model, blocks):
    with pytest.raises(ValueError, match=f"blocks must be 0 to 4, .*; got {blocks}"):
        unfreeze_last(model, blocks)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_unfrozen_trains_as_if_it_had_never_been_frozen(model, pictures):
    other = copy.deepcopy(model)
    train(unfreeze(freeze(freeze(other), "backbone")), pictures)
    train(model, pictures)
    assert trained_parameters(other, model.state_dict()) == {}


def test_an_unknown_layer_is_refused(model):
    with pytest.raises(ValueError, match="'backbone.block9' is none of backbone"):
        unfreeze(model, "backbone.block9")


def test_gradual_unfreezing_adds_a_block_at_a_time_from_the_top(model, pictures):
    seen, schedule = [], gradual_unfreezing(model, every=2)

    def before_step(step):
        schedule(step)
        seen.append(layers(n for n, p in model.named_parameters() if p.requires_grad))

    groups = parameter_groups(model, 0.05, decay=1.0)
    before = state(model)
    train(model, pictures, steps=4, before_step=before_step, learning_rate=groups)
    assert seen == [{"head"}] * 2 + [{"head", "backbone.features"}] * 2
    assert layers(trained_parameters(model, before)) == {"head", "backbone.features"}
    train(model, pictures, steps=12, before_step=before_step, learning_rate=groups)
    assert seen[-1] == {"head", *BLOCKS}
    assert layers(trained_parameters(model, before)) == {"head", *BLOCKS}
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        gradual_unfreezing(model, every=0)


def test_each_block_has_its_learning_rate(model, pictures):
    groups = parameter_groups(model, 0.08, decay=0.5)
    assert [group["lr"] for group in groups] == [0.08, 0.04, 0.02, 0.01, 0.005]
    assert [layers(n for n, _ in group["params"]) for group in groups] == [
        {"head"}, *({name} for name in reversed(BLOCKS))
    ]  # fmt: skip
    everything = {name for group in groups for name, _ in group["params"]}
    assert everything == {name for name, _ in model.named_parameters()}
    before = state(model)
    train(model, pictures, steps=1, learning_rate=groups)  # AdamW's first step is the rate
    for group in groups:
        for name, p in group["params"]:
            step = (p - before[name]).abs().max().item()
            assert step == pytest.approx(group["lr"], rel=0.05), name


def test_one_rate_for_all_is_what_groups_of_one_rate_give(model, pictures):
    other = copy.deepcopy(model)
    train(model, pictures, learning_rate=0.03)
    train(other, pictures, learning_rate=parameter_groups(other, 0.03, decay=1.0))
    assert trained_parameters(other, model.state_dict()) == {}


@pytest.mark.parametrize(("rate", "decay"), [(0, 0.5), (0.1, 0), (0.1, 1.5)])
def test_rates_that_make_no_sense_are_refused(model, rate, decay):
    with pytest.raises(ValueError, match=f"got {rate} and {decay}"):
        parameter_groups(model, rate, decay=decay)


def test_a_parameter_without_a_group_is_refused(model):
    groups = parameter_groups(model, 0.1, decay=1.0)[1:]
    with pytest.raises(ValueError, match="no group for head.bias, head.weight"):
        adamw(dict(model.named_parameters()), groups)


def test_the_probed_head_is_the_linear_probe_and_all_else_is_kept(model, pictures):
    before = state(model)
    probe_head(model, *pictures, penalty=3.0)
    features = extract_features(model.backbone, pictures[0])
    expected = linear_probe(features, pictures[1], 4, penalty=3.0)
    assert torch.equal(model.head.weight, expected.weight)
    assert layers(trained_parameters(model, before)) == {"head"}


def test_tuning_starts_from_the_probe(model, pictures):
    settings = {"steps": 6, "learning_rate": 0.01}
    other = copy.deepcopy(model)
    freeze(model, "backbone")
    probe_then_tune(model, *pictures, penalty=2.0, generator=generator(), **settings)
    fit(probe_head(other, *pictures, penalty=2.0), *pictures, generator=generator(), **settings)
    assert trained_parameters(other, model.state_dict()) == {}
    assert not torch.equal(
        model.backbone.block1[0].weight, SmallCNN(4, seed=0).backbone.block1[0].weight
    )  # noqa: E501


def test_bitfit_changes_biases_and_the_head_alone(model, pictures):
    before = state(model)
    train(bitfit(model), pictures)
    changed = trained_parameters(model, before)
    assert set(changed) == {n for n in before if n.endswith("bias") or n.startswith("head")}


# LoRA, and the library that does it for real


def peft_of(model, rank, alpha):
    """PEFT's LoRA on a copy of `model`, with the adapters of `model`, which has ours."""
    plain = unload(copy.deepcopy(model))
    unfreeze(plain)
    names = [n for n, m in plain.named_modules()
             if n.startswith("backbone") and isinstance(m, nn.Conv2d | nn.Linear)]  # fmt: skip
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, modules_to_save=["head"])
    theirs = get_peft_model(plain, config)
    for name, part in theirs.base_model.model.named_modules():
        if hasattr(part, "lora_A"):
            ours = model.get_submodule(name)
            part.lora_A["default"].weight.data.copy_(ours.down.weight)
            part.lora_B["default"].weight.data.copy_(ours.up.weight)
    return theirs


@pytest.fixture
def adapted(model, pictures):
    """A network whose LoRAs have learned something, in float64."""
    lora(model.double(), rank=3, alpha=6, seed=1)
    train(model, (pictures[0].double(), pictures[1]), steps=8)
    return model


def test_lora_is_pefts_forward_gradient_and_merge(adapted, pictures):
    images, labels = pictures[0].double(), pictures[1]
    theirs = peft_of(adapted, rank=3, alpha=6).eval()
    adapted.eval()
    assert torch.allclose(adapted(images), theirs(images), atol=1e-12)
    for network in (adapted, theirs):
        network.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
    for name, part in theirs.base_model.model.named_modules():
        if hasattr(part, "lora_A"):
            ours = adapted.get_submodule(name)
            pairs = ((ours.down, part.lora_A["default"]), (ours.up, part.lora_B["default"]))
            for one, other in pairs:
                assert one.weight.grad.abs().sum() > 0
                assert torch.allclose(one.weight.grad, other.weight.grad, atol=1e-12), name
    merged, unwrapped = unload(merge(adapted)), theirs.merge_and_unload()
    for name, part in unwrapped.backbone.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            ours = merged.backbone.get_submodule(name).weight
            assert torch.allclose(ours, part.weight, atol=1e-12), name
    assert [n for n, _ in merged.named_modules()] == [
        n for n, _ in SmallCNN(4, seed=0).named_modules()
    ]  # noqa: E501


def test_a_new_lora_is_drawn_as_pefts_is(model):
    """Zero product, and first weights from the same distribution as PEFT's."""
    lora(model, rank=8, seed=0)
    theirs = peft_of(model, rank=8, alpha=8)
    fresh = get_peft_model(
        SmallCNN(4, seed=0), LoraConfig(r=8, lora_alpha=8, target_modules=["backbone.features.1"])
    ).base_model.model.backbone.features[1]
    ours = model.backbone.features[1]
    assert theirs is not None and torch.equal(ours.up.weight, torch.zeros(32, 8))
    a, b = ours.down.weight, fresh.lora_A["default"].weight
    assert a.shape == b.shape
    assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=0.02)
    assert a.std().item() == pytest.approx(b.std().item(), rel=0.1)


def test_a_new_lora_changes_nothing_and_trains_its_own_weights_alone(model, pictures):
    with torch.no_grad():
        expected = model.eval()(pictures[0])
    lora(model, rank=2, seed=0)
    with torch.no_grad():
        assert torch.equal(model(pictures[0]), expected)
    before = state(model)
    train(model, pictures)
    changed = trained_parameters(model, before)
    assert all(".down." in name or ".up." in name or "head" in name for name in changed)
    assert len(changed) == 2 * 4 + 2


def test_merging_keeps_the_answers_and_unmerging_the_bits(adapted, pictures):
    images = pictures[0].double()
    before = state(adapted)
    with torch.no_grad():
        expected = adapted(images)
        assert torch.allclose(merge(adapted)(images), expected, atol=1e-12)
        assert torch.allclose(merge(adapted)(images), expected, atol=1e-12)  # twice is once
        assert not torch.equal(
            adapted.backbone.block1[0].layer.weight, before["backbone.block1.0.layer.weight"]
        )  # noqa: E501
        assert torch.equal(unmerge(unmerge(adapted))(images), expected)
    assert trained_parameters(adapted, before) == {}


def test_taken_off_unmerged_the_old_backbone_is_back(adapted):
    base = SmallCNN(4, seed=0).double()
    unload(adapted)
    weights = {n: v for n, v in base.backbone.state_dict().items() if "num" not in n}
    assert trained_parameters(adapted.backbone, weights | adapted.backbone.state_dict()) == {}
    assert trained_parameters(adapted.backbone, base.backbone.state_dict()) == {}


def test_lora_on_some_layers_of_the_pretrained_backbone():
    model = EfficientNet(3, seed=0).eval()
    images = torch.rand(2, 3, 64, 64, generator=generator())
    with torch.no_grad():
        expected = model(images)
        lora(model, rank=4, seed=0, layers=("backbone.stem.0", "backbone.features.0"))
        assert torch.equal(model(images), expected)
        for name in ("stem", "features"):
            model.get_submodule(f"backbone.{name}.0.up").weight += 1
        changed = model(images)
        assert (changed - expected).abs().max() > 1e-2
        assert torch.allclose(unload(merge(model))(images), changed, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 9}, "rank must be 1 to 8, the full rank of backbone.block1.0; got 9"),
        ({"rank": 0}, "rank must be 1 to 8, .* got 0"),
        ({"rank": 2, "layers": ("head",)}, "'head' is none of backbone.block1.0"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_and_nothing_changes(model, settings, says):
    with pytest.raises(ValueError, match=says):
        lora(model, seed=0, **settings)
    assert all(p.requires_grad for p in model.parameters())


# Holding on


def test_l2_sp_is_the_squared_distance_and_pulls_back(model, pictures):
    start = {n: p for n, p in model.backbone.named_parameters(prefix="backbone")}
    moved = {n: p + 2 for n, p in start.items()} | {"head.bias": torch.ones(4)}
    count = sum(p.numel() for p in start.values())
    assert l2_sp(start, 0.5)(moved).item() == pytest.approx(0.25 * 4 * count, rel=1e-5)
    only = {n: torch.zeros_like(p) for n, p in start.items()}
    only["backbone.block1.1.bias"] += 3
    assert l2_sp(start, 2.0, importance=only)(moved).item() == pytest.approx(3 * 4 * 8)
    free, held = copy.deepcopy(model), copy.deepcopy(model)
    train(free, pictures, steps=20)
    train(held, pictures, steps=20, penalty=l2_sp(start, 1.0))

    def distance(network):
        pairs = zip(network.backbone.parameters(), model.backbone.parameters(), strict=True)
        return sum((a - b).square().sum().item() for a, b in pairs)

    assert distance(held) < distance(free) / 3
    with pytest.raises(ValueError, match="strength must not be negative"):
        l2_sp(start, -1)
    # names of the backbone alone would hold nothing back, silently
    with pytest.raises(ValueError, match=r"start must name what is trained, \['head.bias'\]"):
        l2_sp(dict(model.backbone.named_parameters()), 1.0)({"head.bias": torch.ones(4)})


def test_many_at_once_get_the_weights_of_one_by_one_with_groups_and_penalty(pictures):
    images = pictures[0].double().expand(3, -1, -1, -1, -1)
    labels = pictures[1].expand(3, -1)
    together = [SmallCNN(4, seed=seed).double() for seed in range(3)]
    alone = copy.deepcopy(together)
    stacked, _ = torch.func.stack_module_state(copy.deepcopy(together))
    settings = {"steps": 8, "batch_size": 16}
    fit_many(
        together, images, labels, generators=[generator(s) for s in range(3)], **settings,
        learning_rate=parameter_groups(together[0], 0.02, decay=0.5), penalty=l2_sp(stacked, 0.3),
    )  # fmt: skip
    for seed, model in enumerate(alone):
        fit(
            model, images[seed], labels[seed], generator=generator(seed), **settings,
            learning_rate=parameter_groups(model, 0.02, decay=0.5),
            penalty=l2_sp(dict(model.named_parameters()), 0.3),
        )  # fmt: skip
        for name, value in model.state_dict().items():
            assert torch.allclose(value, together[seed].state_dict()[name], atol=1e-10), name


def test_fisher_is_the_mean_squared_gradient(model, pictures):
    images, labels = pictures[0][:6].double(), pictures[1][:6]
    model.double().eval()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(images, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad**2 / 6
    found = fisher(model, images, labels)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-8), name


# What changed, and keeping it


def test_what_changed_is_counted_number_by_number(model):
    before = state(model)
    with torch.no_grad():
        model.head.weight[0, :5] += 1
        model.backbone.block1[1].running_mean[2] += 1
    assert trained_parameters(model, before) == {
        "head.weight": 5, "backbone.block1.1.running_mean": 1
    }  # fmt: skip


STRATEGIES = {
    "head": lambda model: unfreeze_last(model, 0),
    "last two blocks": lambda model: unfreeze_last(model, 2),
    "everything": unfreeze,
    "biases": bitfit,
    "LoRA": lambda model: lora(model, rank=2, seed=5),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_checkpoint_holds_what_was_trained_and_brings_it_back(tmp_path, pictures, strategy):
    model = strategy(SmallCNN(4, seed=0))
    before = state(model)
    train(model, pictures)
    save_checkpoint(model, tmp_path / "tuned.safetensors")
    again = strategy(SmallCNN(4, seed=0))
    with torch.no_grad():
        again.head.weight.zero_()
    load_checkpoint(again, tmp_path / "tuned.safetensors")
    assert trained_parameters(again, model.state_dict()) == {}
    assert evaluate(again, *pictures) == evaluate(model, *pictures)
    changed = sum(v.numel() * v.element_size() for n, v in model.state_dict().items()
                  if n in trained_parameters(model, before))  # fmt: skip
    size = (tmp_path / "tuned.safetensors").stat().st_size
    assert changed <= size < changed + 3500
    assert [file.name for file in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_a_checkpoint_of_another_network_is_refused(tmp_path, model):
    path = tmp_path / "head.safetensors"
    save_checkpoint(unfreeze_last(model, 0), path)
    other = unfreeze_last(SmallCNN(4, seed=1), 0)
    before = state(other)
    with pytest.raises(ValueError, match="was trained on another backbone"):
        load_checkpoint(other, path)
    for unfit in (unfreeze_last(SmallCNN(4, seed=0), 1), unfreeze_last(SmallCNN(5, seed=0), 0)):
        with pytest.raises(ValueError, match="does not fit the model: .* there, .* here"):
            load_checkpoint(unfit, path)
    drifted = unfreeze_last(SmallCNN(4, seed=0), 0)
    drifted.backbone.block1[1].running_mean += 1e-3
    with pytest.raises(ValueError, match="was trained on another backbone"):
        load_checkpoint(drifted, path)
    assert trained_parameters(other, before) == {}
