import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from absl import logging
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlguide.federated import client, privacy
from mlguide.federated.simulation import Federation
from mlguide.models import MLP

MNIST = 256 / 60_000  # batch and training pictures, of a tutorial of TensorFlow Privacy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def federation(**settings: Any) -> Federation:
    g = generator()
    clients = [
        (torch.randn(3, 4, generator=g), torch.randint(0, 3, (3,), generator=g)) for _ in range(12)
    ]
    model = MLP(4, [5], 3, seed=0)
    rounds = privacy.private_rounds(clip_norm=0.2, noise_multiplier=1.5, per_round=2, seed=4)
    return Federation(model, clients, learning_rate=0.3, seed=1, **(rounds | settings))


# Clip and noise


def test_only_what_is_longer_is_shortened():
    updates = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-30.0, 40.0]])
    found = privacy.clip(updates, 1.0)
    assert found.tolist() == pytest.approx(
        torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [-0.6, 0.8]])
    )
    assert torch.equal(privacy.clip(updates, math.inf), updates)
    assert torch.isfinite(privacy.clip(torch.full((1, 9), 3e38), 1.0)).all()


@given(m=st.integers(0, 6), seed=st.integers(0, 99), norm=st.floats(0.1, 3), size=st.floats(0, 50))
@settings(max_examples=60, deadline=None)
def test_one_client_moves_the_mean_by_no_more_than_its_share(
    m: int, seed: int, norm: float, size: float
):
    others = torch.randn(m, 8, generator=generator(seed), dtype=torch.float64)
    one = size * torch.randn(1, 8, generator=generator(seed + 1), dtype=torch.float64)
    aggregate = privacy.clipped_mean(norm, 5)
    without = aggregate(others, torch.ones(m))
    with_it = aggregate(torch.cat([others, one]), torch.tensor([1.0] * m + [1000.0]))
    moved = float((with_it - without).norm())
    assert moved <= norm / 5 * (1 + 1e-9)
    assert moved == pytest.approx(min(norm, float(one.norm())) / 5, abs=1e-9)


def test_the_mean_is_by_the_expected_number_and_of_equals():
    updates = torch.eye(4)
    found = privacy.clipped_mean(0.5, 10)(updates, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found.tolist() == pytest.approx([0.05] * 4)
    assert torch.equal(privacy.clipped_mean(0.5, 10)(updates[:0], torch.ones(0)), torch.zeros(4))


def test_noise_has_its_size_and_is_new_each_time():
    add, state = privacy.gaussian_noise(0.7, seed=3), {}
    torch.manual_seed(5)
    draws = torch.stack([add(torch.ones(20_000), state) for _ in range(4)])
    assert draws.std(1).tolist() == pytest.approx([0.7] * 4, rel=0.03)
    assert draws.mean(1).tolist() == pytest.approx([1.0] * 4, abs=0.02)
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.03
    assert int(state["noised"]) == 4
    torch.manual_seed(6)  # the global state has no part in it
    assert torch.equal(privacy.gaussian_noise(0.7, 3)(torch.ones(20_000), {}), draws[0])
    other = privacy.gaussian_noise(0.7, 4)(torch.ones(20_000), {})
    assert abs(torch.corrcoef(torch.stack([other, draws[0]]))[0, 1]) < 0.03
    assert torch.equal(privacy.gaussian_noise(0.0, 3)(torch.ones(5), {}), torch.ones(5))


def test_private_rounds_put_the_noise_on_the_sum():
    made = privacy.private_rounds(clip_norm=0.5, noise_multiplier=4.0, per_round=100, seed=0)
    noise = made["server"](torch.zeros(50_000), {})
    assert float(noise.std()) == pytest.approx(4 * 0.5 / 100, rel=0.02)
    step = made["aggregate"](torch.ones(3, 4), torch.ones(3))
    assert step.tolist() == pytest.approx([3 * 0.25 / 100] * 4)
    assert made["poisson"] is True and made["per_round"] == 100


def test_a_private_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path):
    through, first, second = federation(), federation(), federation()
    through.run(8)
    assert any(not r.answered for r in through.rounds)  # noise without an answer counts too
    first.run(2)
    first.save(tmp_path / "state.safetensors")
    second.load(tmp_path / "state.safetensors")
    second.run(6)
    for name, weight in through.weights.items():
        assert torch.equal(weight, second.weights[name])
    calls = 0

    def interrupting(updates: Tensor, who: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return updates

    cut = federation(uplink=interrupting)
    with pytest.raises(KeyboardInterrupt):
        cut.run(8)
    cut.run(8 - len(cut.rounds))
    assert torch.equal(client.to_vector(cut.weights), client.to_vector(through.weights))


def test_an_empty_round_has_its_noise():
    f = federation(dropout=0.999)
    before = client.to_vector(f.weights)
    f.run(1)
    assert f.rounds[0].answered == []
    moved = client.to_vector(f.weights) - before
    assert float(moved.std()) == pytest.approx(1.5 * 0.2 / 2, rel=0.3)


# Accounting


def theirs(rate: float, noise: float, rounds: int) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(noise)
    sampled = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(sampled, rounds)


CASES = [
    (0.01, 4.0, 10_000, 1e-5),
    (MNIST, 1.1, 14_062, 1e-5),
    (5000 / 763_430, 1.0, 5000, 1e-9),
    (0.1, 2.0, 60, 1e-4),
    (0.1, 4.0, 60, 1e-4),
    (0.5, 3.0, 10, 1e-3),
    (1.0, 5.0, 20, 1e-6),
]


@pytest.mark.parametrize("case", CASES)
def test_epsilon_is_dp_accountings(case: tuple[float, float, int, float]):
    logging.set_verbosity("error")
    accountant = rdp.RdpAccountant()
    accountant.compose(theirs(*case[:3]))
    assert privacy.epsilon(*case) == pytest.approx(accountant.get_epsilon(case[3]), rel=5e-5)
    tighter = pld.PLDAccountant()
    tighter.compose(theirs(*case[:3]))
    assert tighter.get_epsilon(case[3]) < privacy.epsilon(*case)


@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0])
def test_for_little_noise_ours_finds_orders_that_theirs_leaves_out(noise: float):
    logging.set_verbosity("fatal")  # it says that its series did not converge there
    accountant = rdp.RdpAccountant()
    accountant.compose(theirs(0.1, noise, 60))
    tighter = pld.PLDAccountant()
    tighter.compose(theirs(0.1, noise, 60))
    ours = privacy.epsilon(0.1, noise, 60, 1e-4)
    assert tighter.get_epsilon(1e-4) < ours <= accountant.get_epsilon(1e-4)
    whole = list(range(2, 64))
    accountant = rdp.RdpAccountant(orders=whole)
    accountant.compose(theirs(0.1, noise, 60))
    ours = privacy.epsilon(0.1, noise, 60, 1e-4, orders=whole)
    assert ours == pytest.approx(accountant.get_epsilon(1e-4), rel=1e-9)


@given(rate=st.floats(1e-4, 0.99), noise=st.floats(0.3, 8), order=st.integers(2, 80))
@settings(max_examples=80, deadline=None)
def test_at_whole_orders_the_integral_is_mironovs_sum(rate: float, noise: float, order: int):
    k = np.arange(order + 1)
    choose = [math.lgamma(order + 1) - math.lgamma(i + 1) - math.lgamma(order - i + 1) for i in k]
    logs = choose + k * math.log(rate) + (order - k) * math.log1p(-rate)
    logs = logs + (k * k - k) / (2 * noise**2)
    wanted = np.logaddexp.reduce(logs) / (order - 1)
    found = privacy.sampled_gaussian_rdp(rate, noise, order)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_without_sampling_it_is_the_gaussian_mechanism():
    for order in (1.1, 2.0, 7.5, 64.0):
        found = privacy.sampled_gaussian_rdp(1.0, 1.7, order)
        assert found == pytest.approx(order / (2 * 1.7**2), rel=1e-9)


def test_three_published_values():
    # Abadi et al. 2016, section 5; TensorFlow Privacy's tutorial of 2019; McMahan et al. 2018.
    whole = range(2, 34)  # the orders of the moments accountant
    for case, published, digits in (
        ((0.01, 4.0, 10_000, 1e-5), 1.26, 2),
        ((MNIST, 1.1, 60 * 60_000 // 256, 1e-5), 3.01, 2),
        ((5000 / 763_430, 1.0, 5000, 1e-9), 4.634, 3),
    ):
        found = privacy.epsilon(*case, conversion="2016", orders=whole)
        assert round(found, digits) == published
        assert privacy.epsilon(*case) < found


def test_epsilon_goes_the_way_it_must():
    base = privacy.epsilon(0.1, 1.0, 60, 1e-4)
    assert privacy.epsilon(0.1, 1.1, 60, 1e-4) < base < privacy.epsilon(0.2, 1.0, 60, 1e-4)
    assert privacy.epsilon(0.1, 1.0, 60, 1e-3) < base < privacy.epsilon(0.1, 1.0, 61, 1e-4)
    assert base < privacy.epsilon(0.1, 1.0, 60, 1e-4, conversion="2016")
    assert privacy.epsilon(0.001, 50.0, 1, 0.5) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: privacy.clipped_mean(0.0, 5), "norm and expected_clients must be above 0, got 0"),
        (lambda: privacy.clipped_mean(1.0, -1), "above 0, got 1.0 and -1"),
        (lambda: privacy.gaussian_noise(-0.1, 0), "deviation must be at least 0 and finite"),
        (lambda: privacy.gaussian_noise(math.inf, 0), "deviation must be"),
        (lambda: privacy.epsilon(0.0, 1, 1, 1e-5), "rate must be in"),
        (lambda: privacy.epsilon(1.1, 1, 1, 1e-5), "got 1.1, 1, 1 and 1e-05"),
        (lambda: privacy.epsilon(0.1, 0, 1, 1e-5), "noise_multiplier above 0"),
        (lambda: privacy.epsilon(0.1, 1, 0, 1e-5), "rounds at least 1"),
        (lambda: privacy.epsilon(0.1, 1, 1, 1.0), "delta in"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()
