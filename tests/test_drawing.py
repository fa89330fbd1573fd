"""A drawing must say of the live module what is so, and nothing else."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Annotation, Text
from torch import nn

from mlguide import drawing
from mlguide.drawing import draw
from mlguide.figures import STATES
from mlguide.models import EfficientNet, SmallCNN
from mlguide.transfer import freeze

PICTURE = torch.linspace(0, 1, 28 * 28).reshape(1, 28, 28)
BLOCKS = ["block1", "block2", "block3", "features"]


def looks(figure: Figure) -> dict[str, list[tuple[str, str]]]:
    """Colour and hatch of every slab (a split one has several), as they are drawn."""
    found: dict[str, list[tuple[str, str]]] = {}
    for box in figure.findobj(FancyBboxPatch):
        if (box.get_gid() or "").startswith("slab "):
            look = to_hex(box.get_facecolor()).upper(), box.get_hatch() or ""
            found.setdefault(box.get_gid().split(".")[-1].removeprefix("slab "), []).append(look)
    return found


def texts(figure: Figure, gid: str) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_gid() == gid]


def look(state: str) -> tuple[str, str]:
    return STATES[state].colour, STATES[state].hatch


def test_colour_and_hatch_follow_requires_grad():
    model = SmallCNN(5, seed=0)
    before = looks(draw(model, PICTURE))
    assert all(before[name] == [look("trained")] for name in [*BLOCKS, "head"])
    assert before["pool"] == [("#FFFFFF", "")]

    freeze(model, "backbone.block2")
    after = looks(draw(model, PICTURE))
    assert after["block2"] == [look("frozen")]
    assert {k: v for k, v in after.items() if k != "block2"} == {
        k: v for k, v in before.items() if k != "block2"
    }


def test_a_block_that_is_partly_frozen_is_split_and_counted_apart():
    model = SmallCNN(5, seed=0)
    model.backbone.block1[0].weight.requires_grad_(False)
    figure = draw(model, PICTURE)
    assert looks(figure)["block1"] == [look("frozen"), look("trained")]
    assert texts(figure, "text backbone.block1")[-2:] == ["❄ 72", "↻ 16"]


def test_counts_and_shapes_are_the_modules_own():
    model = freeze(SmallCNN(5, seed=0), "backbone")
    figure = draw(model, PICTURE, states={"head": "new"})
    frozen = sum(p.numel() for p in model.backbone.parameters())
    assert texts(figure, "legend frozen") == [f"❄ frozen {frozen:,}"]
    assert texts(figure, "legend new") == ["✚ new 165"]
    assert not texts(figure, "legend trained")
    assert texts(figure, "text backbone.block2")[:5] == [
        "block2", "3×3 conv", "8 → 16", "16×4×4", "1,184",
    ]  # fmt: skip
    assert texts(figure, "text head") == ["head", "linear", "32 → 5", "5 numbers", "165"]


@pytest.mark.parametrize("mode", [True, False])
def test_batchnorm_moves_unless_the_statistics_are_frozen_too(mode: bool):
    """Seen by a forward pass: a flag would not do, `train()` sets it on frozen layers as well."""
    trap = SmallCNN(5, seed=0).requires_grad_(False).train(mode)
    assert texts(draw(trap, PICTURE), "text backbone.block1")[-2:] == ["BatchNorm", "moves!"]
    safe = freeze(SmallCNN(5, seed=0), "backbone").train(mode)
    assert texts(draw(safe, PICTURE), "text backbone.block1")[-2:] == ["BatchNorm", "at rest"]


def test_drawing_leaves_no_trace():
    model = SmallCNN(5, seed=0)
    model.backbone.add_module("drop", nn.Dropout(0.5))  # draws random numbers in training mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    draw(model, PICTURE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in model.modules())


def test_heads_are_branches_and_what_is_told_is_drawn():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = freeze(SmallCNN(5, seed=0).backbone)
            self.heads = nn.ModuleDict({"garment": nn.Linear(32, 10), "turn": nn.Linear(32, 2)})

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            features = self.backbone(images)
            return {name: head(features) for name, head in self.heads.items()}

    figure = draw(TwoHeads(), PICTURE, states={"backbone": "shared", "heads": "task-specific"})
    seen = looks(figure)
    assert [seen[name] for name in BLOCKS] == [[look("shared")]] * 4
    assert seen["garment"] == seen["turn"] == [look("task-specific")]
    garment, turn = (
        next(b for b in figure.findobj(FancyBboxPatch) if b.get_gid() == f"slab heads.{name}")
        for name in ("garment", "turn")
    )
    assert garment.get_x() == turn.get_x() and garment.get_y() != turn.get_y()
    snowflakes = [t for t in figure.findobj(Text) if t.get_text() == "❄"]
    assert len(snowflakes) == 4  # frozen, although told to be drawn as shared


def test_a_long_network_fits_the_page():
    model = EfficientNet(4, seed=0, pretrained=False)
    figure = draw(model, torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))
    figure.draw_without_rendering()
    page = figure.bbox
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        assert not text.get_text() or (box.x0 >= page.x0 and box.x1 <= page.x1), text
    assert len(looks(figure)) == len(model.backbone) + 1


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"tail": "new"}, "'tail', which is no block of"),
        ({"head": "warm"}, "must be one of .*'new'.*got 'warm'"),
        ({"head": "frozen"}, "got 'frozen'"),
    ],
)
def test_wrong_states_are_refused(states: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        draw(SmallCNN(5, seed=0), PICTURE, states=states)


def test_a_legend_of_three_states_fits_on_the_sheet():
    model = freeze(SmallCNN(10, seed=0), "head", "backbone.block1")
    states = {"backbone.block2": "shared", "backbone.block3": "task-specific"}
    figure = draw(freeze(model, "backbone.features"), PICTURE, states=states)
    ends = [text.get_window_extent().x1 for text in figure.findobj(Text)
            if (text.get_gid() or "").startswith("legend")]  # fmt: skip
    assert len(ends) == 3 and max(ends) < figure.bbox.x1 - 5


def round_view(asked: list[int], **changes: Any) -> drawing.RoundView:
    g, m = torch.Generator().manual_seed(0), len(asked)
    view = drawing.RoundView(
        phones=20, asked=asked, sizes=[10 + k for k in asked],
        before=torch.randn(5, 5, generator=g), after=torch.randn(5, 5, generator=g),
        trained=torch.randn(m, 5, 5, generator=g), pictures=torch.rand(m, 4, 7, 7, generator=g),
        losses=torch.tensor([[2.0, 1.0 / (k + 1)] for k in asked]), accuracy=(0.1, 0.45),
        down=1000, up=400,
    )  # fmt: skip
    return dataclasses.replace(view, **changes)


def tiles(figure: Figure) -> list[np.ndarray]:
    """The weights that are drawn, but not the phones' pictures."""
    images = figure.axes[0].get_images()
    return [np.asarray(i.get_array()) for i in images if i.get_cmap().name == "PuOr_r"]


@pytest.mark.parametrize("step", range(1, 6))
def test_a_round_shows_the_weights_where_they_are_and_counts_what_went_over_the_wire(step: int):
    view = round_view([3, 8, 11])
    before, updates = view.before, view.trained - view.before
    on_phones = [[], [before] * 3, *[list(view.trained)] * 3][step - 1]
    at_server = [before] if step < 5 else [before, view.after - before, view.after]
    travel = {2: [before] * 3, 4: list(updates)}.get(step, [])
    figure = drawing.draw_round(view, step)
    drawn, wanted = tiles(figure), [*at_server, *on_phones, *travel]
    assert sorted(np.round(t, 4).tobytes() for t in drawn) == sorted(
        np.round(t.numpy(), 4).tobytes() for t in wanted
    )
    there = {(i.get_extent()[0], i.get_extent()[3]) for i in figure.axes[0].get_images()}
    for frame in (patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)):
        empty = frame.get_xy() not in there  # and then dashed
        assert (frame.get_linestyle() != "-") == empty
    words = [text.get_text() for text in figure.axes[0].texts]
    down, up = (3000 if step > 1 else 0), (1200 if step > 3 else 0)
    assert f"this round: {down:,} bytes down, {up:,} bytes up" in words
    assert any("phone 8" in word for word in words) and "18 pictures" in words
    assert ("0.10 → 0.45" if step == 5 else "0.10") in words
    assert ("loss\n2.00\n→ 0.11" in words) == (step > 2)  # of phone 8
    training = STATES["trained"].text
    losses = [text for text in figure.axes[0].texts if text.get_text().startswith("loss")]
    assert all((text.get_color() == training) == (step == 3) for text in losses)
    arrows = [text.arrow_patch for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert len(arrows) == (3 if step in (2, 4) else 0)


def test_the_arrows_of_a_round_go_down_first_and_up_later():
    for step, sign in ((2, 1), (4, -1)):
        figure = drawing.draw_round(round_view([1, 2]), step)
        arrows = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
        assert all(sign * (arrow.xy[1] - arrow.xyann[1]) > 0 for arrow in arrows)


def test_a_round_with_many_phones_draws_four_and_counts_all():
    figure = drawing.draw_round(round_view(list(range(0, 20, 2))), 4)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert sum(word.endswith("pictures") for word in words) == 4
    assert "20 phones, 10 asked, 4 drawn" in words
    assert "this round: 10,000 bytes down, 4,000 bytes up" in words
    with pytest.raises(ValueError, match="step must be 1 to 5, got 6"):
        drawing.draw_round(round_view([1]), 6)


@pytest.mark.parametrize("step", range(1, 6))
def test_the_words_of_a_round_stay_on_the_sheet_and_off_one_another(step: int):
    figure = drawing.draw_round(round_view([10, 11, 12, 13]), step)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text()]
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
