"""Charts must show the mean and the interval of what they are given, and keep their names apart."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.text import Annotation, Text

from mlguide import figures
from mlguide.experiments import interval
from mlguide.figures import METHODS, STATES, spread
from mlguide.look import Look

BUDGETS = [1, 5, 20, 100]
RANDOM = np.random.default_rng(0)
RESULTS = {
    "frozen features": 0.60 + 0.02 * RANDOM.standard_normal((10, 4)),
    "fine-tuned": 0.61 + 0.02 * RANDOM.standard_normal((10, 4)),
    "from scratch": 0.59 + 0.02 * RANDOM.standard_normal((10, 4)),
    "pixels": 0.24 + 0.02 * RANDOM.standard_normal((10, 4)),
}


def test_lines_are_means_and_bands_are_intervals():
    axes = figures.budget_curve(BUDGETS, RESULTS, ylim=(0, 1)).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    for (name, values), band in zip(RESULTS.items(), bands, strict=True):
        assert lines[name].get_ydata() == pytest.approx(values.mean(0))
        corners = band.get_paths()[0].vertices
        for place, budget in enumerate(BUDGETS):
            at = corners[corners[:, 0] == budget, 1]
            expected = interval(values[:, place])
            assert (at.min(), at.max()) == pytest.approx((expected.low, expected.high))
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "5", "20", "100"]


def test_a_name_looks_the_same_everywhere():
    for name in ("frozen features", "linear probe"):
        assert METHODS[name].colour == STATES["frozen"].colour
    assert METHODS["fine-tuned"].colour == STATES["trained"].colour
    line = figures.budget_curve(BUDGETS, RESULTS).axes[0].lines[0]
    assert (line.get_color(), line.get_marker()) == (STATES["frozen"].colour, "s")


def test_no_two_states_share_a_colour_or_any_other_sign():
    for one, other in combinations(STATES.values(), 2):
        assert one.colour != other.colour and one.hatch != other.hatch
        assert one.marker != other.marker and one.symbol != other.symbol


def test_names_at_the_line_ends_do_not_overlap_and_stay_on_the_page():
    figure = figures.budget_curve(BUDGETS, RESULTS, ylim=(0, 1))
    figure.draw_without_rendering()
    notes = [note for note in figure.axes[0].texts if isinstance(note, Annotation)]
    assert {note.get_text() for note in notes} == set(RESULTS)
    boxes = [Text.get_window_extent(note) for note in notes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_spread_moves_labels_no_more_than_needed():
    assert spread([0.1, 0.9, 0.5], [0.1] * 3, 0, 1) == pytest.approx([0.1, 0.9, 0.5])
    assert spread([0.5, 0.5], [0.2, 0.2], 0, 1) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.02], [0.1, 0.1], 0, 1) == pytest.approx([0.05, 0.15])
    heights = np.array([0.1, 0.2, 0.1, 0.1])
    placed = spread([0.52, 0.5, 0.51, 0.95], list(heights), 0, 1)
    assert list(np.argsort(placed)) == [1, 2, 0, 3]
    assert np.diff(np.sort(placed))[:2] == pytest.approx([0.15, 0.1])


def test_dots_show_every_seed_and_say_the_interval():
    gain = RESULTS["frozen features"][:, 0] - RESULTS["pixels"][:, 0]
    axes = figures.dot_intervals({"5 labels": gain}, xlabel="gain", zero=True).axes[0]
    assert axes.lines[0].get_xdata() == pytest.approx(gain)
    expected = interval(gain)
    assert axes.lines[1].get_xdata() == pytest.approx([expected.low, expected.high])
    assert axes.texts[0].get_text() == f"{expected:+}"


def test_cost_stands_beside_accuracy_in_the_same_row():
    scores = {name: values[:, 0] for name, values in RESULTS.items()}
    seconds = {name: np.exp(values[:, 1]) for name, values in RESULTS.items()}
    left, right = figures.cost_accuracy(scores, seconds).axes
    assert right.get_xscale() == "log" and left.get_ylim() == right.get_ylim()
    once = figures.cost_accuracy(scores, dict.fromkeys(scores, 1.5)).axes[1]
    assert {text.get_text() for text in once.texts} == {"1.50"}  # one measurement, no interval
    with pytest.raises(ValueError, match="must be the same"):
        figures.cost_accuracy(scores, dict(reversed(seconds.items())))


def test_size_and_accuracy_share_a_point_and_names_stay_off_a_family():
    sizes = {"head only": 165, "LoRA, rank 1": 606, "LoRA, rank 2": 1047, "all weights": 10237}
    scores = {name: [0.5 + i / 10, 0.6 + i / 10] for i, name in enumerate(sizes)}
    axes = figures.size_accuracy(
        sizes, scores, xlabel="parameters", joined={"LoRA": ["LoRA, rank 1", "LoRA, rank 2"]}
    ).axes[0]
    assert axes.get_xscale() == "log"
    names = {text.get_text(): (text.xy, text.get_va()) for text in axes.texts}
    assert names["all weights"][0] == (10237, pytest.approx(interval(scores["all weights"]).low))
    assert {name: va for name, (_, va) in names.items()} == {
        "head only": "top",
        "LoRA\nrank 1": "bottom",
        "LoRA\nrank 2": "bottom",
        "all weights": "top",
    }
    line = axes.lines[-1]
    assert list(line.get_xdata()) == [606, 1047]
    assert list(line.get_ydata()) == pytest.approx([0.65, 0.75])
    with pytest.raises(ValueError, match="must be the same"):
        figures.size_accuracy(sizes, dict(reversed(scores.items())), xlabel="parameters")
    with pytest.raises(ValueError, match="must be \\(seeds,\\)"):
        figures.size_accuracy({"LoRA": 1}, {"LoRA": [[1, 2]]}, xlabel="parameters")


def test_pictures_keep_their_order_and_say_right_and_wrong_without_colour():
    images = np.linspace(0, 1, 3 * 4).reshape(3, 1, 2, 2)
    figure = figures.picture_grid(images, ["a", "b", "c"], columns=2, marks=["right", "wrong", ""])
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["✓ a", "✗ b", "c"]
    assert all(
        np.array_equal(axes.images[0].get_array(), image[0])
        for axes, image in zip(shown, images, strict=True)
    )
    assert shown[0].patches[0].get_linestyle() != shown[1].patches[0].get_linestyle()


def test_a_map_gives_each_class_a_marker_and_its_name():
    labels = np.array([0, 0, 1, 1])
    points = np.array([[0.0, 0], [0, 2], [5, 5], [7, 5]])
    figure = figures.scatter_map({"before": points, "after": points / 2}, labels, ["cat", "dog"])
    before, after = figure.axes
    assert before.get_xlim() == after.get_xlim()
    assert before.lines[0].get_marker() != before.lines[1].get_marker()
    names = {t.get_text(): t.get_position() for t in after.texts}
    assert names == {"cat": (0, 0.5), "dog": (3, 2.5)} and not before.texts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.budget_curve(BUDGETS, {}), "at least one method"),
        (lambda: figures.budget_curve([1, 5], RESULTS), r"'frozen features' must be \(seeds, 2\)"),
        (lambda: figures.dot_intervals(RESULTS, xlabel="x"), r"must be \(seeds,\), got \(10, 4\)"),
        (lambda: figures.picture_grid(np.zeros((2, 28, 28))), r"must be \(N, 1 or 3, H, W\)"),
        (lambda: figures.picture_grid(np.zeros((2, 1, 4, 4)), ["one"]), "2 images, but 1 captions"),
        (lambda: figures.scatter_map({"a": np.zeros((2, 3))}, [0, 1], ["x", "y"]), r"\(2, 2\)"),
    ],
)
def test_wrong_shapes_are_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_text_on_white_is_readable():
    looks: list[Look] = [*STATES.values(), *METHODS.values()]
    for colour in {look.text for look in looks}:
        part = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in part]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.45


def test_charts_leave_pyplot_and_its_settings_alone():
    settings = dict(plt.rcParams)
    figures.dot_intervals({"pixels": RESULTS["pixels"][:, 0]}, xlabel="accuracy")
    assert plt.get_fignums() == [] and dict(plt.rcParams) == settings
