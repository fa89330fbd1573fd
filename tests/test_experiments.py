import copy
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats

from mlguide import experiments
from mlguide.experiments import claim, fit_many, interval, prove, record, t_quantile, tune
from mlguide.models import SmallCNN
from mlguide.training import fit
from mlguide.transfer import freeze

CLAIM = "application/vnd.mlguide.claim+json"


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 29, 199])
def test_the_quantile_is_scipys(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_the_interval_is_scipys():
    values = np.random.default_rng(0).normal(3, 2, 10)
    expected = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    estimate = interval(values)
    assert (estimate.low, estimate.high) == pytest.approx(expected, rel=1e-6)
    assert estimate.mean == pytest.approx(values.mean()) and estimate.seeds == 10
    assert interval(torch.tensor(values)) == interval(list(values)) == estimate


def test_the_interval_covers_the_truth_in_about_95_of_100_cases():
    draws = np.random.default_rng(0).normal(1, 1, (2000, 5))
    inside = [e.low <= 1 <= e.high for e in map(interval, draws)]
    assert 0.935 < np.mean(inside) < 0.965


@pytest.mark.parametrize("values", [[1.0], 1.0, [1.0, float("nan")]])
def test_no_interval_without_spread(values):
    with pytest.raises(ValueError, match="values must"):
        interval(values)


def test_estimates_print_with_their_spread():
    estimate = interval([0.5, 0.6, 0.7])
    assert str(estimate) == "0.600 ± 0.248" and f"{estimate:+}" == "+0.600 ± 0.248"
    assert f"{interval([-0.0004, 0.0]):+}" == "+0.000 ± 0.003"


def turn(images, generator):
    return torch.rot90(images, int(torch.randint(4, (1,), generator=generator)), (2, 3))


@pytest.mark.parametrize("transform", [None, turn])
@pytest.mark.parametrize("frozen", [(), ("backbone.block1", "backbone.block2")])
def test_many_at_once_get_the_weights_that_one_by_one_gives_them(transform, frozen):
    images = torch.rand(3, 40, 1, 28, 28, generator=generators([9])[0], dtype=torch.float64)
    labels = torch.stack([(torch.arange(40) + shift) % 4 for shift in range(3)])
    together = [SmallCNN(4, seed=seed).double() for seed in range(3)]
    for model in together:
        if frozen:
            freeze(model, *frozen)
    alone = copy.deepcopy(together)
    settings = {"steps": 12, "learning_rate": 0.01, "batch_size": 8, "transform": transform}
    fit_many(together, images, labels, generators=generators(range(3)), **settings)
    for model, x, y, g in zip(alone, images, labels, generators(range(3)), strict=True):
        fit(model, x, y, generator=g, **settings)
    for one, other in zip(alone, together, strict=True):
        for name, value in one.state_dict().items():
            assert torch.allclose(value, other.state_dict()[name], atol=1e-10), name
    assert not torch.allclose(together[0].head.weight, together[1].head.weight)


def test_as_many_rows_as_models():
    images, labels = torch.rand(2, 4, 1, 28, 28), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="got 1, 2, 2 and 2"):
        fit_many([SmallCNN(2, seed=0)], images, labels, steps=1, learning_rate=0.1,
                 generators=generators(range(2)))  # fmt: skip
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        fit_many([SmallCNN(2, seed=0)], images[:1], labels[:1], steps=0, learning_rate=0.1,
                 generators=generators(range(1)))  # fmt: skip
    with pytest.raises(ValueError, match="all their parameters are frozen"):
        models = [freeze(SmallCNN(2, seed=seed)) for seed in range(2)]
        fit_many(models, images, labels, steps=1, learning_rate=0.1,
                 generators=generators(range(2)))  # fmt: skip


class Shown(NamedTuple):
    data: dict
    metadata: dict


def shown(make):
    """The one output that `make` displays."""
    with patch("IPython.display.display") as display:
        make()
    display.assert_called_once()
    (data,), options = display.call_args
    assert options["raw"]
    return Shown(data, options["metadata"])


GAIN, NONE, LOSS = [0.19, 0.2, 0.21], [-0.1, 0.0, 0.1], [-0.21, -0.2, -0.19]


@pytest.mark.parametrize(
    ("effect", "unless", "verdict"),
    [
        (GAIN, {}, "holds"),
        (GAIN, {"later": GAIN}, "holds"),
        (GAIN, {"later": NONE}, "holds when"),
        (GAIN, {"now": GAIN, "later": LOSS}, "holds when"),
        (NONE, {"later": GAIN}, "fails here"),
        (LOSS, {}, "fails here"),
    ],
)
def test_the_verdict_follows_from_the_data_alone(effect, unless, verdict):
    output = shown(lambda: claim("T9", "so it is", effect, unless=unless, page_says=verdict))
    assert output.data[CLAIM]["verdict"] == verdict
    assert output.data["text/plain"].startswith(f"[T9] {verdict}: effect ")
    for other in {"holds", "holds when", "fails here"} - {verdict}:
        with pytest.raises(AssertionError, match=f"the page says that T9 '{other}'"):
            claim("T9", "so it is", effect, unless=unless, page_says=other)


def test_a_claim_is_one_line_that_glue_finds_and_a_record():
    output = shown(
        lambda: claim("T1", "Transfer gains", GAIN, when="labels are few",
                      unless={"with 500 labels:": NONE}, page_says="holds when")
    )  # fmt: skip
    assert output.data["text/plain"] == (
        "[T1] holds when labels are few: effect +0.200 (95% interval +0.175 to +0.225, 3 seeds). "
        "Does not hold: with 500 labels: effect +0.000 (95% interval -0.248 to +0.248, 3 seeds)"
    )
    assert output.metadata["scrapbook"] == {"name": "T1", "mime_prefix": ""}
    recorded = output.data[CLAIM]
    assert recorded["statement"] == "Transfer gains" and recorded["when"] == "labels are few"
    assert recorded["effect"]["mean"] == pytest.approx(0.2) and recorded["effect"]["seeds"] == 3
    assert recorded["unless"]["with 500 labels:"]["low"] < 0


def test_a_proof_names_what_was_checked_and_refuses_what_is_not_so():
    output = shown(lambda: prove("T2", "Kept", {"all equal": True, "head changed": True}))
    assert output.data["text/plain"] == "[T2] holds: proved (all equal; head changed)"
    assert output.data[CLAIM]["kind"] == "proved"
    with pytest.raises(AssertionError, match="T2 is not proved: head changed"):
        prove("T2", "Kept", {"all equal": True, "head changed": False})
    with pytest.raises(ValueError, match="at least one"):
        prove("T2", "Kept", {})


def test_a_record_is_what_glue_reads():
    output = shown(lambda: record("gain", interval([0.5, 0.6, 0.7])))
    assert output.data == {"application/papermill.record/text/plain": "0.600 ± 0.248"}
    assert output.metadata["scrapbook"]["name"] == "gain"


def test_tuning_takes_the_best_mean_and_the_first_of_equals():
    scores = {"a": [0.5, 0.9], "b": [0.8, 0.8], "c": [0.8, 0.8]}
    assert (
        tune(lambda candidate, seeds: [scores[candidate][s] for s in seeds], "abc", [0, 1]) == "b"
    )
    assert tune(lambda candidate, seeds: [scores[candidate][s] for s in seeds], "abc", [1]) == "a"
    for candidates, seeds in (("", [0]), ("ab", [])):
        with pytest.raises(ValueError, match="must not be empty"):
            tune(lambda candidate, seeds: [0.0], candidates, seeds)


def test_over_seeds_stacks_what_each_seed_gives():
    assert experiments.over_seeds(lambda seed: [seed, 2 * seed], [1, 3]).tolist() == [
        [1, 2],
        [3, 6],
    ]


def test_another_loss_takes_its_own_labels_one_by_one_and_at_once():
    images = torch.rand(2, 20, 1, 28, 28, generator=generators([9])[0], dtype=torch.float64)
    angles = torch.rand(2, 20, 3, generator=generators([8])[0], dtype=torch.float64)
    together = [SmallCNN(3, seed=seed).double() for seed in range(2)]
    alone = copy.deepcopy(together)
    settings = {"steps": 5, "learning_rate": 0.01, "loss": torch.nn.functional.mse_loss}
    fit_many(together, images, angles, generators=generators(range(2)), **settings)
    for model, x, y, g in zip(alone, images, angles, generators(range(2)), strict=True):
        losses = fit(model, x, y, generator=g, **settings).losses
        assert losses[-1] < losses[0]
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.head.weight, other.head.weight, atol=1e-10)
    with pytest.raises(ValueError, match="a row for each of 20 inputs"):
        fit(alone[0], images[0], angles[0][:9], generator=generators([0])[0], **settings)
