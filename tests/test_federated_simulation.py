"""The simulation against its oracle: ``client.local_sgd``, one client after the other."""

import copy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mlguide.federated import aggregation, client, fused, simulation
from mlguide.federated.simulation import Federation
from mlguide.models import MLP, CharTransformer, SmallCNN
from mlguide.training import evaluate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_of(sizes: list[int], inputs: int = 6, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    g = generator(len(sizes))
    return [
        (
            torch.randn(n, inputs, generator=g, dtype=torch.float64),
            torch.randint(0, classes, (n,), generator=g),
        )
        for n in sizes
    ]


def mlp(hidden: list[int], seed: int = 0) -> MLP:
    return MLP(6, hidden, 4, seed=seed).double()


def federation(clients: list[tuple[Tensor, Tensor]], **settings: Any) -> Federation:
    settings = {"model": mlp([7]), "learning_rate": 0.2, "seed": 1, "batch_size": 4} | settings
    return Federation(clients=clients, **settings)


def vector(f: Federation) -> Tensor:
    return client.to_vector(f.weights)


ALGORITHMS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedSGD": {"batch_size": None},
    "FedProx": {"proximal": 0.7},
    "SCAFFOLD": {"scaffold": True},
    "FedAvgM": {"server": aggregation.momentum(0.7, 0.5)},
    "FedAdam": {"server": aggregation.adam(0.05)},
    "partial": {"scaffold": True, "proximal": 0.3, "per_round": 3, "dropout": 0.4},
    "Poisson": {"per_round": 2, "poisson": True},
}


@pytest.mark.parametrize("name", ALGORITHMS)
@given(
    sizes=st.lists(st.integers(1, 13), min_size=3, max_size=6),
    hidden=st.lists(st.integers(1, 9), max_size=3),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_every_engine_gives_the_weights_of_the_loop(
    name: str, sizes: list[int], hidden: list[int], epochs: int, seed: int
):
    ends = {}
    for engine in ("loop", "stacked", "fused", "auto"):
        f = federation(
            data_of(sizes), model=mlp(hidden, seed), seed=seed, epochs=epochs, engine=engine,
            **ALGORITHMS[name],
        )  # fmt: skip
        f.run(3)
        ends[engine] = vector(f)
    for engine, end in ends.items():
        torch.testing.assert_close(end, ends["loop"], atol=1e-12, rtol=0, msg=engine)


def test_the_engine_that_is_asked_for_runs(monkeypatch: pytest.MonkeyPatch):
    runs = {"loop": "local", "stacked": "stacked", "fused": "fused"}
    spies = {name: Mock(wraps=getattr(simulation, f"{name}_sgd")) for name in runs.values()}
    for name, spy in spies.items():
        monkeypatch.setattr(simulation, f"{name}_sgd", spy)
    for engine, its_own in {**runs, "auto": "fused"}.items():
        for spy in spies.values():
            spy.reset_mock()
        federation(data_of([3, 5]), engine=engine).run(1)
        assert [name for name, spy in spies.items() if spy.called] == [its_own]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    whole = federation(data_of([5, 9, 2, 7, 4]), scaffold=True)
    whole.run(2)
    for engine in ("stacked", "fused"):
        monkeypatch.setattr(simulation, "CACHE", 2 * 8 * vector(whole).numel())  # two clients
        chunked = federation(data_of([5, 9, 2, 7, 4]), scaffold=True, engine=engine)
        chunked.run(2)
        torch.testing.assert_close(vector(chunked), vector(whole), atol=1e-12, rtol=0)


def test_other_networks_and_texts_are_stacked_too():
    g = generator()
    pictures = [(torch.rand(n, 1, 28, 28, generator=g), torch.arange(n) % 3) for n in (3, 6)]
    ids = [(torch.randint(0, 64, (n, 8), generator=g),) * 2 for n in (2, 5)]
    small = CharTransformer(seed=0, width=8, blocks=1, heads=2)
    for param in small.backbone.block1.query.parameters():
        param.requires_grad_(False)  # as in federated LoRA, what is frozen does not travel
    for model, clients in ((SmallCNN(3, seed=0, width=8).eval(), pictures), (small, ids)):
        model = model.double()
        clients = [(x.double() if x.is_floating_point() else x, y) for x, y in clients]
        ends = []
        for engine in ("loop", "stacked"):
            f = federation(clients, model=copy.deepcopy(model), batch_size=2, engine=engine)
            f.run(2)
            assert set(f.weights) == {n for n, p in model.named_parameters() if p.requires_grad}
            ends.append(vector(f))
        torch.testing.assert_close(ends[0], ends[1], atol=1e-10, rtol=0)


def test_every_client_is_plain_sgd_if_not_asked_for_more():
    model, (inputs, labels) = mlp([5]), data_of([12])[0]
    batches = client.draw_batches([12], 5, 2, generator())[0]
    start = client.trained_weights(model)
    ours = client.local_sgd(model, start, inputs, labels, batches, learning_rate=0.3)
    alone = (inputs[None], labels[None], batches[None])
    stacked = simulation.stacked_sgd(model, start, *alone, learning_rate=0.3)
    layers = fused.linear_layers(model)
    at_once = fused.fused_sgd(layers, start, *alone, learning_rate=0.3)
    reference = mlp([5])
    optimizer = torch.optim.SGD(reference.parameters(), 0.3)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(reference(inputs[rows[rows >= 0]]), labels[rows[rows >= 0]]).backward()
        optimizer.step()
    for name, parameter in reference.named_parameters():
        for weights in (ours[name], stacked[name][0], at_once[name][0]):
            torch.testing.assert_close(weights, parameter.detach(), atol=1e-14, rtol=0)
    assert all(torch.equal(w, start[n]) for n, w in client.trained_weights(model).items())


def test_the_proximal_term_is_half_mu_times_the_squared_distance():
    model, (inputs, labels) = mlp([]), data_of([6])[0]
    start, mu, rate = client.trained_weights(model), 0.9, 0.2
    batches = torch.arange(6).view(1, 6).repeat(3, 1)
    ours = client.local_sgd(model, start, inputs, labels, batches, learning_rate=rate, proximal=mu)
    reference = mlp([])
    for _ in range(3):
        distance = sum(((p - start[n]) ** 2).sum() for n, p in reference.named_parameters())
        total = F.cross_entropy(reference(inputs), labels) + mu / 2 * distance
        gradients = torch.autograd.grad(total, list(reference.parameters()))
        with torch.no_grad():
            for p, gradient in zip(reference.parameters(), gradients, strict=True):
                p -= rate * gradient
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), atol=1e-14, rtol=0)


def test_one_full_batch_step_of_everyone_is_a_step_of_central_sgd():
    clients = data_of([3, 11, 6])
    f = federation(clients, batch_size=None)
    f.run(1)
    central, everything = mlp([7]), [torch.cat(part) for part in zip(*clients, strict=True)]
    loss = F.cross_entropy(central(everything[0]), everything[1])
    gradients = torch.autograd.grad(loss, list(central.parameters()))
    for (name, p), gradient in zip(central.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(f.weights[name], p.detach() - 0.2 * gradient, atol=1e-14, rtol=0)


def test_scaffold_goes_where_the_mean_of_unlike_losses_is_least():
    """With all clients and full batches SCAFFOLD ends where central training ends; FedAvg, with as
    many local steps, does not."""
    g = generator(5)
    clients = [
        (torch.randn(20, 6, generator=g).double() + 1, torch.full((20,), k)) for k in range(4)
    ]
    gradients = {}
    for scaffold in (False, True):
        f = federation(
            clients, model=mlp([]), batch_size=None, epochs=10, scaffold=scaffold,
            learning_rate=0.05,
        )  # fmt: skip
        f.run(400)
        x, y = (torch.cat(part) for part in zip(*clients, strict=True))
        loss = F.cross_entropy(f.model(x), y)
        parts = torch.autograd.grad(loss, list(f.model.parameters()))
        gradients[scaffold] = torch.cat([p.flatten() for p in parts]).norm().item()
    assert gradients[True] < 0.2 * gradients[False]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch_size=st.one_of(st.none(), st.integers(1, 12)),
    epochs=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_batches_hold_every_example_once_an_epoch(
    sizes: list[int], batch_size: int | None, epochs: int
):
    batches = client.draw_batches(sizes, batch_size, epochs, generator())
    for size, mine in zip(sizes, batches, strict=True):
        for epoch in mine.view(epochs, -1):
            assert sorted(epoch[epoch >= 0].tolist()) == list(range(size))
        steps = int((mine >= 0).any(1).sum())
        assert steps == epochs * -(-size // (batch_size or size))


def test_orders_differ_between_clients_and_epochs():
    batches = client.draw_batches([50, 50], 50, 2, generator())
    orders = {tuple(rows.tolist()) for rows in batches.flatten(0, 1)}
    assert len(orders) == 4


def test_a_client_draws_the_same_batches_alone_and_among_others():
    def of(sizes: list[int], clients: list[int]) -> Tensor:
        own = [client.client_generator(3, 5, k) for k in clients]
        return client.draw_batches(sizes, 4, 2, own)

    together, alone = of([9, 30, 5], [0, 1, 2]), of([5], [2])[0]
    found = together[2][(together[2] >= 0).any(1)]
    assert torch.equal(found, alone)
    draws = {torch.rand((), generator=client.client_generator(s, r, k)).item()
             for s in range(5) for r in range(20) for k in range(50)}  # fmt: skip
    assert len(draws) > 4990


def test_a_device_with_another_version_of_the_package_draws_the_same():
    """What the seeds are made of is a promise between server, devices and saved runs."""
    assert client.client_generator(1, 2, 3).initial_seed() == 1_000_008_000_018
    run = federation(data_of([2] * 50), seed=4, per_round=5)
    run.run(1)
    first = torch.Generator().manual_seed(4_000_013)
    assert run.rounds[0].asked == torch.randperm(50, generator=first)[:5].sort().values.tolist()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"sizes": [3, 0]}, "sizes must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_batches_refuse(bad: dict[str, Any], message: str):
    good: dict[str, Any] = {"sizes": [3], "batch_size": 2, "epochs": 1}
    with pytest.raises(ValueError, match=message):
        client.draw_batches(**(good | bad), generator=generator())


def test_vector_and_weights_are_one_another():
    weights = client.trained_weights(mlp([3]))
    row = client.to_vector(weights)
    back = client.to_weights(row, weights)
    assert all(torch.equal(back[name], w) for name, w in weights.items())
    stacked = {name: torch.stack([w, w + 1]) for name, w in weights.items()}
    rows = client.to_vector(stacked, stacked=True)
    assert rows.shape == (2, len(row)) and torch.equal(rows[1], row + 1)
    assert client.to_weights(rows, weights)["head.weight"].shape == (2, 4, 3)
    with pytest.raises(ValueError, match=f"vector must have {len(row)} numbers, got 1"):
        client.to_weights(row[:1], weights)


def test_a_text_loss_is_the_mean_over_its_places():
    scores, ids = torch.randn(3, 5, 7, generator=generator()), torch.arange(15).view(3, 5) % 7
    each = client.cross_entropy(scores, ids)
    assert each.shape == (3,)
    torch.testing.assert_close(each.mean(), F.cross_entropy(scores.flatten(0, 1), ids.flatten()))


# What a round does


def test_a_round_asks_as_many_as_it_should_and_others_over_time():
    f = federation(data_of([2] * 10), per_round=3)
    f.run(30)
    assert {len(r.asked) for r in f.rounds} == {3}
    assert {k for r in f.rounds for k in r.asked} == set(range(10))
    assert all(r.asked == r.answered for r in f.rounds)
    assert [r.number for r in f.rounds] == list(range(1, 31))


def test_who_watches_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    federation(data_of([5, 4])).run(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    federation(data_of([5, 4])).run(2)
    assert capsys.readouterr().err == "\rround 1 of 2\rround 2 of 2"


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        client.trained_weights(mlp([5]).requires_grad_(False))


def test_dropped_clients_do_not_count():
    f = federation(data_of([2] * 10), dropout=0.5)
    f.run(40)
    answered = sum(len(r.answered) for r in f.rounds) / 400
    assert answered == pytest.approx(0.5, abs=0.1)
    half = federation(data_of([2] * 10), dropout=0.5)
    half.run(1)
    kept = half.rounds[0].answered
    assert 0 < len(kept) < 10
    seen: list[list[int]] = []

    def spy(updates: Tensor, who: Tensor) -> Tensor:
        seen.append(who.tolist())
        return updates

    federation(data_of([2] * 10), dropout=0.5, uplink=spy).run(1)
    assert seen == [kept]


def test_a_round_without_answers_changes_nothing():
    f = federation(data_of([2, 2]), dropout=0.999)
    before = vector(f)
    f.run(2)
    assert torch.equal(vector(f), before) and f.rounds[0].answered == []


def test_poisson_rounds_have_the_expected_number_of_clients():
    f = federation(data_of([1] * 20), per_round=5, poisson=True)
    f.run(60)
    counts = torch.tensor([float(len(r.asked)) for r in f.rounds])
    assert counts.mean().item() == pytest.approx(5, abs=0.8)
    assert counts.var().item() == pytest.approx(20 * 0.25 * 0.75, rel=0.6)


def test_a_nan_is_refused_by_number_and_never_averaged():
    def broken(updates: Tensor, who: Tensor) -> Tensor:
        return torch.where((who == 2)[:, None], torch.nan, updates)

    f, without = federation(data_of([4, 4, 4]), uplink=broken), federation(data_of([4, 4, 4]))
    f.run(1)
    assert f.rounds[0].refused == [2] and f.rounds[0].answered == [0, 1]
    assert torch.isfinite(vector(f)).all()
    without.run(1)
    assert not torch.equal(vector(f), vector(without))


def test_sizes_weigh_the_mean():
    seen: list[Tensor] = []

    def spy(updates: Tensor, weights: Tensor) -> Tensor:
        seen.append(weights)
        return aggregation.mean(updates, weights)

    federation(data_of([3, 11, 6]), aggregate=spy).run(1)
    assert seen[0].tolist() == [3, 11, 6]


def test_scores_come_every_so_often_and_at_the_end():
    f = federation(data_of([4, 4]))
    x, y = data_of([50])[0]
    f.run(5, lambda model: evaluate(model, x, y), every=2)
    assert [r.score is not None for r in f.rounds] == [False, True, False, True, True]
    assert len(f.scores) == 3 and f.scores[-1] == evaluate(f.model, x, y)


# Stopping and going on


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_federation_that_was_stopped_and_loaded_goes_on_as_if_it_had_not(
    name: str, tmp_path: Path
):
    def make() -> Federation:
        return federation(data_of([5, 3, 8, 2]), **ALGORITHMS[name])

    through, first, second = make(), make(), make()
    through.run(5)
    first.run(2)
    first.save(tmp_path / "state.safetensors")
    second.load(tmp_path / "state.safetensors")
    second.run(3)
    assert torch.equal(vector(second), vector(through))
    assert second.rounds == through.rounds
    assert all(torch.equal(p, through.weights[n]) for n, p in second.model.named_parameters())
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("where", ["uplink", "exam", "server"])
def test_an_interrupt_in_the_middle_of_a_round_loses_only_that_round(where: str):
    calls = 0

    def interrupting(value: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return value if where != "exam" else 0.5

    hooks = {} if where == "exam" else {where: interrupting}
    exam = interrupting if where == "exam" else None
    f = federation(data_of([5, 3, 8]), scaffold=True, **hooks)
    with pytest.raises(KeyboardInterrupt):
        f.run(5, exam)
    assert len(f.rounds) == 2
    assert all(torch.equal(p, f.weights[n]) for n, p in f.model.named_parameters())
    f.run(3, exam)
    same = federation(data_of([5, 3, 8]), scaffold=True)
    same.run(5)
    if where != "server":  # which passes the step on, as if it were not there
        assert torch.equal(vector(f), vector(same))
    assert [r.number for r in f.rounds] == [1, 2, 3, 4, 5]


def test_a_file_of_another_federation_is_refused(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    f = federation(data_of([5, 3]))
    f.run(1)
    f.save(path)
    for other, message in (
        (federation(data_of([5, 3]), seed=2), "seed 1, not 2"),
        (federation(data_of([5, 3]), model=mlp([8])), "another federation: .* differs"),
        (federation(data_of([5, 3]), scaffold=True), "controls differs"),
    ):
        before = vector(other)
        with pytest.raises(ValueError, match=message):
            other.load(path)
        assert torch.equal(vector(other), before) and other.rounds == []


# What is refused


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"per_round": 0}, "per_round must be 1 to 2, got 0"),
        ({"per_round": 3}, "per_round must be 1 to 2, got 3"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"dropout": float("nan")}, "dropout must be"),
        ({"proximal": -1.0}, "proximal must be"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"clients": []}, "clients must hold at least one client"),
        ({"clients": [(torch.zeros(2, 6), torch.zeros(3))]}, "client 0 must have a label"),
        ({"clients": [(torch.zeros(0, 6), torch.zeros(0))]}, "client 0 must have a label"),
        ({"model": SmallCNN(4, seed=0)}, "BatchNorm2d 'backbone.block1.1' in training mode"),
    ],
)
def test_bad_settings_are_named(bad: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        federation(**({"clients": data_of([2, 3])} | bad))


@pytest.mark.parametrize(
    ("rounds", "every", "engine", "message"),
    [
        (-1, 1, "auto", "rounds must be at least 0, every at least 1; got -1, 1"),
        (1, 0, "auto", "rounds must be at least 0, every at least 1; got 1, 0"),
        (1, 1, "quick", "engine must be one of auto, loop, stacked, fused; got 'quick'"),
    ],
)
def test_a_run_that_cannot_be_is_refused(rounds: int, every: int, engine: Any, message: str):
    with pytest.raises(ValueError, match=message):
        federation(data_of([2, 3]), engine=engine).run(rounds, every=every)


def test_what_cannot_be_fused_is_told():
    for model in (SmallCNN(4, seed=0).eval(), nn.Sequential(nn.Linear(6, 4, bias=False))):
        assert fused.linear_layers(model) is None
        with pytest.raises(ValueError, match="engine 'fused' takes Linear layers"):
            federation(data_of([2]), model=model.double(), engine="fused").run(1)
    frozen = mlp([5])
    frozen.head.weight.requires_grad_(False)
    assert fused.linear_layers(frozen) is None
    assert fused.linear_layers(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))) is None
    assert fused.linear_layers(mlp([5, 3])) == ["backbone.layer1.0", "backbone.layer2.0", "head"]


def test_accuracy_by_client_is_evaluate_of_each():
    clients = data_of([5, 30, 12])
    f = federation(clients)
    f.run(2)
    each = [evaluate(f.model, *mine) for mine in clients]
    assert simulation.accuracy_by_client(f.model, f.weights, clients).tolist() == pytest.approx(
        each
    )
    others = [mlp([7], seed) for seed in range(3)]
    stacked = {n: torch.stack([m.get_parameter(n) for m in others]).detach() for n in f.weights}
    each = [evaluate(m, *mine) for m, mine in zip(others, clients, strict=True)]
    found = simulation.accuracy_by_client(f.model, stacked, clients)
    assert found.tolist() == pytest.approx(each)
