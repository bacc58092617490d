"""One page that says what a run learnt: made from the run's files only, readable without the network."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2

from warmline import __version__
from warmline.evaluate.metrics import METRICS
from warmline.recipe import Recipe
from warmline.runs import MANIFEST, Run, read_json, write_atomically


def _figure(draw: Any, width: float = 7.2, height: float = 3.2) -> str:
    """An inline SVG made by `draw(axes)`, as a data URI."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "w"}):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_curve(metrics: Path) -> str:
    """Training and validation loss against the optimizer step, as a data URI."""
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["validation"]) for row in rows if "validation" in row]

    def draw(axes: Any) -> None:
        axes.plot(*zip(*train, strict=True), color="#8aa6a3", linewidth=1, label="training")
        if validation:
            axes.plot(*zip(*validation, strict=True), color="#b4532a", marker="o", markersize=4, label="validation")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats per token)")
        axes.legend(frameon=False)

    return _figure(draw)


def perplexities(measured: dict[str, Any]) -> str:
    """Perplexities with their intervals, as a data URI."""
    names = list(measured["models"])

    def draw(axes: Any) -> None:
        for place, name in enumerate(names):
            p = measured["models"][name]["perplexity"]
            axes.plot([p["low"], p["high"]], [place, place], color="#35605a", linewidth=6, alpha=0.35)
            axes.plot([p["value"]], [place], "o", color="#35605a")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_formatter("{x:.0f}")
        axes.set_xlabel("perplexity on held-out replies (lower is better, log scale)")

    return _figure(draw, height=1 + 0.4 * len(names))


def differences(measured: dict[str, Any], pair: str) -> str:
    """The paired differences of one pair of systems, each metric on a scale of its own, as a data URI."""
    rows = [(m["says"], m["differences"][pair]) for m in measured["metrics"].values() if pair in m["differences"]]

    def draw(axes: Any) -> None:
        axes.axvline(0, color="#566865", linewidth=1)
        for place, (_, d) in enumerate(rows):
            scale = max(abs(d["low"]), abs(d["high"])) or 1.0
            colour = "#9aa9a6" if d["side"] == "unclear" else "#b4532a"
            axes.plot([d["low"] / scale, d["high"] / scale], [place, place], color=colour, linewidth=6, alpha=0.4)
            axes.plot([d["value"] / scale], [place], "o", color=colour)
        axes.set_yticks(range(len(rows)), [says for says, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.invert_yaxis()
        axes.set_xticks([0], ["no difference"])
        axes.set_xlabel(f"{pair}; left: less, right: more")

    return _figure(draw, height=1 + 0.3 * len(rows))


def trade_off(measured: dict[str, Any]) -> str:
    """Size of the weights against the divergence from the reference, as a data URI."""

    def draw(axes: Any) -> None:
        for row in measured["forms"]:
            x, kl = row["weights_mb"], row["kl"]
            axes.plot([x, x], [kl["low"], kl["high"]], color="#35605a", linewidth=6, alpha=0.35)
            axes.plot([x], [kl["value"]], "o", color="#35605a")
            # slanted, so that neighbours of nearly the same size do not lie on one another
            axes.annotate(row["form"], (x, kl["value"]), (4, 6), textcoords="offset points", rotation=30)
        axes.set_xlabel("size (MB)")
        axes.set_ylabel("divergence (nats per token)")
        axes.margins(0.15, 0.3)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=-0.12 * axes.get_ylim()[1])

    return _figure(draw)


FIGURES = {"rouge_l": 3, "chrf": 1, "length": 1}
"""Digits after the point where two are not right; shares are in percent."""


def shown(found: dict[str, Any] | None, metric: dict[str, Any], name: str, *, sign: bool = False) -> str:
    """A value with its interval, as people read it.

    >>> shown({"value": 0.5, "low": 0.25, "high": 0.75}, {"share": True}, "runs_on")
    '50 % (25 to 75)'
    """
    if found is None:
        return "–"
    if metric["share"]:
        value, low, high = (f"{100 * found[k]:{'+' if sign and k == 'value' else ''}.0f}" for k in _BOUNDS)
        return f"{value} % ({low} to {high})"
    digits = FIGURES.get(name, 3)
    value, low, high = (f"{found[k]:{'+' if sign and k == 'value' else ''}.{digits}f}" for k in _BOUNDS)
    return f"{value} ({low} to {high})"


def changed(measured: dict[str, Any], form: str) -> str:
    """Which measures of the replies differ from the tuned model's, and which way."""
    found = [
        f"{m['says']}: {d['side']}"
        for m in measured["metrics"].values()
        if (d := m["differences"].get(f"{form} − tuned")) and d["side"] != "unclear"
    ]
    return "; ".join(found) or "no difference shown"


_BOUNDS = ("value", "low", "high")


def nearly(gate: dict[str, Any]) -> str:
    """Losses over all prompts that show when looked at alone, and that the gate's shared error does not count."""
    found = [
        f"{pair}: {row['finding']} {shown(row['difference'], {'share': True}, '', sign=True)}"
        for pair, result in gate["pairs"].items()
        for row in result["differences"]
        if row["suite"] == "all" and row["difference"]["high"] < 0 and not row["worse"]
    ]
    return "; ".join(found)


def read(stage: Path) -> dict[str, Any]:
    """`measured.json`, with systems and metrics in their order and not in the alphabet's."""
    measured: dict[str, Any] = read_json(stage / "measured.json")
    systems = measured["systems"]
    measured["models"] = {name: measured["models"][name] for name in systems}
    measured["ratios"] = dict(sorted(measured["ratios"].items(), key=lambda r: systems.index(r[0].split(" / ")[0])))
    measured["metrics"] = {name: measured["metrics"][name] for name in METRICS if name in measured["metrics"]}
    if "safety" in measured:
        order = [f"{new} − {old}" for old, new in [("base", "tuned"), *(("tuned", form) for form in systems[2:])]]
        for of in (measured["safety"]["gate"]["pairs"], measured["safety"]["product"]):
            pairs = {pair: of[pair] for pair in order}
            of.clear()
            of.update(pairs)
    return measured


def write(run: Run, settings: Recipe, stage: Path) -> None:
    """Write `report.html` and `report.md` into `stage` from the run's finished stages and `stage/measured.json`."""
    folder = run.folder
    measured = read(stage)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("warmline.evaluate", "."),
        autoescape=jinja2.select_autoescape(["html.jinja"], default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"shown": shown, "changed": changed, "nearly": nearly}
    known = {
        "name": folder.name,
        "recipe": settings,
        "data": read_json(folder / "data" / MANIFEST)["summary"],
        "train": read_json(folder / "train" / MANIFEST)["summary"],
        "measured": measured,
        "pairs": list(
            zip(measured["models"]["base"]["replies"], measured["models"]["tuned"]["replies"], strict=True),
        ),
        "environment": read_json(folder / "environment.json") if (folder / "environment.json").exists() else None,
        "version": __version__,
    }
    write_atomically(stage / "report.md", environment.get_template("report.md.jinja").render(known))
    metrics = folder / "train" / "metrics.jsonl"
    plots = {
        "loss": loss_curve(metrics) if metrics.exists() else "",
        "perplexities": perplexities(measured),
        "differences": differences(measured, "tuned − base") if measured["metrics"] else "",
        "trade_off": trade_off(measured) if measured["forms"] else "",
    }
    write_atomically(stage / "report.html", environment.get_template("report.html.jinja").render(known | plots))
