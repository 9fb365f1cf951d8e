"""Curves of runs, from what they logged: `python -m data.plots RUN [RUN …]`.

Any HFT, HGPO, DPO or RFT run can be drawn, during the run or after it, several together. They
become a picture where matplotlib is installed, otherwise lines of blocks in the terminal.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.cli import InputError, OneLineParser, run_command, write_bytes
from data.rows import read_rows

Curve = list[tuple[float, float]]  # (step, figure)

# A picture stands on pages with a light and with a dark background: it has none of its own, and
# these colours can be seen on both.
INK = "#7d858f"
COLOURS = {
    "think": "#d1584f", "no_think": "#2f9e5b", "HFT": "#8c7ae6", "RFT": "#c98a1b",
    "DPO": "#c760b5", "HGPO": "#3d8bfd", "router": "#1a9ba8", "plain GRPO": "#a9744f",
}  # fmt: skip
CYCLE = ["#3d8bfd", "#c98a1b", "#2f9e5b", "#c760b5", "#1a9ba8", "#d1584f", "#8c7ae6", "#a9744f"]
DASHES = ["-", "--", ":"]
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters of a line of blocks
MARKED = 12  # a curve of fewer steps has its points marked


class Panel(NamedTuple):
    """What is drawn in one pair of axes: figures of the log, each with its name in the legend."""

    title: str
    figures: dict[str, str]


PANELS = [
    Panel("think ratio", {"mode/think_ratio": ""}),
    Panel("mean reward, by mode", {"think/reward": "think", "no_think/reward": "no_think"}),
    Panel("mean tokens, by mode", {"think/length": "think", "no_think/length": "no_think"}),
    Panel("H_acc", {"hybrid_accuracy": ""}),
    Panel("KL to the reference, nats a token", {"kl": ""}),
    Panel("entropy, nats a token", {"entropy": ""}),
    Panel("loss, nats a token", {"loss_per_token": ""}),
    Panel("share of tokens guessed right", {"mean_token_accuracy": ""}),
    Panel("share of pairs in the right order", {"rewards/accuracies": ""}),
    Panel("reward margin of the pairs", {"rewards/margins": ""}),
]


def read_log(run: Path) -> dict[str, Curve]:
    """Every figure of a run's log.jsonl, over its steps; steps without the figure are left out."""
    path = run / "log.jsonl" if run.is_dir() else run
    if not path.exists() and (inside := sorted(p.parent.name for p in run.glob("*/log.jsonl"))):
        raise InputError(f"{run}: not a run; runs in it: {', '.join(inside)}")
    curves: dict[str, Curve] = {}
    for where, row in read_rows(path):
        try:
            step = float(row.pop("step"))
            for name, value in row.items():
                if value is not None and math.isfinite(float(value)):
                    curves.setdefault(name, []).append((step, float(value)))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{where}: not a line of a run's log") from None
    return curves


def names(runs: Sequence[Path]) -> list[str]:
    """The runs' names, without the folders that all have in common."""
    parts = [run.resolve().parts for run in runs]
    common = 0
    while len({p[: common + 1] for p in parts}) == 1 and all(len(p) > common + 1 for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]


def shown_panels(logs: Iterable[dict[str, Curve]]) -> list[Panel]:
    """The panels for which some run has a figure."""
    known = set().union(*logs)
    return [panel for panel in PANELS if known & panel.figures.keys()]


# ----------------------------------------------------------------------------- in the terminal


def blocks(curve: Curve, low: float, high: float, first: float, last: float) -> str:
    """A curve as a line of WIDTH blocks: the mean of the steps that fall into each."""
    cells: list[list[float]] = [[] for _ in range(WIDTH)]
    for step, value in curve:
        place = (step - first) / (last - first) if last > first else 0
        cells[min(WIDTH - 1, int(place * WIDTH))].append(value)
    end = max((place for place, cell in enumerate(cells) if cell), default=-1)
    line, shown = "", " "
    for cell in cells[: end + 1]:
        if cell:
            height = (sum(cell) / len(cell) - low) / (high - low) if high > low else 0
            shown = BLOCKS[round(height * (len(BLOCKS) - 1))]
        line += shown
    return line.ljust(WIDTH)


def draw_blocks(logs: dict[str, dict[str, Curve]]) -> str:
    """All panels as lines of blocks, one for each run and figure, between the panel's bounds."""
    steps = [step for log in logs.values() for curve in log.values() for step, _ in curve]
    first, last = min(steps), max(steps)
    lines = [f"steps {first:.0f} to {last:.0f}, from left to right"]
    for panel in shown_panels(logs.values()):
        rows = {
            " ".join(filter(None, (name, label))): log[figure]
            for name, log in logs.items()
            for figure, label in panel.figures.items()
            if figure in log
        }
        values = [value for curve in rows.values() for _, value in curve]
        low, high = min(values), max(values)
        lines += ["", f"{panel.title} (from {low:.3g} to {high:.3g})"]
        margin = max(map(len, rows))
        for name, curve in rows.items():
            drawn = blocks(curve, low, high, first, last)
            lines.append(f"  {name:{margin}} {drawn} {curve[-1][1]:.3g}")
    return "\n".join(lines)


# -------------------------------------------------------------------------------- as a picture


def pyplot() -> Any:
    """matplotlib.pyplot in our style, drawing to files; None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "savefig.transparent": True, "savefig.dpi": 100, "font.size": 9, "axes.titlesize": 9.5,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "axes.titlecolor": INK, "grid.color": INK, "grid.alpha": 0.25, "text.color": INK,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.8,
        "figure.constrained_layout.use": True, "text.parse_math": False,
    })  # fmt: skip
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure: Any, path: Path) -> None:
    """Write a small PNG of 256 colours, the same bytes for the same picture."""
    from PIL import Image  # matplotlib needs it, too

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn, contents = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    few = Image.open(drawn).quantize(256, method=Image.Quantize.FASTOCTREE)  # keeps transparency
    few.save(contents, "png", optimize=True)
    write_bytes(path, contents.getvalue())


def colours_of(names: Sequence[str]) -> list[str]:
    """The colours of their methods, where each run is of another method; else any."""
    known = [COLOURS.get(Path(name).name.upper(), "") for name in names]
    return known if all(known) and len({*known}) == len(known) else CYCLE


def draw_picture(plt: Any, logs: dict[str, dict[str, Curve]], path: Path) -> None:
    """All panels side by side; runs by colour, modes by line."""
    panels = shown_panels(logs.values())
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    picture, grid = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.3 * rows), squeeze=False)
    colours = dict(zip(logs, itertools.cycle(colours_of([*logs]))))
    for axes, panel in zip(grid.flat, panels):
        axes.set(title=panel.title, xlabel="step")
        for name, log in logs.items():
            for figure, dash in zip(panel.figures, DASHES):
                if curve := log.get(figure):
                    marker = "o" if len(curve) < MARKED else None
                    axes.plot(*zip(*curve), dash, color=colours[name], marker=marker, ms=3)
        for label, dash in zip(filter(None, panel.figures.values()), DASHES):
            axes.plot([], [], dash, color=INK, label=label)
            axes.legend()
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    lines = [plt.Line2D([], [], color=colours[name]) for name in logs]
    picture.legend(lines, logs, loc="outside lower center", ncols=min(4, len(logs)))
    save(picture, path)


def main() -> None:
    parser = OneLineParser(prog="python -m data.plots", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its log.jsonl")
    parser.add_argument("--output_file", default="curves.png", help="picture (curves.png)")
    arguments = parser.parse_args()
    if Path(arguments.output_file).suffix != ".png":
        raise InputError(f"--output_file {arguments.output_file}: a name that ends in .png")
    runs = [Path(run) for run in arguments.runs]
    logs = dict(zip(names(runs), map(read_log, runs)))
    if not shown_panels(logs.values()):
        raise InputError(f"{arguments.runs[0]}: nothing was logged yet")
    if plt := pyplot():
        draw_picture(plt, logs, Path(arguments.output_file))
        print(f"{arguments.output_file}: the curves of {', '.join(logs)}")
    else:
        print(draw_blocks(logs))
        print("\npip install matplotlib draws them as a picture")


if __name__ == "__main__":
    run_command(main)
