"""Model card (hub format) and evidence pack of a measured run, from the run's files only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml

from warmline import __version__, recipe
from warmline.evaluate import report
from warmline.model import load
from warmline.model.export import card as exported
from warmline.model.export.merge import shown_name
from warmline.runs import MANIFEST, Run, read_json, write_atomically


def facts_of(run: Run, settings: recipe.Recipe, stage: Path) -> exported.Facts:
    """What the run's files say, in the terms of the exported forms' cards."""
    data = run.folder / "data" / MANIFEST
    prepared = read_json(data)["summary"] if data.exists() else {}
    base = settings.base
    gate = read_json(stage / "gate.json") if (stage / "gate.json").exists() else None
    measured = report.read(stage)
    safety: dict[str, Any] = {"state": "not evaluated"}
    if gate:
        forms = {name: one["reasons"] for name, one in gate["systems"].items()}
        reasons = forms.pop("tuned")
        lost = {name: why for name, why in forms.items() if why}
        state = "refused" if reasons else "passed"
        safety = {"state": state, "reasons": reasons, "forms": lost, "measured": sorted(forms), "override": None}
    return exported.Facts(
        name=run.name,
        base=shown_name(base.model) if base.model != load.EMBEDDED else "Warmline's embedded base",
        base_on_hub=isinstance(load.locate(base.model), str),
        base_licence=exported.licence_of_base(base),
        data_licences=prepared.get("licences") or ["unknown"],
        language=settings.data.language,
        conversations=prepared.get("counts", {}).get("train"),
        safety=safety,
        trained=run.manifest("train")["summary"],
        measured={name: found["perplexity"] for name, found in measured["models"].items()},
        load="fp32" if settings.adapter.method == "full" else base.load,
        system=" ".join(settings.prompt.system.split()),
    )


def head(facts: exported.Facts, measured: dict[str, Any], form: str) -> dict[str, Any]:
    """The hub's metadata with the results in its `model-index`."""
    results = [
        {
            "type": "perplexity",
            "name": "held-out perplexity",
            "value": measured["models"]["tuned"]["perplexity"]["value"],
        }
    ]
    for name, found in measured["metrics"].items():
        if found["systems"]["tuned"] and name in ("rouge_l", "chrf"):
            results.append({"type": name, "name": found["says"], "value": found["systems"]["tuned"]["value"]})
    task = {"type": "text-generation", "name": "counselling conversation"}
    dataset = {"type": "private", "name": "held-out split of the run's own data", "split": "test"}
    index = {"name": facts.name, "results": [{"task": task, "dataset": dataset, "metrics": results}]}
    return exported.head(form, facts) | {"model-index": [index]}


def write(run: Run, settings: recipe.Recipe, stage: Path) -> None:
    """Write `model-card.md` and `evidence.md` into `stage`."""
    measured = report.read(stage)
    facts = facts_of(run, settings, stage)
    data = run.folder / "data" / MANIFEST
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("warmline.evaluate", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    form = "merged" if settings.adapter.method == "full" else "adapter"
    known = {
        "facts": facts,
        "safety": exported.safety_lines(facts.safety),
        "measured": measured,
        "data": read_json(data)["summary"] if data.exists() else None,
        "keys": {
            name: run.manifest(name)["key"] for name in ("data", "train") if (run.folder / name / MANIFEST).exists()
        },
        "load": facts.load,
        "version": __version__,
    }
    metadata = yaml.safe_dump(head(facts, measured, form), sort_keys=False, allow_unicode=True)
    body = environment.get_template("model-card.md.jinja").render(known)
    write_atomically(stage / "model-card.md", f"---\n{metadata}---\n\n{body}")
    write_atomically(stage / "evidence.md", environment.get_template("evidence.md.jinja").render(known))
