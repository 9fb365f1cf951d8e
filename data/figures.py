"""What the experiments show: the figures and tables of results.json, and the page that holds them.

results.json has "seeds"; under "runs", figures of each lab and run ("large/hgpo"), such as
"maths/auto/pass@1": the free responses' pass@1 on held-out sums ("level 2/…": on those of a level),
with `mean`, `spread` (sample standard deviation over the seeds) and `seeds` (the figure of each);
under "curves", means and spreads over steps ("tags", the probability of both, and "mode_entropy" on
training queries, a quarter of which are greetings and facts; the others on held-out ones); under
"lengths", how many HFT rows of a mode have a length, and mean lengths by domain, of the first seed;
under "demo", what `make demo` measured on held-out sums, and under "words" what a pretrained model
reached on sums in words, where one was trained: no command of the grid does so.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.cli import read_json
from data.lab import LEVELS
from data.plots import COLOURS, INK, pyplot, save
from data.report import level_bars, outcome_table, results_table

BLUE = COLOURS["HGPO"]
SIZES = ("large", "small")
SHARE = {"ylim": (-0.03, 1.03)}
THINK_RATIO = {"ylabel": "think ratio", **SHARE}
NO_THINK_LINE = (COLOURS["no_think"], ":")
# Of HGPO with other settings: none has the colour of another method.
VARIANTS = ((BLUE, "-"), ("#8ec5ff", "--"), (INK, "-"), ("#2f63d6", ":"))
DASH = {"large": "-", "small": "--"}
# With N = 8 mean rewards differ by multiples of 1/4: all δ between the same two do the same.
DELTAS = {-0.2: "delta=-0.2", 0.0: "delta=0.0", 0.2: "hgpo", 0.4: "delta=0.4", 0.6: "delta=0.6",
          0.9: "delta=0.9"}  # fmt: skip
ALPHAS = {0.0: "alpha=0.0", 1.0: "hgpo", 3.0: "alpha=3.0"}
GROUPS = {4: "N=4", 8: "hgpo", 16: "N=16"}
BETAS = {0.0: "beta=0.0", 0.001: "beta=0.001", 0.03: "hgpo", 0.3: "beta=0.3"}
STEPS = 125  # HGPO then samples as many responses as DPO and RFT do: 8 to each of 4,000 queries
LONG = f"hgpo-{STEPS}"
WEIGHTED = "reinforce++-alpha=2.0"
ESTIMATORS = {
    "GRPO (Eq. 10)": LONG,
    "RLOO (Eq. 23)": "rloo",
    "REINFORCE++ (Eq. 22)": "reinforce++",
    "REINFORCE++, α = 2": WEIGHTED,
}
LUCKY = "rft-N=16"
SUMS = "hgpo-sums"  # of the RL rows, the sums alone
LOSSES = {"hgpo (Eq. 11)": "hgpo", "grpo": "loss=grpo", "dapo": "loss=dapo",
          "dr_grpo": "loss=dr_grpo"}  # fmt: skip
METHODS = {  # title: run, setup, colour
    "HFT, forced think": ("hft", "think", COLOURS["think"]),
    "HFT, forced no_think": ("hft", "no_think", COLOURS["no_think"]),
    "HFT": ("hft", "auto", COLOURS["HFT"]),
    "HFT-RFT": ("rft", "auto", COLOURS["RFT"]),
    "HFT-DPO": ("dpo", "auto", COLOURS["DPO"]),
    "router, rules": ("router-rules", "router", COLOURS["router"]),
    "router, classifier": ("router-classifier", "router", COLOURS["router"]),
    "LHRM (HFT, HGPO)": ("hgpo", "auto", BLUE),
}
TABLE1 = {
    **METHODS,
    f"LHRM, {STEPS} steps of HGPO": (LONG, "auto", BLUE),
    "HFT-RFT, 16 responses to a query": (LUCKY, "auto", COLOURS["RFT"]),
}
SHORT = {k: each for k, each in TABLE1.items() if not each[0].startswith(("router", LUCKY))}
BASELINES = ("hgpo", "rft", "dpo", "router-rules", "router-classifier")


class Results:
    """The contents of a results.json. Figures that are not in it are None."""

    def __init__(self, contents: dict[str, Any]) -> None:
        self.contents = contents

    def figure(self, run: str, name: str) -> dict[str, Any] | None:
        """Mean, spread and seeds, of a run such as "large/hgpo"."""
        return self.contents["runs"].get(run, {}).get(name)

    def curve(self, run: str, name: str) -> dict[str, list[float]] | None:
        """Steps, means and spreads."""
        return self.contents["curves"].get(run, {}).get(name)

    def shown(self, run: str, name: str, digits: int = 3) -> str:
        """Mean and spread, as a table has them."""
        figure = self.figure(run, name)
        if figure is None:
            return "–"
        spread = f" ±{figure['spread']:.{digits}f}" if len(figure["seeds"]) > 1 else ""
        return f"{figure['mean']:.{digits}f}{spread}"


# --------------------------------------------------------------------------------------- drawing


def draw_points(
    axes: Any, points: Mapping[Any, dict[str, Any] | None], label: str, colour: str, dash: str = "-"
) -> None:
    """Figures over what differs between them, with a dot for each seed."""
    found = {x: figure for x, figure in points.items() if figure}
    means = [figure["mean"] for figure in found.values()]
    axes.plot([*found], means, f"o{dash}", color=colour, label=label, ms=5)
    for x, figure in found.items():
        seeds = figure["seeds"]
        axes.plot([x] * len(seeds), seeds, ".", color=colour, ms=4, alpha=0.5)


def draw_levels(
    r: Results, axes: Any, run: str, name: str, label: str, colour: str, dash: str = "-"
) -> None:
    """A figure of a run by level."""
    draw_points(axes, {k: r.figure(run, f"level {k}/{name}") for k in LEVELS}, label, colour, dash)
    axes.set_xticks([*LEVELS])


def draw_curve(
    r: Results, axes: Any, run: str, name: str, label: str, colour: str, dash: str = "-"
) -> None:
    """A figure over the steps of training, in a band of the spread."""
    if curve := r.curve(run, name):
        low, high = ([m + sign * s for m, s in zip(curve["mean"], curve["spread"])]
                     for sign in (-1, 1))  # fmt: skip
        axes.plot(curve["steps"], curve["mean"], dash, color=colour, label=label)
        axes.fill_between(curve["steps"], low, high, color=colour, alpha=0.2, linewidth=0)


def on_sums(r: Results, runs: dict[Any, str], name: str) -> dict[Any, dict[str, Any] | None]:
    """A figure of the large model's free responses to the held-out sums, of each of some runs."""
    return {x: r.figure(f"large/{run}", f"maths/auto/{name}") for x, run in runs.items()}


def frontier(r: Results, panels: Sequence[Any]) -> None:
    for axes, size in zip(panels, SIZES):
        axes.set(title=f"the {size} model", xlabel="mean tokens of a response", ylabel="pass@1")
        for number, (title, (run, setup, colour)) in enumerate(TABLE1.items()):
            x = r.figure(f"{size}/{run}", f"maths/{setup}/mean_tokens")
            y = r.figure(f"{size}/{run}", f"maths/{setup}/pass@1")
            if x and y:  # later ones are smaller: those that coincide can all be seen
                marker = "s" if run.startswith("router") else "o" if title in METHODS else "D"
                axes.errorbar(
                    x["mean"], y["mean"], y["spread"], x["spread"], fmt=marker, color=colour,
                    label=title, ms=max(5, 11 - number), elinewidth=1,
                )  # fmt: skip
    xs, ys = (on_sums(r, DELTAS, name).values() for name in ("mean_tokens", "pass@1"))
    if line := sorted((x["mean"], y["mean"]) for x, y in zip(xs, ys) if x and y):
        panels[0].plot(*zip(*line), ".--", color=BLUE, lw=1.2, label="HGPO, each δ", zorder=3)
    handles = panels[0].get_legend_handles_labels()
    panels[0].figure.legend(*handles, loc="outside right center")


def fig3a(r: Results, panels: Sequence[Any]) -> None:
    panels[0].set(title="H_acc on held-out sums", xlabel="step of HGPO", ylabel="H_acc", **SHARE)
    panels[1].set(title="entropy of the mode, training queries", xlabel="step of HGPO")
    panels[1].set(ylabel="nats", ylim=(0, 0.7))
    for line, (label, run) in zip(VARIANTS, ESTIMATORS.items()):
        for axes, name in zip(panels, ("H_acc", "mode_entropy")):
            draw_curve(r, axes, f"large/{run}", name, label, *line)
    panels[0].legend()


def fig3b(r: Results, panels: Sequence[Any]) -> None:
    panels[0].set(title="think ratio on held-out sums", xlabel="δ", **THINK_RATIO)
    panels[1].set(title="right answers", xlabel="δ", ylabel="pass@1", **SHARE)
    draw_points(panels[0], on_sums(r, DELTAS, "think_ratio"), "", BLUE)
    draw_points(panels[1], on_sums(r, DELTAS, "pass@1"), "", BLUE)


def fig4(r: Results, panels: Sequence[Any]) -> None:
    for axes, size in zip(panels, SIZES):
        axes.set(title=f"the {size} model", xlabel="level", ylabel="share", **SHARE)
        lines = [("hft", "auto/think_ratio", "think ratio, HFT", COLOURS["HFT"], "-")]
        lines += [("hgpo", "auto/think_ratio", "think ratio, HGPO", BLUE, "-")]
        lines += [("hft", "no_think/pass@1", "HFT, forced no_think: pass@1", *NO_THINK_LINE)]
        for run, *line in lines:
            draw_levels(r, axes, f"{size}/{run}", *line)
    panels[0].legend()


def fig5(r: Results, panels: Sequence[Any]) -> None:
    panels[0].set(title="think ratio on programs", xlabel="step of HGPO", **THINK_RATIO)
    panels[1].set(
        title="right answers on programs", xlabel="step of HGPO", ylabel="pass@1", **SHARE
    )
    runs = ("large/hgpo", f"large/{SUMS}", "mixed/hgpo")
    labels = ("HFT rows of programs mostly answer at once", "… and HGPO on sums alone",
              "they think as often as those of sums")  # fmt: skip
    for axes, name in zip(panels, ("code/think_ratio", "code/pass@1")):
        for label, run, line in zip(labels, runs, VARIANTS):
            draw_curve(r, axes, run, name, label, *line)
    panels[1].legend(loc="lower center")


def fig6(r: Results, panels: Sequence[Any]) -> None:
    panels[0].set(title="think ratio on held-out sums", xlabel="step of HGPO", **THINK_RATIO)
    panels[1].set(title=f"think ratio after {STEPS} steps", xlabel="level", **THINK_RATIO)
    for size in SIZES:
        run, line = f"{size}/{LONG}", (f"the {size} model", BLUE, DASH[size])
        draw_curve(r, panels[0], run, "maths/think_ratio", *line)
        draw_levels(r, panels[1], run, "auto/think_ratio", *line)
    panels[0].legend()


def fig8(r: Results, panels: Sequence[Any]) -> None:
    panels[0].set(title="rows of the two HFT subsets", xlabel="tokens of a response", ylabel="rows")
    panels[1].set(title="by domain", ylabel="mean tokens of a response")
    for mode, counts in r.contents["lengths"]["rows"].items():
        lengths = sorted(map(int, counts))
        panels[0].bar(lengths, [counts[str(n)] for n in lengths], color=COLOURS[mode], label=mode)
    panels[0].legend()
    means = r.contents["lengths"]["means"]
    for number, (mode, by_domain) in enumerate(means.items()):
        xs = [i + 0.4 * (number - 0.5) for i in range(len(by_domain))]
        panels[1].bar(xs, by_domain.values(), 0.38, color=COLOURS[mode])
    panels[1].set_xticks(range(len(by_domain)), by_domain)


def sweep(runs: dict[Any, str], symbol: str) -> Callable[[Results, Sequence[Any]], None]:
    """A figure of H_acc, accuracy and think ratio over a setting."""

    def draw(r: Results, panels: Sequence[Any]) -> None:
        panels[0].set(title="quality on held-out sums", xlabel=symbol, ylabel="share", **SHARE)
        places = {str(x): run for x, run in runs.items()}
        draw_points(panels[0], on_sums(r, places, "hybrid_accuracy"), "H_acc", BLUE, "")
        draw_points(panels[0], on_sums(r, places, "pass@1"), "pass@1", INK, "")
        panels[0].legend()
        if len(panels) > 1:
            panels[1].set(title="thinking on held-out sums", xlabel=symbol, **THINK_RATIO)
            draw_points(panels[1], on_sums(r, places, "think_ratio"), "", BLUE, "")

    return draw


def beta(r: Results, panels: Sequence[Any]) -> None:
    sweep(BETAS, "β")(r, panels[:1])
    panels[1].set(title="p(<think>) + p(<no_think>)", xlabel="step of HGPO", ylabel="probability")
    for line, (x, run) in zip(VARIANTS, BETAS.items()):
        draw_curve(r, panels[1], f"large/{run}", "tags", f"β = {x}", *line)
    panels[1].legend()


def plain_grpo(r: Results, panels: Sequence[Any]) -> None:
    panels[0].set(title="think ratio on held-out sums", xlabel="step", **THINK_RATIO)
    panels[1].set(title="H_acc on held-out sums", xlabel="step", ylabel="H_acc", **SHARE)
    for label, run in (("HGPO", "hgpo"), ("plain GRPO", "plain-grpo")):
        for axes, name in zip(panels, ("maths/think_ratio", "H_acc")):
            draw_curve(r, axes, f"large/{run}", name, label, COLOURS[label])
    panels[0].legend()


def demo_picture(r: Results, panels: Sequence[Any]) -> None:
    stages = r.contents["demo"]
    panels[0].set(title="how often it thinks", xlabel="level of the sum", **THINK_RATIO)
    panels[1].set(title="what it costs", xlabel="mean tokens of a response", ylabel="pass@1")
    for stage, label in (("hft", "HFT"), ("hgpo", "HGPO")):
        by_level = stages[stage]["by_level"].items()
        ratios = [(int(level), part["auto"]["think_ratio"]) for level, part in by_level]
        panels[0].plot(*zip(*ratios), "o-", color=COLOURS[label], label=label, ms=4)
    panels[0].set_xticks([*LEVELS])
    panels[0].legend()
    for label, stage, setup, colour in (
        ("HFT, forced think", "hft", "think", "think"),
        ("HFT, forced no_think", "hft", "no_think", "no_think"),
        ("HFT", "hft", "auto", "HFT"),
        ("HGPO", "hgpo", "auto", "HGPO"),
    ):
        part = stages[stage][setup]
        panels[1].plot(part["mean_tokens"], part["pass@1"], "o", color=COLOURS[colour],
                       label=label, ms=7)  # fmt: skip
    panels[1].legend(loc="lower right")


class Figure(NamedTuple):
    """A figure or table: its runs of each size, and what draws it, if it is a picture."""

    runs: Mapping[str, Sequence[str]]
    draw: Callable[[Results, Sequence[Any]], None] | None = None


def large(runs: dict[Any, str]) -> Mapping[str, Sequence[str]]:
    return {"large": [*runs.values()]}


FIGURES = {
    "table1": Figure({"large": [*BASELINES, LUCKY, LONG], "small": [*BASELINES, LONG]}),
    "frontier": Figure({"large": [*BASELINES, *DELTAS.values()], "small": BASELINES}, frontier),
    "fig3a": Figure(large(ESTIMATORS), fig3a),
    "fig3b": Figure(large(DELTAS), fig3b),
    "fig4": Figure(dict.fromkeys(SIZES, ("hgpo",)), fig4),
    "fig5": Figure({"large": ["hgpo", SUMS, "plain-grpo"], "mixed": ["hgpo"]}, fig5),
    "fig6": Figure(dict.fromkeys(SIZES, (LONG,)), fig6),
    "fig8": Figure({}, fig8),
    "alpha": Figure(large(ALPHAS), sweep(ALPHAS, "α")),
    "group": Figure(large(GROUPS), sweep(GROUPS, "N")),
    "beta": Figure(large(BETAS), beta),
    "plain_grpo": Figure({"large": ["hgpo", "plain-grpo"]}, plain_grpo),
    "loss": Figure(large(LOSSES), sweep(LOSSES, "what divides Eq. 11")),
    "demo": Figure({}, demo_picture),
}


def draw(r: Results, names: Sequence[str], folder: Path) -> bool:
    """Draw the pictures of `names` into a folder; False if matplotlib is not installed."""
    plt = pyplot()
    for name in names if plt else ():
        if drawn := FIGURES[name].draw:
            picture, panels = plt.subplots(1, 2, figsize=(8, 2.8))
            drawn(r, panels)
            save(picture, folder / f"{name}.png")
            plt.close(picture)
    return plt is not None


# ------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def table1(r: Results, size: str, methods: Mapping[str, tuple[str, str, str]] = TABLE1) -> str:
    """The methods of Table 1, or some of them, at a model size."""
    figures = (
        "maths/{}/pass@1", "maths/no_think/pass@1", "code/{}/pass@1", "general/{}/pass@1",
        "maths/{}/mean_tokens", "maths/{}/think_ratio", "maths/{}/hybrid_accuracy",
    )  # fmt: skip
    rows = []
    for title, (run, setup, _) in methods.items():
        names = [name.format(setup) for name in figures]
        if f"{size}/{run}" in r.contents["runs"]:
            cells = [r.shown(f"{size}/{run}", name, 1 if "tokens" in name else 3) for name in names]
            rows.append([title, *cells])
    head = ["", "sums", "forced no_think", "programs", "greetings, facts", "tokens", "think ratio",
            "H_acc"]  # fmt: skip
    return table(head, rows)


def settings_table(r: Results, title: str, runs: dict[Any, str]) -> str:
    """Runs that differ in one setting."""
    figures = {
        "think ratio": "maths/auto/think_ratio",
        "pass@1": "maths/auto/pass@1",
        "tokens": "maths/auto/mean_tokens",
        "H_acc": "maths/auto/hybrid_accuracy",
    }
    rows = [
        [str(x), *(r.shown(f"large/{run}", name, 1 if "tokens" in name else 3)
                   for name in figures.values())]
        for x, run in runs.items()
    ]  # fmt: skip
    return table([title, *figures], rows)


def levels_table(r: Results) -> str:
    """What depends on the level: accuracy without thinking, and how often the models think."""
    names = {
        "HFT, forced no_think: pass@1": ("hft", "no_think/pass@1"),
        "HFT, forced think: pass@1": ("hft", "think/pass@1"),
        "HFT: think ratio": ("hft", "auto/think_ratio"),
        "HGPO: think ratio": ("hgpo", "auto/think_ratio"),
    }
    rows = [
        [f"{size}, {title}", *(r.shown(f"{size}/{run}", f"level {k}/{name}", 2) for k in LEVELS)]
        for size in SIZES
        for title, (run, name) in names.items()
    ]
    return table(["", *(f"level {k}" for k in LEVELS)], rows)


def demo_table(r: Results) -> str:
    """What `make demo` prints."""
    return textwrap.indent(outcome_table(r.contents["demo"], "hgpo"), "    ")


def words_table(r: Results) -> str:
    """What a pretrained model reached, with modes forced and freely, and when it thinks."""
    if "words" not in r.contents:
        return "    not run"
    stages = {"HFT": r.contents["words"]["hft"], "HGPO": r.contents["words"]["hgpo"]}
    setups = {"forced think": "think", "forced no-think": "no_think", "auto": "auto"}
    rows = {f"{name} {how}": stage[setup] for name, stage in stages.items()
            for how, setup in setups.items()}  # fmt: skip
    bars = (level_bars(*stage) for stage in stages.items())
    return textwrap.indent("\n".join((results_table(rows), *bars)), "    ")


def programs_table(r: Results) -> str:
    """What HGPO on sums changes on programs, which it never saw."""
    figures = ("auto/think_ratio", "auto/pass@1", "think/pass@1", "no_think/pass@1")
    runs = (
        ("mostly answer at once", "HFT", "large/hft"),
        ("", "HGPO", "large/hgpo"),
        ("", "HGPO on sums alone", f"large/{SUMS}"),
        ("", "plain GRPO", "large/plain-grpo"),
        ("think as often as sums", "HFT", "mixed/hft"),
        ("", "HGPO", "mixed/hgpo"),
    )
    rows = [[*titles, *(r.shown(run, f"code/{name}") for name in figures)] for *titles, run in runs]
    head = ["HFT rows of programs", "", "think ratio", "pass@1", "forced think", "forced no_think"]
    return table(head, rows)


BLOCKS: dict[str, Callable[[Results], str]] = {
    "demo": demo_table,
    "methods": lambda r: table1(r, "large", SHORT),
    "table1 large": lambda r: table1(r, "large"),
    "table1 small": lambda r: table1(r, "small"),
    "levels": levels_table,
    "programs": programs_table,
    "estimators": lambda r: settings_table(r, "advantages", ESTIMATORS),
    "delta": lambda r: settings_table(r, "δ", DELTAS),
    "alpha": lambda r: settings_table(r, "α", ALPHAS),
    "group": lambda r: settings_table(r, "N", GROUPS),
    "beta": lambda r: settings_table(r, "β", BETAS),
    "plain_grpo": lambda r: settings_table(r, "", {"HGPO": "hgpo", "plain GRPO": "plain-grpo"}),
    "loss": lambda r: settings_table(r, "divisor", LOSSES),
    "words": words_table,
}
BLOCK = re.compile(r"(<!-- results: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, r: Results) -> str:
    """A page with the tables of these results between its marks, `<!-- results: NAME -->` and
    `<!-- end -->`."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](r)}\n{found[3]}", text)


def load(folder: Path) -> Results:
    """Read the results.json of a folder."""
    return Results(read_json(folder / "results.json"))
