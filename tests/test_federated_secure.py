import hashlib
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlguide.federated import secure

QUANTUM = 2.0**-16


def drawn(clients: int, length: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(clients, length, generator=g)


def protocol(updates: Tensor, lost: set[int], *, round: int = 1) -> Tensor:
    """The whole of it: keys, masked updates of those that answer, and the sum."""
    asked = list(range(len(updates)))
    keys = secure.deal_keys(asked, b"test")
    here = [k for k in asked if k not in lost]
    masked = {
        k: secure.mask_update(updates[k], keys[k], round=round, quantum=QUANTUM) for k in here
    }
    own = {k: keys[k].own for k in here}
    pairs = {(k, gone): keys[k].pairs[gone] for k in here for gone in lost}
    return secure.unmask_sum(masked, asked, own, pairs, round=round, quantum=QUANTUM)


@given(
    clients=st.integers(2, 8),
    length=st.integers(1, 20),
    seed=st.integers(0, 99),
    round=st.integers(0, 2**40),
    lost=st.sets(st.integers(0, 7), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_the_sum_of_who_answered_is_exact_to_the_quantum(
    clients: int, length: int, seed: int, round: int, lost: set[int]
):
    updates, lost = drawn(clients, length, seed), {k for k in lost if k < clients - 1}
    here = [k for k in range(clients) if k not in lost]
    found = protocol(updates, lost, round=round)
    whole = (updates[here].double() / QUANTUM).round().sum(0)
    assert torch.equal(found, whole * QUANTUM)
    error = (found - updates[here].double().sum(0)).abs().max()
    assert error <= len(here) * QUANTUM / 2 * (1 + 1e-9)


def test_negative_sums_and_the_largest_numbers_fit():
    for clients in (2, 3, 100):
        most = (2**31 - 1) // clients
        for sign in (1, -1):
            value = torch.tensor([sign * most * QUANTUM], dtype=torch.float64)
            each = secure.quantise(value, QUANTUM, clients)
            assert secure.to_signed(each * clients % secure.MODULUS).item() == sign * most * clients
            with pytest.raises(ValueError, match=rf"values must lie within .* sum of {clients}"):
                secure.quantise(value + sign * QUANTUM, QUANTUM, clients)


def test_whole_numbers_go_round_and_back():
    values = torch.tensor([0.0, 1.0, -1.0, 2.4, -2.6, 1234.0])
    whole = secure.quantise(values, 1.0, 2)
    assert whole.tolist() == [0, 1, 2**32 - 1, 2, 2**32 - 3, 1234]
    assert secure.to_signed(whole).tolist() == [0, 1, -1, 2, -3, 1234]
    assert secure.quantise(torch.tensor([123456.789]), 0.001, 2).item() == 123456789  # in float64
    ends = torch.tensor([2**31 - 1, 2**31, 2**32 - 1])
    assert secure.to_signed(ends).tolist() == [2**31 - 1, -(2**31), -1]


def test_a_mask_is_the_stream_of_shake_256():
    seed = bytes(range(32))
    stream = hashlib.shake_256(seed + (7).to_bytes(8, "big")).digest(40)
    wanted = [int.from_bytes(stream[4 * k : 4 * k + 4], "little") for k in range(10)]
    assert secure.mask_stream(seed, 7, 10).tolist() == wanted
    assert secure.mask_stream(seed, 7, 4).tolist() == wanted[:4]
    assert secure.mask_stream(seed, 8, 10).tolist() != wanted
    assert secure.mask_stream(seed[::-1], 7, 10).tolist() != wanted


def test_every_pair_shares_a_seed_that_no_other_has():
    keys = secure.deal_keys([3, 1, 7, 20], b"secret")
    seeds = [keys[a].pairs[b] for a, b in combinations(keys, 2)] + [k.own for k in keys.values()]
    assert len(set(seeds)) == 6 + 4 and {len(seed) for seed in seeds} == {32}
    assert all(keys[a].pairs[b] == keys[b].pairs[a] for a, b in combinations(keys, 2))
    assert all(k.client not in k.pairs and len(k.pairs) == 3 for k in keys.values())
    assert secure.deal_keys([3, 1], b"other")[3] != secure.deal_keys([3, 1], b"secret")[3]
    assert secure.deal_keys([1, 23], b"s")[1].pairs[23] != secure.deal_keys([12, 3], b"s")[3].own


def test_what_a_client_sends_is_uniform_noise():
    update = torch.zeros(50_000)  # the hardest to hide
    keys = secure.deal_keys(range(3), b"test")
    sent = secure.mask_update(update, keys[1], round=1, quantum=QUANTUM)
    assert sent.min() >= 0 and sent.max() < 2**32
    for places in (sent >> 24, sent & 255):  # the highest and the lowest byte
        counts = torch.bincount(places, minlength=256).double()
        expected = len(sent) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert 180 < chi_square < 340  # 255 ± 3.7 standard deviations
    again = secure.mask_update(update, keys[1], round=2, quantum=QUANTUM)
    assert not torch.equal(again, sent)
    other = secure.mask_update(update, keys[2], round=1, quantum=QUANTUM)
    assert abs(torch.corrcoef(torch.stack([sent, other]).double())[0, 1]) < 0.02


def test_a_late_client_stays_hidden_behind_its_own_mask():
    updates = drawn(4, 2000)
    keys = secure.deal_keys(range(4), b"test")
    late = secure.mask_update(updates[2], keys[2], round=1, quantum=QUANTUM)
    for other, seed in keys[2].pairs.items():  # the others thought it gone and told these
        late -= (1 if other > 2 else -1) * secure.mask_stream(seed, 1, 2000)
    seen = secure.to_signed(late % secure.MODULUS).double()
    assert abs(torch.corrcoef(torch.stack([seen, updates[2].double()]))[0, 1]) < 0.08
    late -= secure.mask_stream(keys[2].own, 1, 2000)
    seen = secure.to_signed(late % secure.MODULUS).double() * QUANTUM
    assert (seen - updates[2]).abs().max() <= QUANTUM


def test_one_wrong_bit_in_one_seed_spoils_the_sum():
    updates = drawn(4, 500)
    keys = secure.deal_keys(range(4), b"test")
    masked = {
        k: secure.mask_update(updates[k], keys[k], round=1, quantum=QUANTUM) for k in range(4)
    }
    own = {k: keys[k].own for k in range(4)}
    own[3] = bytes([own[3][0] ^ 1, *own[3][1:]])
    found = secure.unmask_sum(masked, range(4), own, {}, round=1, quantum=QUANTUM)
    assert (found - updates.sum(0)).abs().median() > 1000


def test_seeds_that_lack_or_must_stay_secret_are_named():
    keys = secure.deal_keys(range(3), b"test")
    masked = {
        k: secure.mask_update(torch.ones(5), keys[k], round=1, quantum=QUANTUM) for k in (0, 1)
    }
    own = {k: keys[k].own for k in (0, 1)}
    pairs = {(k, 2): keys[k].pairs[2] for k in (0, 1)}

    def unmask(own: dict[int, bytes], pairs: dict[tuple[int, int], bytes]) -> Tensor:
        return secure.unmask_sum(masked, range(3), own, pairs, round=1, quantum=QUANTUM)

    assert unmask(own, pairs).tolist() == [2.0] * 5
    for bad_own, bad_pairs, message in (
        ({0: own[0]}, pairs, r"own lacks the seeds of \[1\]"),
        (own, {(0, 2): pairs[0, 2]}, r"pairs lacks the seeds of \[\(1, 2\)\]"),
        (own | {2: keys[2].own}, pairs, r"own must stay secret for \[2\]"),
        (own, pairs | {(0, 1): keys[0].pairs[1]}, r"pairs must stay secret for \[\(0, 1\)\]"),
    ):
        with pytest.raises(ValueError, match=message):
            unmask(bad_own, bad_pairs)


@given(people=st.integers(1, 7), data=st.data(), secret=st.binary(min_size=32, max_size=32))
@settings(max_examples=40, deadline=None)
def test_enough_shares_give_the_secret_and_fewer_do_not(
    people: int, data: st.DataObject, secret: bytes
):
    needed = data.draw(st.integers(1, people))
    shares = secure.split_secret(secret, people, needed, b"entropy")
    assert list(shares) == list(range(1, people + 1))
    chosen = data.draw(st.permutations(list(shares)))[:needed]
    assert secure.join_shares({x: shares[x] for x in chosen}) == secret
    if needed > 1:
        with pytest.raises(ValueError, match="give no seed"):
            secure.join_shares({x: shares[x] for x in chosen[1:]})
        altered = {x: shares[x] + (x == chosen[0]) * 2**400 for x in chosen}
        with pytest.raises(ValueError, match="give no seed"):
            secure.join_shares(altered)


def test_shares_depend_on_the_entropy_in_every_coefficient():
    one, other = (secure.split_secret(bytes(32), 4, 3, entropy) for entropy in (b"a", b"b"))
    assert all(one[x] != other[x] and one[x] > 2**400 for x in one)
    # third differences of a parabola are zero, second ones are not
    second = [(one[x] - 2 * one[x + 1] + one[x + 2]) % secure.PRIME for x in (1, 2)]
    assert second[0] == second[1] != 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: secure.quantise(torch.tensor([torch.nan]), 1.0, 2), "values must be finite"),
        (lambda: secure.quantise(torch.ones(2), 0.0, 2), "quantum must be above 0, got 0.0"),
        (lambda: secure.mask_stream(b"short", 1, 4), "seed must have 32 bytes, got 5"),
        (lambda: secure.deal_keys([1], b"s"), "clients must be at least 2"),
        (lambda: secure.deal_keys([1, 1], b"s"), "each once; got"),
        (lambda: secure.split_secret(bytes(32), 3, 4, b""), "needed must be 1 to 3"),
        (lambda: secure.split_secret(bytes(31), 3, 2, b""), "got 2 and 31"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()
