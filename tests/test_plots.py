"""data/plots.py: curves from the logs of any runs."""

import json

import pytest

from data import plots
from data.cli import InputError

HGPO = [
    {"step": s, "mode/think_ratio": s / 10, "think/reward": 0.9, "no_think/reward": 0.1 * s,
     "think/length": 20.0, "no_think/length": 4.0, "kl": None if s == 2 else 0.1, "entropy": 0.2}
    for s in range(1, 6)
]  # fmt: skip
HFT = [{"step": s, "loss_per_token": 1 / s, "mean_token_accuracy": 0.5} for s in (10, 20)]


@pytest.fixture
def runs(tmp_path):
    for name, rows in {"hgpo": [*HGPO, {"step": 5, "hybrid_accuracy": 0.8}], "hft": HFT}.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "runs" / name / "log.jsonl").write_text(lines)
    return tmp_path / "runs"


def draw(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["data.plots", *map(str, arguments)])
    plots.main()


def test_without_matplotlib_curves_are_lines_of_blocks(runs, monkeypatch, capsys):
    monkeypatch.setattr(plots, "pyplot", lambda: None)
    draw(monkeypatch, runs / "hgpo", runs / "hft")
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "steps 1 to 20, from left to right"
    title = lines.index("think ratio (from 0.1 to 0.5)")
    name, drawn, last = lines[title + 1].split()
    assert (name, last) == ("hgpo", "0.5") and drawn[0] == "▁" and "█" in drawn
    assert lines[lines.index("mean reward, by mode (from 0.1 to 0.9)") + 2].startswith(
        "  hgpo no_think"
    )
    assert any(line.startswith("loss, nats a token (from 0.05 to 0.1") for line in lines)


def test_a_line_of_blocks_rises_with_the_curve_and_stays_between_its_bounds():
    rising = plots.blocks([(s, s) for s in range(1, 61)], 1, 60, 1, 60)
    assert len(rising) == plots.WIDTH and set(rising) == set(plots.BLOCKS)
    assert list(rising) == sorted(rising, key=plots.BLOCKS.index)
    assert plots.blocks([(5, 0.3)], 0.3, 0.3, 0, 10).strip() == "▁"


def test_a_shorter_run_ends_where_its_curve_ends():
    assert plots.blocks([(0, 1), (15, 1)], 0, 1, 0, 60) == "█" * 16 + " " * 44


def test_a_console_without_blocks_shows_other_signs_of_the_same_number():
    assert plots.BLOCKS.encode("ascii", "other_signs") == b"_.-=+*%#"


def test_figures_that_are_no_numbers_are_left_out(runs):
    (runs / "log.jsonl").write_text('{"step": 1, "kl": NaN, "entropy": 1}\n')
    assert plots.read_log(runs) == {"entropy": [(1, 1)]}


def test_a_picture_has_the_name_that_was_asked_for(runs, monkeypatch):
    with pytest.raises(InputError, match="curves.svg: a name that ends in .png"):
        draw(monkeypatch, runs / "hgpo", "--output_file", "curves.svg")


def test_a_folder_of_runs_is_no_run_and_names_those_in_it(runs, monkeypatch):
    with pytest.raises(InputError, match="not a run; runs in it: hft, hgpo$"):
        draw(monkeypatch, runs)


def test_steps_without_a_figure_are_left_out(runs):
    assert [step for step, _ in plots.read_log(runs / "hgpo")["kl"]] == [1, 3, 4, 5]


def test_runs_are_named_by_what_differs_in_their_paths(tmp_path):
    assert plots.names([tmp_path / "a" / "hgpo", tmp_path / "b" / "hgpo"]) == ["a/hgpo", "b/hgpo"]
    assert plots.names([tmp_path / "a"]) == ["a"]


def test_with_matplotlib_the_same_runs_give_the_same_picture(runs, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    odd = (runs / "hgpo").rename(runs / r"$\frac{$")  # a name, not a formula
    for name in ("one.png", "two.png"):
        draw(monkeypatch, odd, runs / "hft", "--output_file", tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two and one.startswith(b"\x89PNG")


def test_a_panel_has_the_curves_of_the_runs_that_logged_its_figures(runs, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    pictures = []
    monkeypatch.setattr(plots, "save", lambda picture, path: pictures.append(picture))
    draw(monkeypatch, runs / "hgpo", runs / "hft", "--output_file", tmp_path / "unused.png")
    found = {
        axes.get_title(): [
            (line.get_color(), [*line.get_xdata()]) for line in axes.lines if len(line.get_xdata())
        ]
        for axes in pictures[0].axes
    }
    hgpo, hft = plots.COLOURS["HGPO"], plots.COLOURS["HFT"]
    assert found["think ratio"] == [(hgpo, [1, 2, 3, 4, 5])]
    assert found["mean reward, by mode"] == [(hgpo, [1, 2, 3, 4, 5])] * 2
    assert found["loss, nats a token"] == [(hft, [10, 20])]


@pytest.mark.parametrize(
    "line, error",
    [('{"loss": 1}', "not a line of a run's log"), ("{", "not JSON"), ('{"step": 1}', "nothing")],
)
def test_what_is_no_log_is_one_clear_line(line, error, tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text(line)
    with pytest.raises(InputError, match=error):
        draw(monkeypatch, tmp_path)
