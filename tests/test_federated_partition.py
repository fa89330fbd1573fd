import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, loggamma

from mlguide.federated import partition


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixes(parts: list[torch.Tensor], labels: torch.Tensor) -> np.ndarray:
    """Share of each class with each client, (clients, classes)."""
    counts = [torch.bincount(labels[mine], minlength=int(labels.max()) + 1) for mine in parts]
    table = torch.stack(counts).double()
    return (table / table.sum(1, keepdim=True)).numpy()


LABELS = torch.arange(4000) % 10


@given(n=st.integers(1, 60), clients=st.integers(1, 60), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_iid_deals_every_example_once(n: int, clients: int, seed: int):
    if clients > n:
        with pytest.raises(ValueError, match=f"clients must be 1 to {n}"):
            partition.iid(n, clients, generator(seed))
        return
    parts = partition.iid(n, clients, generator(seed))
    assert len(parts) == clients
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_shards_hold_few_classes_and_no_example_twice(per_client: int):
    parts = partition.shards(LABELS, 40, generator(1), per_client=per_client)
    everything = torch.cat(parts).tolist()
    assert len(set(everything)) == len(everything) == 4000
    assert {len(mine) for mine in parts} == {100}
    # 40 x per_client shards cut 10 classes of equal size evenly: a shard holds one class
    assert ((mixes(parts, LABELS) > 0).sum(1) <= per_client).all()


def test_shards_leave_out_what_does_not_fill_one():
    parts = partition.shards(torch.zeros(11, dtype=torch.int64), 2, generator(), per_client=2)
    assert [len(mine) for mine in parts] == [4, 4]


@pytest.mark.parametrize("alpha", [100.0, 1.0, 0.1, 1e-4])
def test_dirichlet_gives_each_as_many_and_no_example_twice(alpha: float):
    parts = partition.dirichlet(LABELS, 30, alpha, generator(2))
    everything = torch.cat(parts).tolist()
    assert len(set(everything)) == len(everything)
    assert {len(mine) for mine in parts} == {133}


def test_dirichlet_mixes_have_the_spread_of_the_distribution():
    """A share's variance is p (1 - p) / (alpha + 1), for few clients, who find all classes left;
    drawing n examples adds its own p (1 - p) (1 - 1 / (alpha + 1)) / n."""
    labels = torch.arange(100_000) % 4
    for alpha in (0.3, 3.0, 30.0):
        draws = [mixes(partition.dirichlet(labels, 1000, alpha, generator(s))[:30], labels)
                 for s in range(5)]  # fmt: skip
        found = np.concatenate(draws).var()
        expected = 0.25 * 0.75 * (1 / (alpha + 1) + alpha / (alpha + 1) / 100)
        assert found == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("shape", [0.02, 0.3, 1.0, 7.0])
def test_gamma_draws_are_scipys_distribution(shape: float):
    draws = partition._log_gamma_draws(torch.full((20_000,), shape).double(), generator())
    # of scipy's Gamma the logarithm, since small shapes have draws too small for a number
    assert kstest(draws.numpy(), loggamma(shape).cdf).pvalue > 0.01


def test_dirichlet_follows_unequal_classes():
    labels = torch.cat([torch.zeros(3000), torch.ones(1000)]).long()
    parts = partition.dirichlet(labels, 10, 1e4, generator(3))
    # but the last, who get what the others left
    assert mixes(parts, labels)[:7, 0] == pytest.approx(0.75, abs=0.08)


def test_the_same_seed_deals_the_same():
    for deal in (
        lambda g: partition.iid(100, 7, g),
        lambda g: partition.shards(LABELS, 7, g),
        lambda g: partition.dirichlet(LABELS, 7, 0.5, g),
    ):
        one, same, other = deal(generator(1)), deal(generator(1)), deal(generator(2))
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="alpha must be above 0, got 0"):
        partition.dirichlet(LABELS, 10, 0, generator())
    with pytest.raises(ValueError, match="shards must be 1 to 10"):
        partition.shards(LABELS[:10], 8, generator())
    with pytest.raises(ValueError, match="clients must be 1 to 10"):
        partition.dirichlet(LABELS[:10], 0, 1.0, generator())
