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
from warmline.evaluate.asking import Task, carry_out, remember, surprise_of
from warmline.evaluate.metrics import METRICS, Company, Reply, distinct, sequences
from warmline.evaluate.suites import Suite, to_json
from warmline.messages import Conversation
from warmline.runs import MANIFEST, Run, Stage, fingerprint, read_json, read_jsonl, write_json, writing

ITEMS = 24
"""Held-out questions that every system answers."""


def evaluate(
    run: Run,
    settings: recipe.Recipe,
    forms: Iterable[str] = (),
    items: int = ITEMS,
    suites: Sequence[Suite] = (),
    player: Engine | None = None,
) -> tuple[Stage, dict[str, Any]]:
    """Measure a trained run and write its report; the caller holds the run's lock.

    `forms` are of `quantised.available`. Forms measured before on the same training and the same items stay. Stopped
    at any point, the same call goes on where it was.

    Raises:
        RunError: the run is not trained.
        DataError: there is no test split, or nothing of it is left after the leak check.
        ModelError: the base cannot be loaded, or the adapter is another base's.
    """
    common = {
        "train": run.manifest(run.tuned)["key"],
        "evaluate": settings.evaluate.model_dump(mode="json"),
        "items": items,
    }
    if suites:
        common["suites"] = fingerprint(to_json(suites))
    if player is not None:
        common["visitors"] = player.name
    wanted, old = set(forms), run.folder / "evaluation"
    before = read_json(old / MANIFEST)["inputs"] if (old / MANIFEST).exists() else {}
    goes_on = {key: before.get(key) for key in common} == common
    if goes_on and wanted <= set(before["forms"]):
        console.say("evaluation: done before, kept")
        return run.stage("evaluation", before), report.read(old)
    if goes_on:
        wanted |= set(before["forms"])
    known = quantised.available(run, settings)
    if wanted:
        wanted.add(known[0])
    inputs = common | {"forms": [form for form in known if form in wanted]}
    stage = run.stage("evaluation", inputs)
    if not stage.finished:
        folder = stage.begin()
        if goes_on and not (folder / "leak.json").exists():
            with writing(folder):
                shutil.copytree(old, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        measured = _measure(run, settings, folder, inputs["forms"], items, tuple(suites), player)
        report.write(run, settings, folder)
        card.write(run, settings, folder)
        stage.finish({"ratio": measured["ratio"], "alarm": measured["memorisation"]["alarm"]}, inputs)
    return stage, report.read(stage.folder)


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
    known = list(dict.fromkeys(["fp32", *known]))
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
    parts = ["perplexity", "replies", "answers", "memory"]
    engine: LocalEngine | None = None
    apart = (task.train / "model").exists()
    for system in ("base", "tuned"):
        tuned = system == "tuned"
        needed = [*parts, "safety"] if task.suites else parts
        if task.suites and tuned:
            needed = [*needed, "visits", *(["visits-played"] if player else [])]
        done = all((task.folder / system / f"{part}.json").exists() for part in needed)
        if not done and (engine is None or apart):
            engine = LocalEngine.open(task.settings, None if apart and not tuned else task.train, system)
        speaker: Any = engine

        def measure(texts: Any, speaker: Any = speaker, tuned: bool = tuned) -> perplexity.Surprise:
            return perplexity.surprise(speaker.model, texts, task.settings.train.pack_tokens, adapter=tuned)

        carry_out(task, system, speaker, measure, note, adapter=tuned or apart)
        memories[system] = remember(task, system, speaker, measure, adapter=tuned or apart)
        note(f"{system}: memory")
        if task.suites:
            options = replace(task.options, adapter=tuned or apart)
            safety.carry_out(task, system, speaker, options)
            if tuned:
                safety.visits(task, system, speaker, options, player)
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
