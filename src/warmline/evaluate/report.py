"""One page that says what a run learnt: made from the run's files only, readable without the network."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2

from warmline import __version__
from warmline.recipe import Recipe
from warmline.runs import MANIFEST, read_json, write_atomically


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


def intervals(measured: dict[str, Any]) -> str:
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

    return _figure(draw, height=1.8)


def write_report(run: Path, settings: Recipe, stage: Path) -> Path:
    """Write `report.html` into `stage` from the run's finished data and train stages and `stage/measured.json`."""
    measured = read_json(stage / "measured.json")
    trained = read_json(run / "train" / MANIFEST)["summary"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("warmline.evaluate", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.jinja").render(
        name=run.name,
        recipe=settings,
        data=read_json(run / "data" / MANIFEST)["summary"],
        train=trained,
        measured=measured,
        pairs=list(
            zip(measured["models"]["base"]["replies"], measured["models"]["tuned"]["replies"], strict=True),
        ),
        loss=loss_curve(run / "train" / "metrics.jsonl"),
        perplexities=intervals(measured),
        environment=read_json(run / "environment.json"),
        version=__version__,
    )
    path = stage / "report.html"
    write_atomically(path, page)
    return path
