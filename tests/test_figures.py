"""Charts must show the mean and the interval of what they are given, and keep their names apart."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.text import Annotation, Text

from mlguide import figures
from mlguide.experiments import interval
from mlguide.figures import METHODS, STATES, spread, upwards
from mlguide.look import WIDTH, Look, sheet

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


def test_a_line_is_as_wide_as_its_look_says():
    results = {"alone": RESULTS["pixels"], "alone, formula": RESULTS["pixels"]}
    axes = figures.line_bands(BUDGETS, results, xlabel="x", ylabel="y").axes[0]
    measured, formula = axes.lines[:2]
    assert formula.get_linewidth() < measured.get_linewidth() and formula.get_linestyle() == ":"


def test_no_two_states_share_a_colour_or_any_other_sign():
    for one, other in combinations(STATES.values(), 2):
        assert one.colour != other.colour and one.hatch != other.hatch
        assert one.marker != other.marker and one.symbol != other.symbol


def test_a_level_is_a_named_line_across():
    figure = figures.line_bands(BUDGETS, RESULTS, xlabel="x", ylabel="y", level=("chance", 0.1))
    axes = figure.axes[0]
    assert [0.1, 0.1] in [list(line.get_ydata()) for line in axes.lines]
    assert {t.get_text(): t.get_position()[1] for t in axes.texts}["chance"] == 0.1


def test_names_at_the_line_ends_do_not_overlap_and_stay_on_the_page():
    figure = figures.budget_curve(BUDGETS, RESULTS, ylim=(0, 1))
    figure.draw_without_rendering()
    notes = [note for note in figure.axes[0].texts if isinstance(note, Annotation)]
    assert {note.get_text() for note in notes} == set(RESULTS)
    boxes = [Text.get_window_extent(note) for note in notes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_names_of_lines_that_end_alike_stand_in_the_order_of_the_lines():
    lines = {"below": [0.2, 0.1, 0.501], "above": [0.2, 0.6, 0.5], "top": [0.1, 0.2, 0.9]}
    results = {name: np.stack([line, line]) for name, line in lines.items()}
    for names in (["below", "above", "top"], ["above", "top", "below"]):
        ordered = {name: results[name] for name in names}
        figure = figures.line_bands([0, 1, 2], ordered, xlabel="x", ylabel="y", ylim=(0, 1))
        at = {note.get_text(): note.get_position()[1] for note in figure.axes[0].texts}
        assert sorted(at, key=at.get) == ["below", "above", "top"]
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(note) for note in figure.axes[0].texts]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        ends = {note.get_text(): note.xy[1] for note in figure.axes[0].texts}
        assert ends == {name: line[-1] for name, line in lines.items()}  # stems lead to the ends


def test_upwards_asks_earlier_values_only_where_the_later_ones_tie():
    assert upwards([[0.0, 2.0], [9.0, 1.0]], 0.1) == [1, 0]
    assert upwards([[0.0, 1.05], [9.0, 1.0]], 0.1) == [0, 1]
    assert upwards([[3.0, 1, 1], [2.0, 1, 1], [1.0, 0, 1]], 0.1) == [2, 1, 0]
    assert upwards([[1.0], [1.0], [0.5]], 0.1) == [2, 0, 1]  # nothing tells: as they came
    assert upwards([], 0.1) == []


def test_spread_moves_labels_no_more_than_needed():
    assert spread([0.1, 0.9, 0.5], [0.1] * 3, 0, 1) == pytest.approx([0.1, 0.9, 0.5])
    assert spread([0.5, 0.5], [0.2, 0.2], 0, 1) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.02], [0.1, 0.1], 0, 1) == pytest.approx([0.05, 0.15])
    heights = np.array([0.1, 0.2, 0.1, 0.1])
    placed = spread([0.52, 0.5, 0.51, 0.95], list(heights), 0, 1)
    assert list(np.argsort(placed)) == [1, 2, 0, 3]
    assert np.diff(np.sort(placed))[:2] == pytest.approx([0.15, 0.1])
    assert spread([0.5, 0.52], [0.2, 0.2], 0, 1, [1, 0]) == pytest.approx([0.61, 0.41])


def test_dots_show_every_seed_and_say_the_interval():
    gain = RESULTS["frozen features"][:, 0] - RESULTS["pixels"][:, 0]
    axes = figures.dot_intervals({"5 labels": gain}, xlabel="gain", zero=True).axes[0]
    assert axes.lines[0].get_xdata() == pytest.approx(gain)
    expected = interval(gain)
    assert axes.lines[1].get_xdata() == pytest.approx([expected.low, expected.high])
    assert axes.texts[0].get_text() == f"{expected:+}"
    level = figures.dot_intervals({"5 labels": [-0.001, -0.003]}, xlabel="x", zero=True, digits=2)
    assert level.axes[0].texts[0].get_text().startswith("0.00 ±")  # zero has no sign


def test_cost_stands_beside_accuracy_in_the_same_row():
    scores = {name: values[:, 0] for name, values in RESULTS.items()}
    seconds = {name: np.exp(values[:, 1]) for name, values in RESULTS.items()}
    left, right = figures.cost_accuracy(scores, seconds).axes
    assert right.get_xscale() == "log" and left.get_ylim() == right.get_ylim()
    once = figures.cost_accuracy(scores, dict.fromkeys(scores, 1.5)).axes[1]
    assert {text.get_text() for text in once.texts} == {"1.50"}  # one measurement, no interval
    with pytest.raises(ValueError, match="must be the same"):
        figures.cost_accuracy(scores, dict(reversed(seconds.items())))


def test_cost_ratios_stand_where_they_are_and_say_so():
    ratios = {
        "three networks": {"weights": 3.0, "time": 2.5},
        "pixels": {"weights": 1.0, "time": 2},
    }
    axes = figures.cost_ratios(ratios, to="shared").axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in lines] == [[1, 1], [3.0, 2.5], [1.0, 2]]
    start, end = lines[0].get_ydata()  # along all rows, and no further
    assert start < 0 and 1 < end <= axes.get_ylim()[0]
    near = {name: {"weights": 1.0, "time": 2.0} for name in ("one network", "another network")}
    crowd = figures.cost_ratios(near, to="a network like these").axes[0]
    crowd.figure.draw_without_rendering()
    names = [Text.get_window_extent(t) for t in crowd.texts if "network" in t.get_text()]
    names.append(crowd.lines[0].get_window_extent())
    assert not any(one.overlaps(other) for one, other in combinations(names, 2))
    assert lines[0].get_color() == STATES["shared"].colour
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"shared", *ratios, "3.00×", "2.50×", "1.00×", "2.00×"}
    sides = {text.get_text(): text.get_ha() for text in axes.texts if "×" in text.get_text()}
    assert sides == {"3.00×": "left", "2.50×": "left", "1.00×": "right", "2.00×": "right"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["weights", "time"]
    with pytest.raises(ValueError, match="the same costs"):
        figures.cost_ratios({"a": {"weights": 1.0}, "b": {"time": 1.0}}, to="shared")


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
    (key,) = figure.legends  # above the panels, so that no name lies on a point
    key_marks = [line.get_marker() for line in key.get_lines()]
    assert [text.get_text() for text in key.get_texts()] == ["cat", "dog"]
    assert key_marks == [line.get_marker() for line in after.lines]
    figure = figures.scatter_map({"now": points}, labels, ["cat", "dog"], path=True)
    loop = [[0, 0], [0, 2], [0, 0]]  # of the cats, and closed
    assert loop in [line.get_xydata().tolist() for line in figure.axes[0].lines]


def test_panels_have_one_scale_and_each_its_own_methods():
    near = {name: values[:, 0] for name, values in RESULTS.items()}
    far = {"pixels": RESULTS["pixels"][:, 1]}
    figure = figures.dot_panels({"near": near, "far": far}, xlabel="accuracy", xlim=(0, 1))
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim() == (0, 1)
    assert [t.get_text() for t in above.get_yticklabels()] == list(near)
    assert [t.get_text() for t in below.get_yticklabels()] == ["pixels"]
    assert (above.get_title(loc="left"), below.get_title(loc="left")) == ("near", "far")
    means = [line.get_xdata()[0] for line in below.lines if len(line.get_xdata()) == 1]
    assert means == pytest.approx([far["pixels"].mean()])
    figure = figures.dot_panels({"near": near, "far": far}, xlabel="x", level=("chance", 0.1))
    for axes in figure.axes:
        assert [0.1, 0.1] in [list(line.get_xdata()) for line in axes.lines]
    zero = figures.dot_panels({"near": near, "far": far}, xlabel="gain", zero=True)
    assert all([0, 0] in [list(line.get_xdata()) for line in a.lines] for a in zero.axes)
    assert sum(t.get_text() == "chance" for axes in figure.axes for t in axes.texts) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.dot_panels({}, xlabel="x"), "at least one exam"),
        (lambda: figures.budget_curve(BUDGETS, {}), "at least one method"),
        (lambda: figures.budget_curve([1, 5], RESULTS), r"'frozen features' must be \(seeds, 2\)"),
        (lambda: figures.dot_intervals(RESULTS, xlabel="x"), r"must be \(seeds,\), got \(10, 4\)"),
        (lambda: figures.picture_grid(np.zeros((2, 28, 28))), r"must be \(N, 1 or 3, H, W\)"),
        (lambda: figures.picture_grid(np.zeros((2, 1, 4, 4)), ["one"]), "2 images, but 1 captions"),
        (lambda: figures.scatter_map({"a": np.zeros((2, 3))}, [0, 1], ["x", "y"]), r"\(2, 2\)"),
        (lambda: figures.scatter_map({"a": np.zeros((2, 2))}, [0, 1], ["x"] * 99), "at most"),
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


def test_gauges_stand_under_the_picture_and_write_the_numbers_of_their_place():
    with sheet(2.0) as picture:
        picture.set_layout_engine("none")
        picture.add_axes((0, 0, 1, 1))
    scores = {"accuracy": RESULTS["pixels"]}
    costs = {"weights": [5, 1234, 20, 30], "seconds": [1, 10, 3, 4]}
    figures.gauges(picture, 1, scores, costs, height=4.0)
    above, left, right, last = picture.axes
    assert tuple(picture.get_size_inches()) == pytest.approx((WIDTH, 4.0))
    assert above.get_position().height * picture.get_size_inches()[1] == pytest.approx(2.0)
    assert max(a.get_tightbbox().y1 for a in (left, right)) <= above.get_window_extent().y0
    mean = interval(RESULTS["pixels"][:, 1])
    assert [t.get_text() for t in left.texts] == ["accuracy", str(mean)]
    assert [t.get_text() for t in right.texts] == ["weights", "1,234"]
    assert [t.get_text() for t in last.texts] == ["seconds", "10"]
    assert [bar.get_height() for bar in right.patches] == costs["weights"]
    standing_out = [
        bar.get_facecolor() == right.patches[1].get_facecolor() for bar in right.patches
    ]
    assert standing_out == [False, True, False, False]


def test_gauges_refuse_a_height_without_room():
    with sheet(2.0) as picture, pytest.raises(ValueError, match="height must be at least 3.70"):
        figures.gauges(picture, 0, {"accuracy": RESULTS["pixels"]}, {}, height=3.5)


@pytest.mark.parametrize(("place", "costs"), [(4, [1, 2, 3, 4]), (-1, [1, 2, 3, 4]), (0, [1, 2])])
def test_gauges_refuse_what_does_not_fit(place, costs):
    with sheet(2.0) as picture, pytest.raises(ValueError, match="place must be one of"):
        figures.gauges(
            picture, place, {"accuracy": RESULTS["pixels"]}, {"weights": costs}, height=4.0
        )


def test_a_trade_off_shows_each_path_and_both_intervals_of_its_end():
    paths = {name: 0.5 + 0.2 * RANDOM.standard_normal((10, 3, 2)) for name in ("fine-tuned", "EWC")}
    limits = {"xlim": (0.0, 1.0), "ylim": (0.0, 1.0)}
    figure = figures.tradeoff(paths, xlabel="new", ylabel="old", **limits)
    axes = figure.axes[0]
    drawn = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 3]
    bars = [c.get_segments()[0] for c in axes.collections if isinstance(c, LineCollection)]
    for place, (name, values) in enumerate(paths.items()):
        assert drawn[2 * place] == pytest.approx(values.mean(0))
        end = [line for line in axes.lines if line.get_label() == name][0]
        assert end.get_xydata()[0] == pytest.approx(values.mean(0)[-1])
        across, up = bars[2 * place : 2 * place + 2]
        for bar, axis in ((across, 0), (up, 1)):
            expected = interval(values[:, -1, axis])
            assert bar[:, axis] == pytest.approx([expected.low, expected.high])
    assert {note.get_text() for note in axes.texts} == set(paths)
    for wrong in ({}, {"EWC": np.zeros((10, 2))}, {"EWC": np.zeros((10, 0, 2))}):
        with pytest.raises(ValueError):
            figures.tradeoff(wrong, xlabel="new", ylabel="old", **limits)


def test_a_front_has_no_end_and_its_name_runs_along_it():
    corner = [[0.2, 0.6], [0.5, 0.6], [0.55, 0.5]]
    results = {"fixed weights": np.array([corner, corner]), "EWC": [[[0.8, 0.8]], [[0.8, 0.9]]]}
    limits = {"xlim": (0.0, 1.0), "ylim": (0.0, 1.0)}
    figure = figures.tradeoff(
        results, xlabel="new", ylabel="old", fronts=["fixed weights"], **limits
    )
    axes = figure.axes[0]
    markers = {str(line.get_marker()) for line in axes.lines if len(line.get_xdata()) == 3}
    assert markers == {"None", "."}  # a line and its dots
    assert {line.get_label() for line in axes.lines} & set(results) == {"EWC"}
    assert sum(isinstance(c, LineCollection) for c in axes.collections) == 2  # those of EWC
    name = next(text for text in axes.texts if text.get_text() == "fixed weights")
    assert name.arrow_patch is None and name.get_rotation() == pytest.approx(0, abs=1e-6)
    figure.draw_without_rendering()
    box = Text.get_window_extent(name)
    left, right = axes.transData.transform(corner[:2])
    assert left[0] < box.x0 and box.x1 < right[0] and left[1] - 25 < box.y0 and box.y1 < left[1]
    steep = {"fixed weights": np.array([[[0.5, 0.1], [0.52, 0.5], [0.54, 0.6]]] * 2)}
    figure = figures.tradeoff(
        steep, xlabel="new", ylabel="old", fronts=["fixed weights"], xlim=(0, 1), ylim=(0, 1)
    )
    (name,) = (text for text in figure.axes[0].texts if text.get_text() == "fixed weights")
    assert name.xyann[0] < 0 and 45 < name.get_rotation() < 90  # on the left, read upwards
    for wrong in ("EWC", "L2-SP"):
        with pytest.raises(ValueError, match="several points, got"):
            figures.tradeoff(results, xlabel="new", ylabel="old", fronts=[wrong], **limits)


def test_heat_map_says_mean_and_interval_of_each_cell_and_frames_the_best_of_a_column():
    values = np.stack([[[0.3, -0.1], [0.5, -0.2]], [[0.3, -0.1], [0.7, -0.2]]])
    axes = figures.heat_map(["head", "all"], ["dark", "noisy"], values, label="gain").axes[0]
    half = (interval([0.5, 0.7]).high - interval([0.5, 0.7]).low) / 2
    texts = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in axes.texts]
    assert texts == ["+0.30\n± 0.00", "-0.10\n± 0.00", f"+0.60\n± {half:.2f}", "-0.20\n± 0.00"]
    frames = [p for p in axes.patches if not p.get_fill()]
    assert sorted((round(f.get_x()), round(f.get_y())) for f in frames) == [(0, 1), (1, 0)]
    hatched = [p for p in axes.patches if p.get_hatch()]
    assert len(hatched) == 2  # a grey print tells loss from gain
    three = np.stack([[0.3, 0.1, -0.1], [0.3, 0.5, -0.1]])[:, None]  # sure, not sure, a loss
    axes = figures.heat_map(["head"], ["a", "b", "c"], three, label="gain", sure=True).axes[0]
    frames = [p for p in axes.patches if not p.get_fill()]
    assert [(round(f.get_x()), round(f.get_y())) for f in frames] == [(0, 0)]
    small = np.full((2, 1, 2), [-0.004, 0.5])  # says zero, so it looks like zero
    zero = figures.heat_map(["head"], ["dark", "noisy"], small, label="gain").axes[0]
    assert zero.texts[0].get_text() == "0.00\n± 0.00" and not zero.patches[0].get_hatch()
    assert zero.patches[0].get_facecolor() == colormaps["PuOr_r"](0.5)
    with pytest.raises(ValueError, match=r"\(seeds, 2, 1\).*\(2, 2, 2\)"):
        figures.heat_map(["head", "all"], ["dark"], values, label="gain")


def test_pulls_keep_lengths_and_angles_and_shade_where_both_losses_fall():
    one, other = RANDOM.standard_normal((2, 500))
    step = 0.5 * one + 0.2 * other
    steps = {"PCGrad": step, "mean": (one + other) / 2}
    axes = figures.pulls({"left": one, "right": other}, steps).axes[0]
    arrows = [note for note in axes.texts if isinstance(note, Annotation) and not note.get_text()]
    tips = np.array([arrow.xy for arrow in arrows])
    vectors = np.stack([one, other, *steps.values()])
    assert tips @ tips.T == pytest.approx(vectors @ vectors.T)
    assert tips[0, 0] < 0 < tips[1, 0] and tips[0, 1] > 0
    sides = {note.get_text(): note.get_ha() for note in axes.texts}
    assert (sides["left"], sides["right"]) == ("right", "left")  # clear of the stems
    corners = axes.patches[0].get_xy()[1:3]  # each at a right angle to one pull, along the other
    products = np.sort(corners @ tips[:2].T, axis=1)
    assert products[:, 0] == pytest.approx(0, abs=1e-6) and (products[:, 1] > 1).all()
    with pytest.raises(ValueError, match="'PCGrad' must lie in the plane of left and right"):
        figures.pulls({"left": one, "right": other}, {"PCGrad": one**2})
    with pytest.raises(ValueError, match="tasks must be two, got"):
        figures.pulls({"left": one}, {"PCGrad": step})


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


def test_client_mix_has_a_square_for_each_client_and_class_on_one_scale():
    deals = {"even": [[2, 2], [2, 2], [2, 2]], "skewed": [[4, 0], [0, 4], [3, 1]]}
    left, right = figures.client_mix(deals, ("Bag", "Shirt")).axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("even", "skewed")
    (even,), (skewed,) = left.collections, right.collections
    assert np.array_equal(skewed.get_array(), [[4, 0, 3], [0, 4, 1]])  # a row is a class
    assert even.get_clim() == skewed.get_clim() == (0, 4)
    assert [text.get_text() for text in left.get_yticklabels()] == ["Bag", "Shirt"]
    assert left.get_ylim() == (2, 0)  # the first class on top
    assert list(left.get_yticks()) == [0.5, 1.5]  # a name beside the middle of its row
    (alone,) = figures.client_mix({"even": [[2, 2]]}, ("Bag", "Shirt"), most=9).axes
    assert alone.collections[0].get_clim() == (0, 9)
    with pytest.raises(ValueError, match="'odd' must be \\(clients, 2\\), got \\(1, 3\\)"):
        figures.client_mix({"odd": [[1, 2, 3]]}, ("Bag", "Shirt"))
    with pytest.raises(ValueError, match="panels must hold at least one deal"):
        figures.client_mix({}, ("Bag", "Shirt"))


def test_a_name_beside_its_point_stands_on_the_right():
    sizes = {"sign": 1762, "4 units": 3352}
    scores = {"sign": [0.70, 0.72], "4 units": [0.5, 0.6]}
    axes = figures.size_accuracy(sizes, scores, xlabel="bytes", beside=["4 units"]).axes[0]
    sign, units = (text for text in axes.texts)
    assert (units.xy, units.get_ha()) == ((3352, pytest.approx(0.55)), "left")
    assert (sign.get_ha(), sign.get_va()) == ("center", "top")


def test_votes_show_every_answer_and_the_step_of_every_rule():
    answers = {"honest": [0.8, 1.0, 1.3], "hostile": [-5.0, -50.0]}
    steps = {"plain mean": -10.4, "median": 0.8}
    scores = {name: [0.6, 0.7] for name in steps}
    left, right = figures.votes(
        answers, steps, scores, xlabel="along the honest mean", xlim=(-9, 3)
    ).axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in left.lines}
    assert drawn["honest"] == answers["honest"]
    assert drawn["hostile"] == [-5.0, -9.0]  # what lies beyond stands at the edge
    marks = [line for line in left.lines if line.get_linestyle() == "None"]
    rows = {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in marks}
    assert (rows[0.0], rows[1.0]) == (-9.0, 0.8)
    assert [label.get_text() for label in left.get_yticklabels()] == ["the answers", *steps]
    assert left.get_ylim() == right.get_ylim() and right.get_xlim() == (0, 1)
    with pytest.raises(ValueError, match="must be the same"):
        figures.votes(answers, {"median": 0.8}, scores, xlabel="", xlim=(-9, 3))


def test_marks_stand_where_they_belong_with_a_line_at_no_effect():
    groups = {"federated": [[10, 0.5], [1000, -0.5]], "central": [[20, 1.0]]}
    figure = figures.marks(
        groups, xlabel="characters", ylabel="gain", names={"HAMLET": (1000, -0.5)}, zero=True
    )
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "characters"
    first, second, level = axes.lines
    assert list(first.get_xdata()) == [10, 1000] and list(first.get_ydata()) == [0.5, -0.5]
    assert list(second.get_xdata()) == [20] and first.get_marker() != second.get_marker()
    assert list(level.get_ydata()) == [0, 0]
    assert [(note.get_text(), note.xy) for note in axes.texts] == [("HAMLET", (1000, -0.5))]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(groups)
    alone = figures.marks({"federated": groups["federated"]}, xlabel="x", ylabel="y").axes[0]
    assert alone.get_legend() is None and len(alone.lines) == 1
    for wrong in ([1, 2], [[0, 1]], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="'federated' must be \\(N, 2\\)"):
            figures.marks({"federated": wrong}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="at least one group"):
        figures.marks({}, xlabel="x", ylabel="y")


FOLDS = {"head only": [0.9, 0.8, 1.0], "all": [0.7, 0.9, 0.8]}


def test_fold_scores_show_the_interval_they_are_given_and_costs_as_multiples():
    costs = {"work": {"head only": 2, "all": 9}, "time": {"head only": 0.1, "all": 40}}
    figure = figures.fold_scores(
        FOLDS, {"head only": 0.2, "all": 0.05}, costs, to="head only", level=("chance", 0.5)
    )
    axes, table = figure.axes
    bars = [line for line in axes.lines if line.get_linewidth() == 3]
    assert [list(bar.get_xdata()) for bar in bars] == [
        pytest.approx([0.7, 1.0]),  # of a share no more than all
        pytest.approx([0.75, 0.85]),
    ]
    strokes = [line for line in axes.lines if line.get_marker() == "|"]
    assert [list(line.get_xdata()) for line in strokes] == list(FOLDS.values())
    said = [text.get_text() for text in table.texts]
    assert said[:6] == ["0.90 ± 0.20", "1.0×", "1.0×", "0.80 ± 0.05", "4.5×", "400×"]
    assert said[6:] == ["work", "time"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(FOLDS)
    with pytest.raises(ValueError, match="must name the same methods"):
        figures.fold_scores(FOLDS, {"all": 0.1}, costs, to="all")


def test_confusion_counts_and_folds_what_is_many():
    axes = figures.confusion([[5, 1], [0, 8]], ["cat", "dog"]).axes[0]
    assert [(t.get_text(), t.get_position()) for t in axes.texts] == [
        ("5", (0, 0)),
        ("1", (1, 0)),
        ("8", (1, 1)),
    ]
    assert [t.get_weight() for t in axes.texts] == ["bold", "normal", "bold"]
    many = np.diag(np.arange(10.0, 40.0))  # of many right answers no mistake is made
    many[[4, 9], [9, 17]] = 3
    axes = figures.confusion(many, [f"class {i}" for i in range(30)], most=3).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["class 4", "class 9", "class 17", "all others"]
    assert sum(int(text.get_text()) for text in axes.texts) == many.sum()
    with pytest.raises(ValueError, match=r"counts must be \(3, 3\), got \(2, 2\)"):
        figures.confusion(np.eye(2), ["a", "b", "c"])
