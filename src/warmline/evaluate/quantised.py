"""What smaller weights cost: the tuned model in every form, each in a process of its own so that its memory is its own.

The most precise form is the reference: the others' distributions over the next token are compared with its.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmline import recipe
from warmline.errors import WarmlineError
from warmline.evaluate import perplexity, safety
from warmline.evaluate.asking import PARTS, Speaker, Task, ask, carry_out
from warmline.evaluate.batch import THREADS
from warmline.evaluate.intervals import mean
from warmline.messages import Message
from warmline.model import load
from warmline.model import pack as packing
from warmline.model.export import QUANTS, verify
from warmline.model.template import Encoded
from warmline.runs import MANIFEST, Run, read_json, write_json

IN_MEMORY = ("fp32", "bf16", "int8", "nf4")
SMALL = 4 << 30
"""Bytes of fp32 weights up to which fp32 is the reference; above, bf16 is."""
REFERENCE_BYTES = 200 << 20
REFERENCE = "reference.npz"
SPEED_PROMPTS = 3
SPEED_TOKENS = 48


def available(run: Run, settings: recipe.Recipe) -> list[str]:
    """The forms this run can be measured in, the reference first; GGUF files as they were exported."""
    first = load.locate(settings.base.model)
    halves = sum(p.stat().st_size for p in first.glob("*.safetensors")) if isinstance(first, Path) else SMALL
    forms = list(IN_MEMORY if 2 * halves <= SMALL else IN_MEMORY[1:])
    return [*forms, *(f"gguf-{quant}" for quant in ggufs(run))]


def ggufs(run: Run) -> dict[str, Path]:
    """Exported GGUF files of this very training, by quantisation."""
    stage = run.folder / "export"
    if not (stage / MANIFEST).exists():
        return {}
    if read_json(stage / MANIFEST)["inputs"].get("train") != run.manifest(run.tuned)["key"]:
        return {}
    verified = read_json(stage / "verified.json")
    rows = {quant: verified.get(f"gguf:{quant}") for quant in QUANTS}
    return {quant: stage / "gguf" / row["file"] for quant, row in rows.items() if row}


def measure_form(task: Task, form: str, gguf: Path | None, same_as_tuned: bool) -> str:
    """Measure one form; returns why it could not be, or nothing. What is finished is not done again."""
    try:
        _measure_form(task, form, gguf, same_as_tuned)
    except WarmlineError as error:
        return str(error)
    except torch.OutOfMemoryError:
        return "the GPU's memory is too small for it"
    return ""


def prepare() -> None:
    """Start the process from which each form is forked; it has the libraries and no model. Called early, it has them
    by the time the forms' turn comes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warmline.evaluate.quantised", "warmline.engine.local", "bitsandbytes", "peft"])
    forkserver.ensure_running()


def carry_out_forms(
    task: Task, forms: Sequence[str], gguf: dict[str, Path], note: Callable[[str], None]
) -> dict[str, str]:
    """Measure each form in a process of its own; returns the reasons of those that could not be."""
    failed: dict[str, str] = {}
    parts = [task.folder / form / "closeness.json" for form in forms]
    for part in parts:  # a more precise form has come in
        if part.exists() and read_json(part)["reference"] != forms[0]:
            part.unlink()
    if not all(part.exists() for part in parts) and not (task.folder / REFERENCE).exists():
        parts[0].unlink(missing_ok=True)  # whoever comes next needs its distributions
    if forms:
        prepare()
    loaded = "bf16" if (task.train / "model").exists() else task.settings.base.load
    context = multiprocessing.get_context("forkserver")
    for form in forms:
        done = all((task.folder / form / f"{part}.json").exists() for part in ("speed", "closeness", *PARTS))
        if not done or not safety.finished(task, form):
            with ProcessPoolExecutor(1, context) as alone:
                path = gguf.get(form.removeprefix("gguf-"))
                try:
                    reason = alone.submit(measure_form, task, form, path, form == loaded).result()
                except BrokenProcessPool:
                    reason = "its process died; was there enough memory?"
            if reason:
                failed[form] = reason
        note(f"{form}: measured")
    return failed


def _measure_form(task: Task, form: str, gguf: Path | None, same_as_tuned: bool) -> None:
    libraries = _peak()
    engine, distributions, measure = _open_gguf(task, gguf) if gguf else _open_weights(task, form)
    task.part(form, "speed", lambda: _speed(task, engine, libraries) | {"weights_mb": _size(engine, gguf)})
    if gguf:  # what many replies at once take of the memory is not its own
        engine.close()  # type: ignore[attr-defined]
        engine = _llamacpp(task, gguf, THREADS)
    encoded, _ = task.encoded(task.test, engine.template)
    task.part(form, "closeness", lambda: _closeness(task, form, distributions, encoded))
    if same_as_tuned:
        for path in (task.folder / "tuned").glob("*.json"):
            if path.stem in PARTS or path.stem.startswith("safety-"):
                write_json(task.folder / form / path.name, read_json(path))
    carry_out(task, form, engine, measure, lambda _: None)
    if task.suites:
        safety.carry_out(task, form, engine, task.options)


Distributions = Callable[[Encoded], np.ndarray[Any, Any]]


def _open_weights(task: Task, form: str) -> tuple[Speaker, Distributions, Any]:
    from warmline.engine.local import LocalEngine
    from warmline.model import adapter

    base = task.settings.base.model_copy(update={"load": form})
    full = task.train / "model"
    if full.exists():
        base = base.model_copy(update={"model": str(full), "revision": None})
        settings = task.settings.model_copy(update={"base": base})
        engine = LocalEngine.open(settings, None, form)
    else:
        model = adapter.load_adapter(load.load_model(base), task.train / "adapter", load.identity(task.settings.base))
        template = _template(task)
        engine = LocalEngine(model.eval(), template, form, task.settings.prompt.context)

    def distributions(text: Encoded) -> np.ndarray[Any, Any]:
        with torch.inference_mode(), perplexity.attending_in_packs(engine.model):
            [packed] = packing.packs([text], len(text))
            return packing.logits(engine.model, packed.to(engine.model.device)).float().log_softmax(-1).cpu().numpy()

    return (
        engine,
        distributions,
        lambda texts: perplexity.surprise(engine.model, texts, task.settings.train.pack_tokens),
    )


def _llamacpp(task: Task, path: Path, at_once: int) -> Any:
    from warmline.engine.llamacpp import LlamaCppEngine

    context = task.settings.prompt.context
    return LlamaCppEngine.open(path, _template(task), name=path.stem, context=context, merged=True, at_once=at_once)


def _open_gguf(task: Task, path: Path) -> tuple[Speaker, Distributions, Any]:
    context = task.settings.prompt.context
    engine = _llamacpp(task, path, 1)

    def rows(texts: Sequence[Encoded]) -> Iterator[np.ndarray[Any, Any]]:
        with verify.opened(path, context + 8) as model:
            for text in texts:
                model.reset()
                model.eval(text.ids)
                places = [n for n, target in enumerate(text.supervised[1:]) if target]
                logits = torch.from_numpy(np.array(model.scores[places]))
                yield logits.float().log_softmax(-1).numpy()

    def distributions(text: Encoded) -> np.ndarray[Any, Any]:
        return next(rows([text]))

    def measure(texts: Sequence[Encoded]) -> perplexity.Surprise:
        nats = {text.owner: 0.0 for text in texts}
        tokens = dict.fromkeys(nats, 0)
        for text, found in zip(texts, rows(texts), strict=True):
            labels = [i for i, target in zip(text.ids[1:], text.supervised[1:], strict=True) if target]
            nats[text.owner] -= float(found[np.arange(len(labels)), labels].astype(np.float64).sum())
            tokens[text.owner] += len(labels)
        return perplexity.Surprise(tuple(nats), tuple(nats.values()), tuple(tokens.values()))

    return engine, distributions, measure


def _template(task: Task) -> Any:
    from warmline.model.template import Template

    full = task.train / "model"
    base = task.settings.base.model_copy(update={"model": str(full)}) if full.exists() else task.settings.base
    return Template.of(load.load_tokenizer(base), task.settings.prompt)


def _speed(task: Task, engine: Speaker, libraries: int) -> dict[str, Any]:
    """Seconds to the first words and tokens a second after them, with the system message already read."""
    options = replace(task.options, max_tokens=SPEED_TOKENS, temperature=0)
    ask(engine, [Message("user", "Hello.")], replace(options, max_tokens=4))
    rows = [ask(engine, q.messages, options) for q in task.questions(engine)[:SPEED_PROMPTS]]
    paces = [(r["tokens"] - 1) / (r["seconds"] - r["first"]) for r in rows if r["tokens"] > 2]
    return {
        "first_token": round(statistics.median(r["first"] for r in rows), 4) if rows else None,
        "tokens_per_second": round(statistics.median(paces), 1) if paces else None,
        "peak_mb": round(_peak() / 1e6, 1),
        "model_mb": round((_peak() - libraries) / 1e6, 1),
        "where": "GPU" if torch.cuda.is_available() else "CPU",
    }


def _peak() -> int:
    """Most bytes this process has held: of the GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _size(engine: Speaker, gguf: Path | None) -> float:
    size = gguf.stat().st_size if gguf else engine.model.get_memory_footprint()  # type: ignore[attr-defined]
    return round(size / 1e6, 2)


def _closeness(task: Task, form: str, distributions: Distributions, texts: Sequence[Encoded]) -> dict[str, Any]:
    """Divergence from the reference's distributions, and how often the likeliest token is the same.

    The first form that comes here is the reference; its distributions are kept beside the parts until all are done.
    """
    kept = task.folder / REFERENCE
    if not kept.exists():
        found: dict[str, np.ndarray[Any, Any]] = {}
        size = 0
        for number, text in enumerate(texts[: task.items]):
            rows = distributions(text)
            size += rows.nbytes
            if found and size > REFERENCE_BYTES:
                break
            found[str(number)] = rows
        np.savez(kept.with_suffix(".partial.npz"), form=np.array(form), **found)  # type: ignore[arg-type]
        kept.with_suffix(".partial.npz").replace(kept)
    divergences, same = [], []
    with np.load(kept) as reference:
        against = str(reference["form"])
        for number in sorted(set(reference.files) - {"form"}, key=int):
            if form == against:
                divergences.append(0.0)
                same.append(1.0)
                continue
            text = texts[int(number)]
            p = reference[number].astype(np.float64)
            q = distributions(text)[:, : p.shape[1]].astype(np.float64)
            divergences.append(float((np.exp(p) * (p - q)).sum(-1).mean()))
            same.append(float((p.argmax(-1) == q.argmax(-1)).mean()))
    return {"reference": against, "kl": asdict(mean(divergences)), "same_choice": asdict(mean(same))}
