"""The comparison must keep the test out of every choice, and a saved network must be the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from mlguide import data, own_data
from mlguide.data import Pictures
from mlguide.own_data import METHODS, Comparison, fold_interval, make_folds


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coloured(per_class: int, classes: int = 2, side: int = 32) -> Pictures:
    """Pictures whose class is their colour, with noise: easy for everyone."""
    labels = torch.arange(classes).repeat(per_class)
    colours = torch.rand(classes, 3, 1, 1, generator=seeded(1))
    noise = torch.rand(len(labels), 3, side, side, generator=seeded(2)) - 0.5
    images = (colours[labels] + 0.3 * noise).clamp(0, 1)
    return Pictures(images, labels, tuple(f"class {c}" for c in range(classes)))


# --- folds --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(20, 120))
def test_no_group_is_torn(seed: int, folds: int, n: int):
    labels = torch.randint(0, 4, (n,), generator=seeded(seed))
    groups = torch.randint(0, n // 2, (n,), generator=seeded(seed + 1))
    if len(groups.unique()) < folds:
        return
    fold_of = make_folds(labels, groups, folds, seeded(seed))
    assert fold_of.shape == (n,) and fold_of.unique().tolist() == list(range(folds))
    for group in groups.unique():
        assert len(fold_of[groups == group].unique()) == 1


def test_classes_are_spread_evenly():
    labels = torch.tensor([0] * 50 + [1] * 23 + [2] * 2)
    fold_of = make_folds(labels, torch.arange(75), 5, seeded(0))
    counts = torch.stack([torch.bincount(fold_of[labels == c], minlength=5) for c in range(3)])
    assert (counts.amax(1) - counts.amin(1)).max() <= 1
    assert set(torch.bincount(fold_of).tolist()) <= {14, 15, 16}
    assert not torch.equal(fold_of, make_folds(labels, torch.arange(75), 5, seeded(1)))


@pytest.mark.parametrize("folds", [1, 4])
def test_too_few_groups_are_refused(folds: int):
    with pytest.raises(ValueError, match="folds must be 2 to 3, the number of groups"):
        make_folds(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 2]), folds, seeded(0))


def test_interval_is_nadeau_and_bengios():
    values = np.array([0.90, 0.80, 0.85, 0.95, 0.70])
    found = fold_interval(values)
    t = 2.7764451  # of Student with 4 degrees of freedom, 97.5%
    half = t * (values.var(ddof=1) * (1 / 5 + 1 / 4)) ** 0.5
    assert found.mean == pytest.approx(0.84) and found.seeds == 5
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-4)


def test_the_corrected_interval_covers_where_the_usual_one_does_not():
    """A classifier by nearest mean on noise; the truth is its mean accuracy over new data."""
    generator, covered, usual = seeded(0), 0, 0
    truth: list[float] = []
    intervals = []
    for _ in range(150):
        x = torch.randn(40, 5, generator=generator)
        y = torch.arange(40) % 2
        x[:, 0] += 0.8 * y
        fold_of = make_folds(y, torch.arange(40), 5, generator)
        scores = []
        for fold in range(5):
            test = fold_of == fold
            middles = torch.stack([x[~test & (y == c)].mean(0) for c in (0, 1)])
            scores.append(
                (torch.cdist(x[test], middles).argmin(1) == y[test]).double().mean().item()
            )
        truth.append(float(np.mean(scores)))
        spread = 2.7764451 * np.std(scores, ddof=1) / 5**0.5
        intervals.append((fold_interval(scores), spread))
    middle = float(np.mean(truth))
    covered = np.mean([i.low <= middle <= i.high for i, _ in intervals])
    usual = np.mean([abs(i.mean - middle) <= spread for i, spread in intervals])
    assert usual < covered and covered >= 0.93


def test_balanced_accuracy_counts_classes_alike():
    labels, answers = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 0, 1])
    assert own_data.balanced_accuracy(answers, labels) == 0.5


# --- the comparison -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared() -> tuple[Pictures, Comparison, list[str]]:
    pictures, told = coloured(10), []
    return pictures, own_data.cross_validate(pictures, folds=2, steps=2, say=told.append), told


def test_every_picture_is_answered_by_every_method(compared):
    pictures, result, told = compared
    assert list(result.scores) == list(METHODS) == list(result.operations)
    for method in METHODS:
        assert result.answers[method].sum(1).tolist() == pytest.approx([1] * 20, abs=1e-5)
        assert result.scores[method].shape == result.seconds[method].shape == (2,)
        answers = result.answers[method].argmax(1)
        for fold in range(2):
            test = result.fold_of == fold
            right = own_data.balanced_accuracy(answers[test], pictures.labels[test])
            assert right == result.scores[method][fold]
    assert result.scores["head only"].min() > 0.9
    assert len(told) == 2 and told[1].startswith("fold 2 of 2 done after")


def test_more_training_is_more_work(compared):
    operations = compared[1].operations
    order = ["from scratch", "head only", "last 2", "LoRA", "all"]
    assert sorted(operations, key=operations.__getitem__) == order


def only(patch: pytest.MonkeyPatch, *methods: str) -> None:
    patch.setattr(own_data, "METHODS", {method: METHODS[method] for method in methods})
    patch.setattr(own_data, "TUNED", tuple(m for m in own_data.TUNED if m in methods))


def test_the_same_seed_gives_the_same(compared, monkeypatch):
    pictures, result, _ = compared
    only(monkeypatch, "from scratch", "head only", "LoRA")
    again = own_data.cross_validate(pictures, folds=2, steps=2, say=lambda _: None)
    for method in again.answers:
        assert torch.equal(again.answers[method], result.answers[method])


def test_labels_of_the_test_fold_have_no_say(compared):
    pictures, result, _ = compared
    test = result.fold_of == 0
    swapped = torch.where(test, 1 - pictures.labels, pictures.labels)
    # With the same dealing (which looks at labels), other labels of fold 0 must change nothing in
    # what fold 0 is answered.
    with pytest.MonkeyPatch.context() as patch:
        real = own_data.make_folds

        def dealt(labels, groups, folds, generator):
            same = len(labels) == len(test)
            return result.fold_of if same else real(labels, groups, folds, generator)

        patch.setattr(own_data, "make_folds", dealt)
        other = Pictures(pictures.images, swapped, pictures.classes, pictures.groups)
        changed = own_data.cross_validate(other, folds=2, steps=2, say=lambda _: None)
    for method in METHODS:
        assert torch.equal(changed.answers[method][test], result.answers[method][test])
        assert not torch.equal(changed.answers[method][~test], result.answers[method][~test])


@pytest.mark.parametrize("method", ["last 2", "all"])
def test_a_tuned_network_keeps_the_statistics_of_a_million_pictures(method: str):
    pictures = coloured(4)
    views, head = own_data.look_once(pictures.images), torch.nn.Linear(1280, 2)
    net = own_data.train(method, views, pictures.labels, 2, 0.01, head=head, steps=2, seed=0)
    published = own_data._published(2).state_dict()
    if method == "last 2":  # which keep their names
        published = {name: published[name] for name in net.state_dict() if name in published}
    moved = {name for name in published if not torch.equal(net.state_dict()[name], published[name])}
    assert moved and not any("running_" in name for name in moved)


def test_a_class_of_two_and_many_classes_are_compared(monkeypatch):
    only(monkeypatch, "from scratch", "head only", "last 2")
    pictures = coloured(2, classes=30)
    result = own_data.cross_validate(pictures, folds=2, steps=1, say=lambda _: None)
    assert all(np.isfinite(of).all() for of in result.scores.values())
    rare = coloured(8).take(list(range(16)))
    labels = torch.cat([rare.labels, torch.tensor([2, 2])])
    images = torch.cat([rare.images, torch.rand(2, 3, 32, 32, generator=seeded(0))])
    three = Pictures(images, labels, ("a", "b", "c"))
    result = own_data.cross_validate(three, folds=3, steps=1, say=lambda _: None)
    assert all(np.isfinite(of).all() for of in result.scores.values())


def made_up(scores: dict[str, list[float]], work: dict[str, int]) -> Comparison:
    arrays = {name: np.array(of) for name, of in scores.items()}
    return Comparison(torch.zeros(1), {}, arrays, {}, work)


def test_the_least_work_among_the_best_is_chosen():
    work = {"cheap": 1, "middle": 2, "dear": 3}
    scores = {"cheap": [0.2, 0.3, 0.2], "middle": [0.8, 0.7, 0.9], "dear": [0.8, 0.8, 0.85]}
    assert own_data.least_work(made_up(scores, work)) == "middle"
    scores["cheap"] = [0.9, 0.6, 0.9]
    assert own_data.least_work(made_up(scores, work)) == "cheap"
    scores["dear"] = [0.99, 0.98, 0.99]
    assert own_data.least_work(made_up(scores, work)) == "dear"


# --- keeping a network --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return coloured(6)


def ask(path: Path, pictures: Pictures) -> Path:
    pixels = (pictures.images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("method", list(METHODS))
def test_a_saved_network_answers_the_same(tmp_path: Path, pictures: Pictures, method: str):
    made = own_data.train_on_all(method, pictures, steps=2)
    own_data.save(made, tmp_path / "sorter")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sorter.json", "sorter.safetensors"]
    loaded = own_data.load(tmp_path / "sorter")
    file = ask(tmp_path / "a.png", pictures)
    assert loaded(file) == made(file)
    assert list(made(file))[0] == "class 0" and sum(made(file).values()) == pytest.approx(1)
    assert loaded.classes == pictures.classes and loaded.side == 32
    with torch.no_grad():
        assert torch.equal(loaded.network(pictures.images), made.network(pictures.images))


def test_what_a_method_keeps_of_the_backbone(pictures: Pictures):
    published = own_data.EfficientNet(2, seed=0).state_dict()

    def moved(method: str) -> set[str]:
        state = own_data.train_on_all(method, pictures, steps=2).network.state_dict()
        assert state.keys() == published.keys()
        return {n.split(".")[1] for n, v in state.items() if not torch.equal(v, published[n])}

    assert moved("head only") == {"weight", "bias"}
    assert moved("last 2") == {"weight", "bias", "stage7", "features"}
    assert {"stem", "stage1", "stage7"} < moved("LoRA") & moved("all")


def test_an_unknown_method_is_refused(pictures: Pictures):
    with pytest.raises(ValueError, match="method must be one of .*'head only'.* got 'magic'"):
        own_data.train_on_all("magic", pictures)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch):
    made = own_data.Classifier(own_data.colour_net(2, 0).eval(), ("a", "b"), 32)
    own_data.save(made, tmp_path / "sorter")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    for broken in ("save_file", "json.dumps"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mlguide.own_data.{broken}", full)
            with pytest.raises(OSError, match="no space"):
                own_data.save(own_data.Classifier(own_data.colour_net(2, 1), ("a", "b"), 32),
                              tmp_path / "sorter")  # fmt: skip
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    for seed in (0, 1):
        made = own_data.Classifier(own_data.colour_net(2, seed).eval(), ("a", "b"), 32)
        own_data.save(made, tmp_path / f"sorter{seed}")
    (tmp_path / "sorter0.safetensors").write_bytes((tmp_path / "sorter1.safetensors").read_bytes())
    with pytest.raises(ValueError, match="sorter0.safetensors is not the file that sorter0.json"):
        own_data.load(tmp_path / "sorter0")
    about = tmp_path / "sorter1.json"
    told = json.loads(about.read_text())
    about.write_text(json.dumps(told | {"network": "os.system"}))
    with pytest.raises(ValueError, match="network is 'os.system', none of"):
        own_data.load(tmp_path / "sorter1")
    about.write_text("{}")
    with pytest.raises(ValueError, match="sorter1.json is not what save writes"):
        own_data.load(tmp_path / "sorter1")
    load_file(tmp_path / "sorter1.safetensors")


def test_a_name_with_a_dot_keeps_it(tmp_path: Path):
    made = own_data.Classifier(own_data.colour_net(2, 0).eval(), ("a", "b"), 32)
    own_data.save(made, tmp_path / "sorter.v2")
    assert own_data.load(tmp_path / "sorter.v2").classes == ("a", "b")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    made = own_data.Classifier(own_data.colour_net(2, 0).eval(), ("a", "b"), 32)
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(ValueError, match="no.png"):
        made(tmp_path / "no.png")


def test_the_whole_way_on_the_bundled_photographs():
    few = data.few_labels(data.photographs(), 6, seeded(0))
    small = torch.nn.functional.interpolate(few.images, size=64, mode="area")
    features = own_data.look_once(small)["head only"]
    fold_of = make_folds(few.labels, few.groups, 3, seeded(0))
    scores = []
    for fold in range(3):
        test = fold_of == fold
        head = own_data.linear_probe(features[~test], few.labels[~test], 4)
        scores.append(own_data.balanced_accuracy(head(features[test]).argmax(1), few.labels[test]))
    assert np.mean(scores) > 0.6
