import csv
import math

import pytest
import torch
import train_language_model
from torch import nn
from torch.nn import functional as F

from mlguide import data, models
from mlguide.data import encode
from mlguide.language import (
    LEARNED,
    UNSEEN,
    bits_per_character,
    generate,
    next_character_loss,
    windows,
)
from mlguide.models import CharTransformer, load_base, load_language_model
from mlguide.training import fit


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(context=8, seed=0):
    return CharTransformer(seed=seed, context=context, width=16, blocks=2, heads=2)


class Bigram(nn.Module):
    """Gives the scores of a table, for each character those of the next one."""

    def __init__(self, context, seed=0):
        super().__init__()
        self.context = context
        self.table = torch.randn(64, 64, generator=generator(seed))

    def forward(self, ids):
        return self.table[ids]


# -- the transformer


def test_the_transformer_is_a_backbone_and_a_head():
    model = CharTransformer(seed=0)
    ids = encode("Who's there?")[None]
    assert torch.equal(model.head(model.backbone(ids)), model(ids))
    assert model(ids).shape == (1, 12, 64)
    assert [name for name, _ in model.named_children()] == ["backbone", "head"]
    assert [name for name, _ in model.backbone.named_children()] == [
        "embedding", "block1", "block2", "block3", "block4", "norm",
    ]  # fmt: skip
    linear = [name for name, _ in model.backbone.block1.named_children() if name[:4] != "norm"]
    assert linear == ["query", "key", "value", "out", "up", "down"]
    assert all(isinstance(model.backbone.block1.get_submodule(name), nn.Linear) for name in linear)


def test_a_seed_draws_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (small(seed=seed).backbone.block1.query.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("place", range(1, 8))
def test_a_later_character_never_changes_an_earlier_score(place):
    model = small().double()
    ids = torch.randint(64, (1, 8), generator=generator())
    changed = ids.clone()
    changed[0, place] = (ids[0, place] + 1) % 64
    before, after = model(ids)[0], model(changed)[0]
    assert torch.allclose(before[:place], after[:place], rtol=0, atol=1e-12)
    # and it does change every score from its own place on
    assert ((before - after)[place:].abs().amax(1) > 1e-6).all()


def test_the_order_of_what_came_before_matters():
    # one block, as a second one could tell the order by what the first saw at each place
    model = CharTransformer(seed=0, context=8, width=16, blocks=1, heads=2)
    one, other = model(torch.tensor([[5, 6, 7], [6, 5, 7]]))
    assert (one[2] - other[2]).abs().max() > 1e-4


def test_attention_goes_by_how_far_apart_places_are():
    q, k = torch.randn(2, 1, 8, generator=generator(), dtype=torch.float64)
    match = models._turn(q.expand(20, 8)) @ models._turn(k.expand(20, 8)).T
    for apart in range(20):
        diagonal = match.diagonal(-apart)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-12)
    assert match[0, 0] == pytest.approx((q @ k.T).item())
    assert len({round(value, 6) for value in match[:, 0].tolist()}) == 20


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (torch.zeros(2, 9, dtype=torch.int64), r"T from 1 to 8, the context; got .*\(2, 9\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"T from 1 to 8, the context; got .*\(2, 0\)"),
        (torch.zeros(4, dtype=torch.int64), r"ids must be int64 of shape \(N, T\)"),
        (torch.zeros(2, 4), "ids must be int64 .* got torch.float32"),
        (torch.tensor([[3, 64]]), "ids must be 0 to 63; got 3 to 64"),
        (torch.tensor([[-1, 5]]), "ids must be 0 to 63; got -1 to 5"),
    ],
)
def test_what_is_not_text_is_refused(ids, says):
    with pytest.raises(ValueError, match=says):
        small()(ids)


@pytest.mark.parametrize("heads", [0, 3, 16])
def test_heads_must_part_the_width(heads):
    with pytest.raises(ValueError, match=f"multiple of 2 x heads; got 16 and {heads}"):
        CharTransformer(seed=0, width=16, heads=heads)


# -- text as examples


def test_windows_have_the_next_character_as_label():
    inputs, labels = windows(torch.arange(10), 3)
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert labels.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert windows(torch.arange(10), 3, stride=2)[0][:, 0].tolist() == [0, 2, 4, 6]
    assert windows(torch.arange(9), 3)[0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("ids", "settings", "says"),
    [
        (torch.arange(3), {"size": 3}, "at least 4 characters; got .*(3,)"),
        (torch.arange(8.0), {"size": 3}, "ids must be int64"),
        (torch.arange(8)[None], {"size": 3}, "ids must be int64 of shape"),
        (torch.arange(8), {"size": 3, "stride": 0}, "stride must be at least 1, got 0"),
        (torch.arange(8), {"size": 0}, "size must be at least 1, got 0"),
    ],
)
def test_windows_are_checked(ids, settings, says):
    with pytest.raises(ValueError, match=says):
        windows(ids, **settings)


def test_a_model_learns_a_text_by_heart():
    model = small()
    ids = encode("To be, or not to be: " * 8)
    before = bits_per_character(model, ids)
    inputs, labels = windows(ids, 8)
    history = fit(
        model, inputs, labels, steps=150, learning_rate=0.01, batch_size=16,
        generator=generator(), loss=next_character_loss,
    )  # fmt: skip
    assert before > 5 and bits_per_character(model, ids) < 1
    assert len(history.losses) == 150 and history.losses[-1] < history.losses[0] / 4
    assert not model.training
    assert generate(model, "To be, ", 14, generator(), temperature=0) == "or not to be: "


def test_every_place_of_every_window_counts_alike():
    inputs, labels = windows(encode("The rest is silence."), 5)
    scores = small()(inputs)
    places = [
        F.cross_entropy(scores[n, t], labels[n, t]) for n in range(len(inputs)) for t in range(5)
    ]
    assert torch.allclose(next_character_loss(scores, labels), torch.stack(places).mean())


# -- bits per character


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 10, 11, 12, 13, 40, 1001])
@pytest.mark.parametrize("context", [1, 7, 8])
def test_bits_count_every_character_once(length, context):
    """A model that sees one character only must get the same from every cut into windows."""
    model = Bigram(context)
    ids = torch.randint(64, (length,), generator=generator(1))
    pairs = list(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
    told = [-math.log2(model.table[a].softmax(0)[b]) for a, b in pairs]
    assert bits_per_character(model, ids) == pytest.approx(sum(told) / len(told), rel=1e-5)


def test_bits_are_told_from_at_least_half_a_context():
    model = small(context=8)
    ids = torch.randint(64, (30,), generator=generator())
    told = []
    for target in range(1, 30):  # windows begin at 0, 4, 8, ...; each tells its last four
        start = 0 if target <= 8 else 4 * ((target - 9) // 4 + 1)
        scores = model(ids[None, start:target])[0, -1]
        told.append(F.cross_entropy(scores, ids[target]).item() / math.log(2))
    assert bits_per_character(model, ids) == pytest.approx(sum(told) / len(told), rel=1e-5)


def test_knowing_nothing_takes_six_bits():
    model = small().train()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    assert bits_per_character(model, encode("Nothing will come of nothing.")) == pytest.approx(6)
    assert model.training


def test_bits_of_too_little_are_refused():
    with pytest.raises(ValueError, match="at least 2 characters"):
        bits_per_character(small(), torch.tensor([3]))


# -- generation


def test_generation_follows_its_generator():
    model = small()
    one, same, other = (generate(model, "Ay", 30, generator(seed)) for seed in (0, 0, 1))
    assert one == same != other and len(one) == 30
    assert generate(model, "Ay", 0, generator()) == ""


def test_generation_draws_by_the_probabilities():
    model = Bigram(context=4)
    text = "A" + generate(model, "A", 4000, generator(), temperature=2)
    after = [text[i + 1] for i in range(len(text) - 1) if text[i] == "e"]
    expected = (model.table[encode("e")[0]] / 2).softmax(0)
    found = torch.bincount(encode("".join(after)), minlength=64) / len(after)
    noise = (expected * (1 - expected) / len(after)).sqrt()
    assert ((found - expected).abs() < 4 * noise + 1 / len(after)).all()


def test_generation_at_zero_takes_the_likeliest_and_sees_the_context():
    model = small(context=8)
    prompt = "Good night, sweet prince"
    expected = model(encode(prompt)[None, -8:])[0, -1].argmax()
    assert encode(generate(model, prompt, 1, generator(), temperature=0)) == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompt": "7"}, "prompt must have a character of the alphabet; got '7'"),
        ({"length": -1}, "must be at least 0; got -1 and 1.0"),
        ({"temperature": -0.5}, "must be at least 0; got 5 and -0.5"),
        ({"temperature": math.nan}, "must be at least 0; got 5 and nan"),
    ],
)
def test_generation_is_checked(settings, says):
    with pytest.raises(ValueError, match=says):
        generate(small(), **{"prompt": "Ay", "length": 5, "generator": generator(), **settings})


# -- the bundled model


def stated_bits():
    with (models.BASES / "language.csv").open(encoding="utf-8") as file:
        return {
            (r["play"], r["name"]): float(r["bits_per_character"]) for r in csv.DictReader(file)
        }


def test_the_bundled_model_has_the_bits_it_was_given():
    model, stated = load_language_model(), stated_bits()
    assert not model.training and all(p.requires_grad for p in model.parameters())
    roles = data.shakespeare()
    assert stated.keys() == {(role.play, role.name) for role in roles}
    for role in roles[::40]:
        found = bits_per_character(model, encode(data.cut(role.text, LEARNED)[1]))
        assert found == pytest.approx(stated[role.play, role.name], abs=0.002)


def test_the_bundled_model_writes_words_of_shakespeare():
    known = set("\n".join(role.text for role in data.shakespeare()).split())
    words = generate(load_language_model(), "\n", 600, generator(), temperature=0.7).split()
    found = sum(word in known for word in words) / len(words)
    assert found > 0.8  # by letters drawn as often as Shakespeare has them, about 0.1


def test_it_learned_from_no_comedy_and_no_last_tenth():
    roles = data.shakespeare()
    inputs, _ = train_language_model.examples(128)
    learned = data.decode(inputs.flatten())
    expected = "".join(data.cut(r.text, LEARNED)[0] for r in roles if r.genre != UNSEEN)
    assert expected.startswith(learned) and len(expected) - len(learned) <= 128
    assert UNSEEN in {role.genre for role in roles}


def test_the_language_model_is_no_base():
    with pytest.raises(ValueError, match="name must be one of far_any_pose, mnist, near"):
        load_base("language", 0)
