"""The `export` stage: make the forms asked for, check each against the trained model, write their cards.

    export/  adapter/    peft's layout, tokenizer, card
             merged/     safetensors, tokenizer, card
             gguf/       NAME-q8_0.gguf ..., NAME-lora.gguf with its base, Modelfile, card
             verified.json

Forms made before from the same training stay. Stopped at any point, the same call goes on where it was.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from warmline import console, recipe
from warmline.errors import ModelError
from warmline.model import adapter as adapters
from warmline.model import load
from warmline.model.export import FORMS, QUANTS, card, merge, ollama, verify, weights
from warmline.model.template import Template
from warmline.runs import MANIFEST, Run, Stage, read_json, write_atomically, write_json, writing

PREFERRED = ("q4_k_m", "q5_k_m", "q8_0", "q4_0", "f16", "bf16", "f32")
"""Which of several Ollama is to run."""


def safety(run: Run, train_key: str, override: str | None) -> dict[str, Any]:
    """What the evaluation says of this very training, for the card. `forms` are those that lost what it had.

    Raises:
        ModelError: it found the model less safe than its base, and nobody has put their name to going on.
    """
    folder = run.folder / "evaluation"
    if not (folder / "gate.json").exists():
        return {"state": "not evaluated"}
    measured_on = read_json(folder / MANIFEST)["inputs"].get("train") if (folder / MANIFEST).exists() else None
    if measured_on not in (None, train_key):
        console.warn("the evaluation is of an earlier training; run `warmline evaluate` again")
        return {"state": "not evaluated"}
    try:
        found = {
            system: [] if one["passed"] is True else [str(reason) for reason in one["reasons"]] or ["no reason given"]
            for system, one in read_json(folder / "gate.json")["systems"].items()
        }
        reasons = found.pop("tuned")
    except (ValueError, KeyError, TypeError, AttributeError):
        found, reasons = {}, ["evaluation/gate.json cannot be read"]
    told = {"measured": sorted(found), "forms": {form: why for form, why in found.items() if why}}
    if not reasons:
        return {"state": "passed", "override": override if told["forms"] else None} | told
    if not override:
        raise ModelError(
            f"the evaluation found run `{run.name}` less safe than its base: {'; '.join(reasons)}",
            code="export-refused",
            where=str(folder / "gate.json"),
            hint="read evaluation/report.html and train again; to go on all the same, --override 'YOUR NAME', which "
            "the card will carry",
        )
    return {"state": "refused", "reasons": reasons, "override": override} | told


def left_out(found: dict[str, Any]) -> dict[str, list[str]]:
    """The forms that the evaluation refuses though the model passed, with its reasons; none when somebody signed."""
    if found.get("override"):
        return {}
    known = {f"gguf-{quant}": f"gguf:{quant}" for quant in QUANTS}
    return {known[form]: why for form, why in found.get("forms", {}).items() if form in known}


def export(
    run: Run,
    settings: recipe.Recipe,
    forms: Iterable[str],
    *,
    override: str | None = None,
    base_licence: str | None = None,
) -> Stage:
    """Make `forms` (adapter, merged, gguf:QUANT, gguf:lora, ollama) of a trained run. Holds the run's lock.

    Raises:
        RunError: the run is not trained.
        ModelError: the evaluation refused it, a form cannot be made, or it differs from the trained model.
    """
    trained = run.manifest("train")
    # Before anything is loaded: what refuses must refuse at once.
    common = {
        "train": (tuned := run.manifest(run.tuned)["key"]),
        "safety": safety(run, tuned, override),
        "base_licence": base_licence or card.licence_of_base(settings.base),
    }
    asked = wanted = set(forms)
    refused = left_out(common["safety"])
    for form in sorted(asked & refused.keys()):
        console.warn(f"{form} is left out, for it became less safe than the tuned model: {'; '.join(refused[form])}")
    if asked <= refused.keys() | {"ollama"} and asked & refused.keys():
        raise ModelError(
            f"the evaluation found every form asked for less safe than the tuned model: {', '.join(sorted(refused))}",
            code="export-refused",
            where=str(run.folder / "evaluation" / "gate.json"),
            hint="choose a finer --quant; to go on all the same, --override 'YOUR NAME', which the card will carry",
        )
    if any(form.startswith("gguf") for form in wanted):
        verify.llama_cpp()
    with run.locked():
        old = run.folder / "export"
        before = read_json(old / MANIFEST)["inputs"] if (old / MANIFEST).exists() else {}
        goes_on = all(before.get(key) == common[key] for key in ("train", "base_licence"))
        if goes_on:
            wanted = wanted | set(before["forms"])
        wanted = wanted - refused.keys()
        if not any(form.startswith("gguf:") and form != "gguf:lora" for form in wanted):
            wanted = wanted - {"ollama"}
        inputs = common | {"forms": sorted(wanted)}
        stage = run.stage("export", inputs)
        if stage.finished:
            console.say("export: done before, kept")
            return stage
        folder = stage.begin()
        if goes_on and not (folder / "verified.json").exists():
            with writing(folder):
                shutil.copytree(
                    old, folder, copy_function=_link, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST)
                )
        work = _Work(run, settings, folder, wanted, common["base_licence"])
        work.carry_out()
        licences = work.cards(common["safety"], trained["summary"])
        stage.finish({"verified": work.verified, "licences": licences}, inputs)
    return stage


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


class _Work:
    """One export on its way: what is verified is not made again."""

    def __init__(self, run: Run, settings: recipe.Recipe, folder: Path, forms: set[str], base_licence: str) -> None:
        self.run, self.settings, self.folder, self.forms = run, settings, folder, forms
        self.base_licence = base_licence
        self.full = settings.adapter.method == "full"
        if self.full and forms & {"adapter", "gguf:lora"}:
            raise ModelError(
                f"run `{run.name}` trained every weight, so it has no adapter",
                code="adapter-missing",
                hint="export it as `merged` or `gguf`",
            )
        base = settings.base
        if self.full:
            base = base.model_copy(update={"model": str(run.folder / "train" / "model"), "revision": None})
        self.template = Template.of(load.load_tokenizer(base), settings.prompt)
        if self.template.kind != "chat":
            self.template.tokenizer.chat_template = merge.jinja_of(self.template.parts)
        self.prompts = verify.prompt_ids(self.template)
        done = folder / "verified.json"
        self.verified: dict[str, dict[str, Any]] = read_json(done) if done.exists() else {}

    def carry_out(self) -> None:
        """Make what is missing, the later forms from the earlier."""
        self._leave_out()
        if "adapter" in self.forms:
            self._do("adapter", "adapter", self._adapter)
        quants = [quant for quant in QUANTS if f"gguf:{quant}" in self.forms]
        if "merged" in self.forms or any(f"gguf:{quant}" not in self.verified for quant in quants):
            self._do("merged", "merged weights", lambda: self._merged(self.folder / "merged"))
        if any(f"gguf:{quant}" not in self.verified for quant in quants):
            self._ggufs(quants)
        if "gguf:lora" in self.forms:
            self._do("gguf:lora", "GGUF adapter", self._lora)
        if "ollama" in self.forms:
            self._do("ollama", "Modelfile", lambda: self._ollama(quants))
        if "merged" not in self.forms:
            shutil.rmtree(self.folder / "merged", ignore_errors=True)
            self.verified.pop("merged", None)
            self._remember()

    def _leave_out(self) -> None:
        """Remove what was made before and is refused now, and a Modelfile that runs it."""
        for form in [f for f in self.verified if f.startswith("gguf:") and f not in self.forms]:
            (self.folder / "gguf" / self.verified.pop(form)["file"]).unlink(missing_ok=True)
        runs = self.verified.get("ollama", {}).get("runs")
        if runs and not (self.folder / "gguf" / runs).exists():
            del self.verified["ollama"]
            (self.folder / "gguf" / "Modelfile").unlink(missing_ok=True)
        self._remember()

    def _do(self, form: str, what: str, make: Callable[[], dict[str, Any]]) -> None:
        if form in self.verified:
            return
        console.say(f"{what} ...")
        self.verified[form] = make()
        self._remember()

    def _remember(self) -> None:
        write_json(self.folder / "verified.json", self.verified)

    def _adapter(self) -> dict[str, Any]:
        target = self.folder / "adapter"
        row = merge.copy_adapter(self.run.folder / self.run.tuned / "adapter", target, self.settings.base)
        with load.quiet():
            self.template.tokenizer.save_pretrained(target)
        return row

    def _merged(self, target: Path) -> dict[str, Any]:
        shutil.rmtree(target, ignore_errors=True)
        if not self.full:
            row = merge.merge(self.settings.base, self.run.folder / self.run.tuned / "adapter", self.template, target)
        else:
            model = merge.original(recipe.Base(model=str(self.run.folder / "train" / "model")))
            merge.save(model, self.template, target)
            merge.widen(model)
            row = merge.compared(target, verify.logits(model, self.prompts), self.prompts, "the saved model")
        return row | {"file": "merged"}

    def _reference(self, folder: Path, adapter: Path | None = None) -> verify.Logits:
        model = merge.original(recipe.Base(model=str(folder)))
        if adapter is not None:
            model = adapters.load_adapter(model, adapter, {})
        merge.widen(model)
        return verify.logits(model, self.prompts)

    def _ggufs(self, quants: list[str]) -> None:
        merged, target = self.folder / "merged", self.folder / "gguf"
        with writing(target):
            target.mkdir(exist_ok=True)
        native = weights.NATIVE.get(str(read_json(merged / "config.json").get("dtype")), "f16")
        reference = self._reference(merged)
        exact = self.folder / f".{native}.gguf"
        try:
            for quant in quants:
                make = functools.partial(self._gguf, quant, native, exact, reference)
                self._do(f"gguf:{quant}", f"GGUF {quant}", make)
        finally:
            exact.unlink(missing_ok=True)

    def _gguf(self, quant: str, native: str, exact: Path, reference: verify.Logits) -> dict[str, Any]:
        path = self.folder / "gguf" / f"{self.run.name}-{quant}.gguf"
        if quant in weights.KINDS:
            weights.write_gguf(self.folder / "merged", path, quant, self.template, self.base_licence)
            return self._checked(path, quant, reference)
        if not exact.exists():
            # Quantised from numbers as trained. Checked first, so that a fault of writing is told from coarseness.
            weights.write_gguf(self.folder / "merged", exact, native, self.template, self.base_licence)
            self._checked(exact, native, reference)
        quantise(exact, path, quant)
        return self._checked(path, quant, reference)

    def _checked(self, path: Path, quant: str, reference: verify.Logits, lora: Path | None = None) -> dict[str, Any]:
        """The row of the card; a file that fails does not stay."""
        try:
            tokens = verify.check_tokens(path, self.template.tokenizer)
            found = verify.compare(reference, verify.gguf_logits(path, self.prompts, lora), verify.TOLERANCE[quant])
            return verify.require(found, (lora or path).name) | {"file": (lora or path).name, "tokens": tokens}
        except ModelError:
            (lora or path).unlink(missing_ok=True)
            raise

    def _lora(self) -> dict[str, Any]:
        """The adapter apart, and its base as a GGUF for it, for programs that switch it on and off."""
        folder, adapter = self.folder / "gguf", self.run.folder / self.run.tuned / "adapter"
        folder.mkdir(exist_ok=True)
        plain = self.folder / ".base"
        try:
            model = merge.original(self.settings.base)
            merge.save(model, self.template, plain)
            config = read_json(plain / "config.json")
            native = weights.NATIVE.get(str(config.get("dtype")), "f16")
            base = folder / f"{self.run.name}-base-{native}.gguf"
            weights.write_gguf(plain, base, native, self.template, self.base_licence)
            del model
            lora = folder / f"{self.run.name}-lora.gguf"
            weights.write_lora(adapter, lora, config)
            row = self._checked(base, native, self._reference(plain, adapter), lora)
        finally:
            shutil.rmtree(plain, ignore_errors=True)
        return row | {"base": base.name}

    def _ollama(self, quants: list[str]) -> dict[str, Any]:
        quant = next(q for q in PREFERRED if q in quants)
        file = f"{self.run.name}-{quant}.gguf"
        text = ollama.modelfile(file, self.settings, self.template, self.base_licence)
        write_atomically(self.folder / "gguf" / "Modelfile", text)
        return {"file": "Modelfile", "runs": file}

    def cards(self, found: dict[str, Any], trained: dict[str, Any]) -> list[str]:
        """Write a card beside every form; return the licences of base and data."""
        data = self.run.folder / "data" / MANIFEST
        prepared = read_json(data)["summary"] if data.exists() else {}
        measured = self.run.folder / "evaluation" / "measured.json"
        models = read_json(measured).get("models", {}) if measured.exists() else {}
        base = self.settings.base
        facts = card.Facts(
            name=self.run.name,
            base=merge.shown_name(base.model) if base.model != load.EMBEDDED else "Warmline's embedded base",
            base_on_hub=isinstance(load.locate(base.model), str),
            base_licence=self.base_licence,
            data_licences=prepared.get("licences") or ["unknown"],
            language=self.settings.data.language,
            conversations=prepared.get("counts", {}).get("train"),
            safety=found,
            trained=trained,
            measured={k: v["perplexity"] for k, v in models.items() if "perplexity" in v} or None,
            load="fp32" if self.full else base.load,
            system=" ".join(self.settings.prompt.system.split()),
            verified=self.verified,
        )
        for form in FORMS:
            if (self.folder / form).is_dir():
                write_atomically(self.folder / form / "README.md", card.render(form, facts))
        return facts.licences


def quantise(source: Path, target: Path, quant: str) -> None:
    """llama.cpp's own quantiser. Rows that a format cannot cut evenly get the nearest finer one."""
    package = verify.llama_cpp()
    settings = package.llama_model_quantize_default_params()
    settings.ftype = getattr(package, f"LLAMA_FTYPE_MOSTLY_{quant.upper()}")
    settings.nthread = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with writing(target.parent):
        failed = package.llama_model_quantize(str(source).encode(), str(target).encode(), settings)
    if failed:
        target.unlink(missing_ok=True)
        raise ModelError(
            f"llama.cpp could not quantise to {quant}",
            code="export-unsupported",
            hint="choose another --quant, and see that the disk has room",
        )
