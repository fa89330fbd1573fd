"""Each codec against what its paper says, and against the bytes that it really makes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlguide.federated.client import to_vector, to_weights, trained_weights
from mlguide.federated.compression import LowRank, Quantised, Sign, TopK, Uplink, Whole
from mlguide.federated.simulation import Federation
from mlguide.models import MLP


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def update(size: int, seed: int = 0) -> torch.Tensor:
    return 0.01 * torch.randn(size, generator=generator(seed)) ** 3  # a few are far from zero


WEIGHTS = trained_weights(MLP(6, [5], 3, seed=0))  # matrices (5, 6) and (3, 5), 53 numbers in all
SIZE = 53
CODECS = {
    "whole": (Whole(), 4 * SIZE),
    "8 bits": (Quantised(8, generator(), bucket=20), 3 * 4 + SIZE),
    "4 bits": (Quantised(4, generator(), bucket=20), 3 * 4 + 27),
    "2 bits": (Quantised(2, generator(), bucket=60), 1 * 4 + 14),
    "2 bits, length": (Quantised(2, generator(), end="length"), 1 * 4 + 14),
    "sign": (Sign(bucket=20), 3 * 4 + 7),
    "top 9": (TopK(9), 9 * (4 + 2)),
    "rank 1": (LowRank(1, WEIGHTS), 4 * (11 + 8 + 5 + 3)),
    "rank 2, one whole": (LowRank(2, WEIGHTS), 4 * (22 + 15 + 5 + 3)),  # 2 x 8 is more than 15
}


def sent(codec: Whole | Quantised | Sign | TopK | LowRank, vector: torch.Tensor) -> torch.Tensor:
    return codec.decode(codec.encode(vector), len(vector))


@pytest.mark.parametrize("name", CODECS)
def test_a_message_has_as_many_bytes_as_the_count_by_hand(name: str):
    codec, count = CODECS[name]
    message = codec.encode(update(SIZE))
    assert isinstance(message, bytes) and len(message) == count
    assert codec.decode(message, SIZE).shape == (SIZE,)
    assert torch.equal(codec.decode(message, SIZE), codec.decode(message, SIZE))


@pytest.mark.parametrize("name", CODECS)
def test_zero_stays_zero_and_nan_is_refused(name: str):
    codec, _ = CODECS[name]
    assert torch.equal(sent(codec, torch.zeros(SIZE)), torch.zeros(SIZE))
    for bad in (torch.nan, torch.inf):
        broken = update(SIZE)
        broken[[3, 7]] = bad
        if name != "whole":
            with pytest.raises(ValueError, match="update must be finite, got 2 NaN or infinite"):
                codec.encode(broken)


def test_whole_is_exact():
    assert torch.equal(sent(Whole(), update(SIZE)), update(SIZE))


@given(
    size=st.integers(1, 70),
    bits=st.sampled_from([2, 4, 8]),
    bucket=st.integers(1, 80),
    end=st.sampled_from(["largest", "length"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_a_quantised_number_goes_to_a_mark_beside_it(size, bits, bucket, end, seed):
    vector, marks = update(size, seed), 2 ** (bits - 1) - 1
    arrived = sent(Quantised(bits, generator(seed), bucket=bucket, end=end), vector)
    nearest = sent(Quantised(bits, None, bucket=bucket, end=end), vector)
    for at in range(0, size, bucket):
        part = vector[at : at + bucket]
        step = (part.abs().max() if end == "largest" else part.norm()) / marks
        assert (arrived[at : at + bucket] - part).abs().max() <= step * 1.001
        assert (nearest[at : at + bucket] - part).abs().max() <= step * 0.501
        places = arrived[at : at + bucket] / step
        assert torch.allclose(places, places.round(), atol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("end", ["largest", "length"])
def test_the_mean_of_many_throws_is_the_number(bits, end):
    vector = torch.linspace(-0.07, 0.09, 40)[torch.randperm(40, generator=generator())]
    codec = Quantised(bits, generator(1), bucket=16, end=end)
    throws = torch.stack([sent(codec, vector) for _ in range(4000)])
    error = throws.std(0) / 4000**0.5
    assert ((throws.mean(0) - vector).abs() <= 4.5 * error + 1e-7).all()
    # QSGD's Lemma 3.1 with s marks: a variance of at most min(n / s^2, sqrt(n) / s) |v|^2
    if end == "length":
        s = 2 ** (bits - 1) - 1
        for part, many in zip(vector.split(16), throws.split(16, dim=1), strict=True):
            bound = min(len(part) / s**2, len(part) ** 0.5 / s) * part.square().sum()
            assert (many - part).square().sum(1).mean() <= 1.05 * bound


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_throw_goes_beyond_the_end_of_the_scale(bits: int, monkeypatch: pytest.MonkeyPatch):
    # 127 + the largest float32 below 1 is 128 in float32
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2**-24))
    vector = torch.tensor([0.5, -0.5, 0.1])
    assert sent(Quantised(bits, generator()), vector).abs().max() <= 0.5


def test_sign_is_the_best_multiple_of_the_signs():
    vector = update(50)
    arrived = sent(Sign(bucket=20), vector)
    for at in range(0, 50, 20):
        part = vector[at : at + 20]
        assert torch.allclose(arrived[at : at + 20], part.sign() * part.abs().mean())


@given(size=st.integers(1, 60), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=50, deadline=None)
def test_top_k_keeps_the_largest_and_nothing_else(size, seed, data):
    keep = data.draw(st.integers(1, size))
    vector = update(size, seed)
    arrived = sent(TopK(keep), vector)
    largest = np.argsort(-vector.abs().numpy())[:keep]
    expected = np.zeros(size, np.float32)
    expected[largest] = vector.numpy()[largest]
    assert np.array_equal(arrived.numpy(), expected)


def test_places_beyond_65536_need_four_bytes():
    for size, width in ((2**16, 2), (2**16 + 1, 4)):
        vector = torch.zeros(size)
        vector[-1] = 3.0
        message = TopK(1).encode(vector)
        assert len(message) == 4 + width
        assert torch.equal(TopK(1).decode(message, size), vector)


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_is_the_best_product_of_that_rank(rank):
    vector = update(SIZE, 3)
    before, after = (to_weights(v, WEIGHTS) for v in (vector, sent(LowRank(rank, WEIGHTS), vector)))
    for name, matrix in before.items():
        if matrix.ndim == 1 or rank * sum(matrix.shape) >= matrix.numel():
            assert torch.equal(after[name], matrix)
            continue
        assert torch.linalg.matrix_rank(after[name]) == rank
        # Eckart and Young: the error is what the other singular values hold
        left = torch.linalg.svdvals(matrix)[rank:].norm()
        assert (after[name] - matrix).norm() == pytest.approx(float(left), rel=1e-4)


def test_with_feedback_nothing_is_lost_only_late():
    uplink = Uplink(TopK(4), feedback=True)
    clients = torch.tensor([7, 2])
    wanted, arrived = torch.zeros(2, 30), torch.zeros(2, 30)
    for number in range(12):
        updates = torch.stack([update(30, 2 * number), update(30, 2 * number + 1)])
        kept = updates.clone()
        wanted, arrived = wanted + updates, arrived + uplink(updates, clients)
        assert torch.equal(updates, kept)  # the caller's updates are not touched
    owed = torch.stack([uplink.memory[7], uplink.memory[2]])
    assert torch.allclose(wanted, arrived + owed, atol=1e-6) and owed.norm() > 0
    assert (uplink.messages, uplink.bytes_sent) == (24, 24 * 4 * 6)


def test_memory_is_each_clients_own():
    uplink, alone = Uplink(TopK(2), feedback=True), Uplink(TopK(2), feedback=True)
    first, second = update(10, 1), update(10, 2)
    uplink(first[None], torch.tensor([0]))
    assert torch.equal(
        uplink(second[None], torch.tensor([1])), alone(second[None], torch.tensor([1]))
    )
    assert torch.equal(uplink.memory[1], alone.memory[1])
    assert Uplink(TopK(2))(first[None], torch.tensor([0])).count_nonzero() == 2
    quiet = Uplink(TopK(2))
    quiet(first[None], torch.tensor([0]))
    assert not quiet.memory


def test_an_update_that_is_not_finite_goes_on_and_leaves_no_trace():
    uplink = Uplink(Sign(), feedback=True)
    updates = torch.stack([update(10, 1), update(10, 2)])
    uplink(updates, torch.tensor([0, 1]))
    owed = uplink.memory[1].clone()
    broken = updates.clone()
    broken[1, 4] = torch.nan
    arrived = uplink(broken, torch.tensor([0, 1]))
    assert arrived[0].isfinite().all() and arrived[1].isnan().any()
    assert torch.equal(uplink.memory[1], owed) and uplink.messages == 3


def test_error_feedback_diverges_where_a_codec_adds_more_than_it_was_given():
    def memory(codec: Quantised | Sign | TopK) -> float:
        uplink = Uplink(codec, feedback=True)
        for number in range(40):
            uplink(update(400, number)[None], torch.tensor([0]))
        return float(uplink.memory[0].norm() / update(400).norm())

    assert memory(Quantised(2, generator(), end="length")) > 1e4
    assert memory(Quantised(8, generator(), end="length")) < 1
    assert memory(Sign()) < 20 and memory(TopK(40)) < 20


def test_a_federation_learns_through_every_codec_and_counts_the_bytes():
    def federation(uplink: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None):
        x = torch.randn(4, 12, 6, generator=generator(5))
        model = MLP(6, [5], 3, seed=0)
        clients = [(part, part[:, :3].argmax(1)) for part in x]
        f = Federation(
            model, clients, learning_rate=0.3, seed=1, per_round=3, batch_size=4, uplink=uplink
        )
        f.run(30)
        return to_vector(f.weights), torch.nn.functional.cross_entropy(
            model(x.flatten(0, 1)), x.flatten(0, 1)[:, :3].argmax(1)
        )

    plain, loss = federation(None)
    uplink = Uplink(Whole())
    same, _ = federation(uplink)
    assert torch.equal(plain, same) and uplink.bytes_sent == 30 * 3 * 4 * SIZE
    for codec in (Quantised(4, generator()), Sign(bucket=20), TopK(9), LowRank(1, WEIGHTS)):
        uplink = Uplink(codec, feedback=not isinstance(codec, Quantised))
        _, near = federation(uplink)
        assert near < loss + 0.25
        assert uplink.bytes_sent < 30 * 3 * 4 * SIZE


def test_errors_name_the_argument():
    wrong = {
        "bits must be 2, 4 or 8, .* got 3": lambda: Quantised(3, None),
        "end 'largest' or 'length'; got 4 and 'most'": lambda: Quantised(4, None, end="most"),  # pyright: ignore[reportArgumentType]
        "bucket must be at least 1, got 0": lambda: Quantised(4, None, bucket=0),
        "bucket must be at least 1, got -1": lambda: Sign(bucket=-1),
        "keep must be at least 1, got 0": lambda: TopK(0),
        "keep must be at most 5 here, got 6": lambda: TopK(6).encode(torch.ones(5)),
        "rank must be at least 1, got 0": lambda: LowRank(0, WEIGHTS),
        "vector must have 53 numbers, got 5": lambda: LowRank(1, WEIGHTS).encode(torch.ones(5)),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message):
            call()
