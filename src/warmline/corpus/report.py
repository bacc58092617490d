"""The report page of a preparation: one file, no script, nothing from the network, and nobody's words."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from warmline.corpus.card import _cautions, _listed

_STAGES = (
    ("read", "read"),
    ("clean", "cleaned"),
    ("unseen", "not in held-back sets"),
    ("anonymise", "anonymised"),
    ("lint", "linted"),
    ("dedupe", "without copies"),
)
_TOKENS_A_WORD = 1.35
_WIDTH = 560


def render(summary: dict[str, Any]) -> str:
    """The page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = (resources.files("warmline.corpus") / "report.html.jinja").read_text("utf-8")
    counts, parts = summary["counts"], ("train", "val", "test")
    total = sum(counts[part] for part in parts)
    return environment.from_string(text).render(
        s=summary,
        parts=parts,
        total=total,
        cautions=[c.replace("**", "") for c in _cautions(summary["licences"]) if c] + _small(counts["train"]),
        flow=_flow(counts, summary["rejects"]),
        themes=_together(summary, "themes")[:25],
        turns=sorted(_together(summary, "turns"), key=lambda pair: int(pair[0]))[:20],
        lengths=[
            (f"{start} to {int(start) + 49}", count)
            for start, count in sorted(_together(summary, "lengths"), key=lambda pair: int(pair[0]))[:24]
        ],
        contexts=_contexts(summary, total),
        memory=_memory(counts["train"]),
        bars=_bars,
        listed=_listed,
    )


def _flow(counts: dict[str, int], rejects: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    most = max(counts["read"], 1)
    flow, before = [], counts["read"]
    for stage, name in _STAGES:
        left = counts[stage]
        flow.append(
            {
                "name": name,
                "left": left,
                "lost": before - left,
                "width": round(_WIDTH * left / most, 1),
                "lost_width": round(_WIDTH * (before - left) / most, 1),
                "why": _listed(rejects.get(stage, {})) if before != left else "",
            }
        )
        before = left
    return flow


def _together(summary: dict[str, Any], what: str) -> list[tuple[str, int]]:
    """A count over all splits, largest first."""
    total: dict[str, int] = {}
    for split in summary["splits"].values():
        for name, count in split[what].items():
            total[name] = total.get(name, 0) + count
    return sorted(total.items(), key=lambda pair: -pair[1])


def _contexts(summary: dict[str, Any], total: int) -> list[dict[str, Any]]:
    lengths = [(int(start) + 25, count) for start, count in _together(summary, "lengths")]
    rows = []
    for context in (132, 256, 512, 1024, 2048, 4096):
        count = sum(n for words, n in lengths if words * _TOKENS_A_WORD > context)
        rows.append({"context": context, "count": count, "share": f"{100 * count / max(total, 1):.1f}"})
    return rows


def _memory(rows: int) -> list[dict[str, Any]]:
    made = []
    for epochs in (1, 3, 5, 10, 30):
        # On a small corpus the tenth pass over a row says more about memory than about skill.
        high = epochs > 10 or (epochs > 5 and rows < 2_000)
        medium = epochs > 3 or (epochs > 1 and rows < 500)
        made.append(
            {"epochs": epochs, "seen": epochs * rows, "risk": "high" if high else "medium" if medium else "low"}
        )
    return made


def _small(rows: int) -> list[str]:
    return [f"Only {rows:,} conversations to train on: expect to shape a manner of speaking, not to teach facts."] * (
        rows < 500
    )


def _bars(pairs: Iterable[tuple[str, int]]) -> Markup:
    rows = list(pairs)
    if not rows:
        return Markup("<p>Nothing.</p>")
    most = max(count for _, count in rows)
    cells = [
        Markup('<span>{}</span><i style="width:{}%"></i><span>{}</span>').format(
            escape(name), round(100 * count / most, 1), f"{count:,}"
        )
        for name, count in rows
    ]
    return Markup('<div class="bars">') + Markup("").join(cells) + Markup("</div>")
