"""Every aggregator against an oracle, server optimizers against steps by hand, and the door."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchjd.aggregation import Krum, TrimmedMean

from mlguide.federated import aggregation
from mlguide.federated.client import to_vector, trained_weights
from mlguide.models import MLP


def updates_of(m: int, seed: int = 0, size: int = 9) -> Tensor:
    return torch.randn(m, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alike(m: int) -> Tensor:
    return torch.ones(m, dtype=torch.int64)


SIZES = st.integers(1, 25)
SEEDS = st.integers(0, 99)


@given(m=SIZES, seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_mean_is_numpys_average(m, seed):
    updates = updates_of(m, seed)
    weights = torch.arange(1, m + 1)
    expected = np.average(updates.numpy(), axis=0, weights=weights.numpy())
    assert np.allclose(aggregation.mean(updates, weights).numpy(), expected)


@given(m=SIZES, seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_median_is_numpys(m, seed):
    updates = updates_of(m, seed)
    found = aggregation.median(updates, torch.arange(1, m + 1))
    assert np.allclose(found.numpy(), np.median(updates.numpy(), axis=0))


@given(m=SIZES, seed=SEEDS, fraction=st.floats(0, 0.499))
@settings(max_examples=60, deadline=None)
def test_trimmed_mean_is_scipys_and_torchjds(m, seed, fraction):
    updates = updates_of(m, seed)
    kept = updates.clone()
    found = aggregation.trimmed_mean(fraction)(updates, torch.arange(1, m + 1))
    assert np.allclose(found.numpy(), stats.trim_mean(updates.numpy(), fraction, axis=0))
    assert torch.allclose(found, TrimmedMean(int(fraction * m))(updates))
    assert torch.equal(updates, kept)


def krum_by_loops(updates: np.ndarray, hostile: int, keep: int) -> np.ndarray:
    """Blanchard et al. 2017, section 4, word for word."""
    scores = []
    for i, mine in enumerate(updates):
        far = sorted(((mine - o) ** 2).sum() for j, o in enumerate(updates) if j != i)
        scores.append(sum(far[: len(updates) - hostile - 2]))
    return updates[np.argsort(scores)[:keep]].mean(0)


@given(seed=SEEDS, hostile=st.integers(0, 4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_krum_is_the_papers(seed, hostile, data):
    least = max(2 * hostile + 3, 4)  # of 3, two are each other's only neighbour: a tie
    m = data.draw(st.integers(least, 20))
    keep = data.draw(st.integers(1, m))
    updates = updates_of(m, seed)
    found = aggregation.krum(hostile, keep=keep)(updates, torch.arange(1, m + 1))
    assert np.allclose(found.numpy(), krum_by_loops(updates.numpy(), hostile, keep))


def test_krum_picks_what_torchjds_picks_where_the_honest_stand_together():
    # TorchJD sums distances where the paper sums their squares: alike where it is plain who is far
    for seed in range(20):
        updates = updates_of(20, seed)
        updates[:6] += 30
        found = aggregation.krum(6, keep=14)(updates, alike(20))
        assert torch.allclose(found, updates[6:].mean(0))
        assert torch.allclose(found, Krum(6, 14)(updates))


def test_krum_tells_updates_apart_that_are_nearly_the_same_in_float32():
    updates = (100 + 1e-2 * updates_of(11, 3, size=500)).float()
    updates[0] += 1e-2
    kept = aggregation.krum(2, keep=10)(updates, alike(11))
    assert torch.allclose(kept, updates[1:].mean(0))


def test_a_minority_however_far_cannot_move_the_robust_rules():
    honest = updates_of(13, 1)
    rules = {
        "median": aggregation.median,
        "trimmed mean": aggregation.trimmed_mean(0.3),
        "Krum": aggregation.krum(6),
        "Multi-Krum": aggregation.krum(6, keep=13),
    }
    low, high = honest.min(0).values, honest.max(0).values
    for far in (1e3, -1e30):
        everyone = torch.cat([honest, torch.full((6, 9), far, dtype=torch.float64)])
        for name, rule in rules.items():
            step = rule(everyone, alike(19))
            # TrimmedMean cuts 5 of 19 on each side: one hostile value stays
            inside = (step >= low - 1e-9).all() and (step <= high + 1e-9).all()
            assert inside == (name != "trimmed mean"), name
        enough = aggregation.trimmed_mean(0.32)(everyone, alike(19))
        assert (enough >= low).all() and (enough <= high).all()
        assert aggregation.mean(everyone, alike(19)).abs().min() > high.max()


def test_out_of_range_is_refused():
    for fraction in (-0.1, 0.5):
        with pytest.raises(ValueError, match=f"fraction .* got {fraction}"):
            aggregation.trimmed_mean(fraction)
    with pytest.raises(ValueError, match="krum needs at least 9 updates to resist 3 .* got 8"):
        aggregation.krum(3)(updates_of(8), alike(8))
    with pytest.raises(ValueError, match="krum needs at least 12 updates .* keep 12; got 11"):
        aggregation.krum(3, keep=12)(updates_of(11), alike(11))


def test_momentum_by_hand():
    optimize, state = aggregation.momentum(0.5, 0.8), {}
    steps = [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0])]
    assert torch.allclose(optimize(steps[0], state), torch.tensor([0.5, -1.0]))
    assert torch.allclose(optimize(steps[1], state), 0.5 * torch.tensor([3.8, -1.6]))
    assert torch.equal(steps[0], torch.tensor([1.0, -2.0]))
    assert torch.allclose(optimize(steps[0], {}), torch.tensor([0.5, -1.0]))  # memory is the state


def test_adam_by_hand():
    optimize, state = aggregation.adam(0.1, beta1=0.5, beta2=0.75, tau=0.01), {}
    # first round: mean 0.5 x 2 = 1, square 0.25 x 4 = 1; corrected as the second: t = 2
    rate = 0.1 * (1 - 0.75**2) ** 0.5 / (1 - 0.5**2)
    step = optimize(torch.tensor([2.0, 0.0]), state)
    assert torch.allclose(step, torch.tensor([rate / 1.01, 0.0]))
    # second round: mean 0.5 x 1 + 0.5 x (-1) = 0, then 0.5 x 4 = 2; square 0.75 + 0.25 = 1, 4
    rate = 0.1 * (1 - 0.75**3) ** 0.5 / (1 - 0.5**3)
    step = optimize(torch.tensor([-1.0, 4.0]), state)
    assert torch.allclose(step, torch.tensor([0.0, rate * 2 / 2.01]))


def test_accept_lets_in_the_sound_and_names_the_reason_for_each_other():
    sent = trained_weights(MLP(3, [2], 2, seed=0))

    def answer(change: float = 0.0, **other: Tensor) -> dict[str, Tensor]:
        return {name: w + change for name, w in sent.items()} | other

    head = sent["head.weight"]
    nan, infinite = head.clone(), head.clone()
    nan[0, 1] = torch.nan
    infinite[:, 0] = torch.inf
    less = answer()
    del less["head.bias"]
    answers = {
        "Ada": answer(0.5),
        "Bo": None,
        "Cy": answer(**{"head.weight": nan}),
        "Di": answer(**{"head.weight": infinite}),
        "Ed": answer(**{"head.weight": head.T[:1]}),
        "Flo": less,
        "Gus": answer(extra=head),
        "Hal": dict(reversed(answer(-1.0).items())),  # in another order, but whole
        "Ida": {},
        "Jo": answer(**{"head.weight": head.flatten()}),  # as many numbers, another shape
    }
    names, updates, refused = aggregation.accept(answers, sent)
    assert names == ["Ada", "Hal"]
    expected = torch.tensor([[0.5], [-1.0]]).expand(2, len(to_vector(sent)))
    assert torch.allclose(updates, expected)
    wanted = ["backbone.layer1.0.bias", "backbone.layer1.0.weight", "head.bias", "head.weight"]
    assert refused == {
        "Bo": "no answer",
        "Cy": f"1 of {len(to_vector(sent))} weights are NaN or infinite",
        "Di": f"2 of {len(to_vector(sent))} weights are NaN or infinite",
        "Ed": "head.weight has shape (1, 2), not (2, 2)",
        "Flo": f"weights named {[n for n in wanted if n != 'head.bias']}, not {wanted}",
        "Gus": f"weights named {sorted([*wanted, 'extra'])}, not {wanted}",
        "Ida": f"weights named [], not {wanted}",
        "Jo": "head.weight has shape (4,), not (2, 2)",
    }


def test_accept_with_nobody_gives_an_empty_table():
    sent = trained_weights(MLP(3, [2], 2, seed=0))
    names, updates, refused = aggregation.accept({"Bo": None}, sent)
    assert names == [] and updates.shape == (0, len(to_vector(sent))) and list(refused) == ["Bo"]
