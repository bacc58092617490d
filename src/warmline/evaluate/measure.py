"""The `evaluation` stage: base, tuned and quantised on what none was trained on, with the same prompts and seeds.

    leak.json                  what of the evaluation stands in training; it is left out
    SYSTEM/perplexity.json     and replies, answers, memory, speed, closeness: a part each, kept when interrupted
    measured.json              every number with its interval
    report.html  report.md  evidence.md  model-card.md

The bare model is asked here, without the guard: what a visitor would see is the business of `chat`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from warmline import console, recipe
from warmline.engine.base import Engine
from warmline.engine.local import LocalEngine
from warmline.errors import DataError, WarmlineError
from warmline.evaluate import card, intervals, leak, memorise, perplexity, quantised, report, safety
from warmline.evaluate.asking import PARTS, Task, carry_out, remember, surprise_of
from warmline.evaluate.metrics import METRICS, Company, Reply, distinct, sequences
from warmline.evaluate.suites import Suite, from_json, to_json
from warmline.messages import Conversation
from warmline.runs import (
    MANIFEST,
    Run,
    Stage,
    fingerprint,
    read_json,
    read_jsonl,
    write_atomically,
    write_json,
    writing,
)

ASKING = 3
"""How replies are drawn and parts are made; raised when that changes. What was asked otherwise is asked anew."""
ITEMS = 24
"""Held-out questions that every system answers."""


def evaluate(
    run: Run,
    settings: recipe.Recipe,
    forms: Iterable[str] = (),
    items: int | None = None,
    suites: Sequence[Suite] = (),
    player: Engine | None = None,
) -> tuple[Stage, dict[str, Any]]:
    """Measure a trained run and write its report; the caller holds the run's lock.

    `forms` are of `quantised.available`; `items` None is as many as before. What was measured before on the same
    training stays, and so do its forms, suites and visitors: a call adds. Stopped at any point, the same call goes on
    where it was. A form that could not be measured is tried again when it is asked for again.

    Raises:
        RunError: the run is not trained.
        DataError: there is no test split, or nothing of it is left after the leak check.
        ModelError: the base cannot be loaded, or the adapter is another base's.
    """
    same = {
        "train": run.manifest(run.tuned)["key"],
        "evaluate": settings.evaluate.model_dump(mode="json"),
        "asking": ASKING,
    }
    old, asked = run.folder / "evaluation", set(forms)
    before = read_json(old / MANIFEST)["inputs"] if (old / MANIFEST).exists() else {}
    if {key: before.get(key) for key in same} != same:
        before = {}
    earlier = from_json(read_json(old / "suites.json")) if before and (old / "suites.json").exists() else ()
    known = quantised.available(run, settings)
    wanted = asked | set(before.get("forms", ()))
    if wanted:
        wanted.add(known[0])
    every = tuple(({suite.name: suite for suite in earlier} | {suite.name: suite for suite in suites}).values())
    inputs = same | {
        "items": items or before.get("items", ITEMS),
        "forms": [form for form in dict.fromkeys([*quantised.IN_MEMORY, *known]) if form in wanted],
        "suites": {suite.name: fingerprint(asdict(suite)) for suite in every},
        "visitors": player.name if player else before.get("visitors"),
    }
    stage = run.stage("evaluation", inputs)
    unplayed = player is not None and not (old / "tuned" / "visits-played.json").exists()
    if stage.finished and not unplayed and not asked & set(report.read(old)["failed"]):
        console.say("evaluation: done before, kept")
        return stage, report.read(old)
    _go_on(stage, same, inputs)
    folder = stage.begin()
    write_json(folder / "inputs.json", inputs)
    if before:
        _keep(old, folder, before, inputs)
    write_json(folder / "suites.json", to_json(every))
    measured = _measure(run, settings, folder, inputs["forms"], inputs["items"], every, player)
    report.write(run, settings, folder)
    card.write(run, settings, folder)
    stage.finish({"ratio": measured["ratio"], "alarm": measured["memorisation"]["alarm"]}, inputs)
    return stage, report.read(stage.folder)


def _stale(before: dict[str, Any], inputs: dict[str, Any]) -> set[str]:
    """Names of the parts that another call's other wishes have made worthless."""
    parts = {
        "items": {"answers.json", "memory.json"},
        "suites": {"leak.json"},
        "visitors": {"visits-played.json", "visits-played"},
    }
    return set().union(*(names for what, names in parts.items() if before.get(what) != inputs[what]))


def _go_on(stage: Stage, same: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Let what a stopped call left serve this one, which may ask for something else."""
    left = stage.partial / "inputs.json"
    before = read_json(left) if left.exists() else {}
    if before and {key: before.get(key) for key in same} == same:
        with writing(stage.partial):
            for path in [p for p in stage.partial.rglob("*.json") if {p.name, p.parent.name} & _stale(before, inputs)]:
                path.unlink()
        write_atomically(stage.partial / "KEY", stage.key)


def _keep(old: Path, folder: Path, before: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Bring the parts of a finished evaluation over. They are never altered, and never overwrite later ones."""
    stale = _stale(before, inputs) | {MANIFEST}
    with writing(folder):
        for path in sorted(old.rglob("*.json")):
            target = folder / path.relative_to(old)
            if not {path.name, path.parent.name} & stale and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.partial")
                shutil.copyfile(path, partial)
                partial.replace(target)


def chosen_forms(run: Run, settings: recipe.Recipe, asked: Sequence[str]) -> list[str]:
    """The forms that `asked` names; `auto` is all there are.

    Raises:
        WarmlineError: one is not there.
    """
    known = quantised.available(run, settings)
    if list(asked) == ["auto"]:
        return known
    if list(asked) == ["none"]:
        return []
    known = list(dict.fromkeys([*quantised.IN_MEMORY, *known]))
    unknown = [form for form in asked if form not in known]
    if unknown:
        raise WarmlineError(
            f"--forms {', '.join(unknown)}: this run has no such form",
            code="usage",
            hint=f"known: auto, none, {', '.join(known)}; `warmline export RUN --to gguf` makes a GGUF",
        )
    return list(asked)


def _measure(
    run: Run,
    settings: recipe.Recipe,
    folder: Path,
    forms: list[str],
    items: int,
    suites: tuple[Suite, ...],
    player: Engine | None,
) -> dict[str, Any]:
    data, train = run.folder / "data", run.folder / run.tuned
    task = Task(settings, data, train, folder, items, suites=suites)
    if not task.test:
        raise DataError(
            "there is no test split to measure on", code="data-split", hint="set data.test to 0.1 and run again"
        )
    if forms:
        quantised.prepare()
    total = 1 + 2 * (5 if suites else 4) + len(forms)
    with console.progress("measuring", total) as bar:
        leaks = task.part(".", "leak", lambda: _leaks(task))
        task = replace(task, contaminated=frozenset(row["id"] for row in leaks["contaminated"]))
        if not task.test:
            raise DataError(
                "every held-out conversation stands in the training split too: nothing is left to measure on",
                code="data-split",
                hint="see leak.json; prepare the data again with data.dedupe on",
            )
        bar.advance(note="leak check")
        memories = _base_and_tuned(task, lambda done: bar.advance(note=done), player)
        failed = quantised.carry_out_forms(task, forms, quantised.ggufs(run), lambda done: bar.advance(note=done))
    for form, reason in failed.items():
        console.warn(f"{form} could not be measured: {reason}")
    systems = ["base", "tuned", *(form for form in forms if form not in failed)]
    (folder / quantised.REFERENCE).unlink(missing_ok=True)
    result = _together(run, task, systems, memories) | {"leak": leaks, "failed": failed}
    if suites:
        result["safety"] = safety.together(task, systems)
    write_json(folder / "measured.json", result)
    return result


def _leaks(task: Task) -> dict[str, Any]:
    items = [*leak.items_of("test", task.test), *task.texts(), *safety.items_of(task.suites)]
    training = (Conversation.from_json(row) for row in read_jsonl(task.data / "train.jsonl"))
    return leak.summary(items, leak.find(items, training))


def _base_and_tuned(task: Task, note: Callable[[str], None], player: Engine | None) -> dict[str, memorise.Memory]:
    """Measure both; an adapter is switched off and on in one loaded model. Nothing is loaded when all is done."""
    memories = {}
    parts = [*PARTS, "memory"]
    engine: LocalEngine | None = None
    apart = (task.train / "model").exists()
    for system in ("base", "tuned"):
        tuned = system == "tuned"
        needed = list(parts)
        if task.suites and tuned:
            needed += ["visits", *(["visits-played"] if player else [])]
        done = all((task.folder / system / f"{part}.json").exists() for part in needed)
        done = done and safety.finished(task, system)
        if not done and (engine is None or apart):
            engine = LocalEngine.open(task.settings, None if apart and not tuned else task.train, system)
        speaker: Any = engine

        def measure(texts: Any, speaker: Any = speaker, tuned: bool = tuned) -> perplexity.Surprise:
            return perplexity.surprise(speaker.model, texts, task.settings.train.pack_tokens, adapter=tuned)

        carry_out(task, system, speaker, measure, note, adapter=tuned or apart)
        memories[system] = remember(task, system, speaker, measure, adapter=tuned or apart)
        note(f"{system}: memory")
        if task.suites and not done:
            options = replace(task.options, adapter=tuned or apart)
            safety.carry_out(task, system, speaker, options)
            if tuned:
                safety.visits(task, system, speaker, options, player)
        if task.suites:
            note(f"{system}: safety")
    return memories


def _together(run: Run, task: Task, systems: list[str], memories: dict[str, memorise.Memory]) -> dict[str, Any]:
    """Everything measured, as `measured.json` has it. The held-out conversations' words stay in their parts."""
    part = {name: {p.stem: read_json(p) for p in (task.folder / name).glob("*.json")} for name in systems}
    surprise = {name: surprise_of(part[name]["perplexity"]) for name in systems}
    pairs = [("tuned", "base"), *((form, "tuned") for form in systems[2:])]
    replies = {name: [_reply(row) for row in part[name]["answers"]] for name in systems}
    summary = run.manifest("train")["summary"]
    rows = summary["train"]["conversations"]
    return {
        "systems": systems,
        "models": {
            name: {
                "perplexity": asdict(perplexity.perplexity(surprise[name])),
                "tokens": sum(surprise[name].tokens),
                "left_out": part[name]["perplexity"]["left_out"],
                "replies": part[name]["replies"],
            }
            for name in systems
        },
        "conversations": len(surprise["base"].owners),
        "asked": len(replies["base"]),
        "ratio": asdict(perplexity.ratio(surprise["tuned"], surprise["base"])),
        "ratios": {f"{a} / {b}": asdict(perplexity.ratio(surprise[a], surprise[b])) for a, b in pairs},
        "metrics": _metrics(task, replies, pairs) if replies["base"] else {},
        "distinct": {name: {str(n): distinct(replies[name], n) for n in (1, 2)} for name in systems},
        "forms": [{"form": name} | part[name]["speed"] | part[name]["closeness"] for name in systems[2:]],
        "memorisation": memorise.alarm(
            rows, summary["epochs"], memories["tuned"], memories["base"], surprise["tuned"], surprise["base"]
        ),
    }


def _reply(row: dict[str, Any]) -> Reply:
    return Reply(row["asked"], row["reply"], row["stop"], row["reference"])


def _metrics(task: Task, replies: dict[str, list[Reply]], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Each metric for each system, and the paired differences on the questions where both have a value."""
    trained_on: set[int] = set()
    for row in read_jsonl(task.data / "train.jsonl"):
        for message in row["messages"]:
            if message["role"] == "assistant":
                trained_on |= sequences(message["content"])
    company = {name: Company.of(said, trained_on) for name, said in replies.items()}
    found = {}
    for name, metric in METRICS.items():
        values = {s: [metric.measure(reply, company[s]) for reply in said] for s, said in replies.items()}
        systems, differences = {}, {}
        for system, numbers in values.items():
            known = [x for x in numbers if x is not None]
            one = intervals.share([x > 0 for x in known]) if metric.share and known else None
            systems[system] = asdict(one or intervals.mean(known)) if known else None
        if not any(systems.values()):  # nothing to count, or its library is not installed
            continue
        for after, before in pairs:
            both = [
                (a, b) for a, b in zip(values[after], values[before], strict=True) if a is not None and b is not None
            ]
            if not both:
                continue
            a, b = zip(*both, strict=True)
            difference = (
                intervals.share_difference([x > 0 for x in a], [x > 0 for x in b])
                if metric.share
                else intervals.difference(a, b)
            )
            differences[f"{after} − {before}"] = asdict(difference) | {"side": difference.side()}
        found[name] = {
            "says": metric.says,
            "better": metric.better,
            "share": metric.share,
            "systems": systems,
            "differences": differences,
        }
    return found
