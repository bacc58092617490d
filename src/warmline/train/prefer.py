"""Preference tuning (DPO): a trained adapter learns which of two replies is better, held to what it was.

TRL does the learning. Ours is what it learns from: pairs tokenised by the run's own template, so that training and
inference see the same tokens and no text becomes a control token.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from warmline import console, recipe
from warmline.corpus.preferences import Pair
from warmline.corpus.split import assign
from warmline.errors import DataError, ModelError, RecipeError
from warmline.messages import Message
from warmline.model import adapter, load
from warmline.model.template import Template
from warmline.runs import fingerprint, write_jsonl, writing


def check(settings: recipe.Recipe) -> None:
    """Say before anything is trained that preferences cannot be.

    Raises:
        ModelError: the package TRL is not installed.
        RecipeError: the recipe trains every weight.
    """
    _package("trl")
    if settings.adapter.method != "lora":
        raise RecipeError(
            "preference tuning goes on with an adapter, and adapter.method is `full`",
            code="recipe-invalid",
            hint="set adapter.method to `lora`",
        )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ModelError(
            f"preference tuning needs the package `{name}`",
            code="dependency-missing",
            hint="pip install 'warmline[prefer]'",
        ) from None


@dataclass(frozen=True, slots=True)
class Rows:
    """Pairs as TRL's collator takes them, and how many of those read are not among them."""

    train: list[dict[str, list[int]]]
    validation: list[dict[str, list[int]]]
    forbidden: int
    """Left out because the lint would not let the preferred reply be learnt."""
    too_long: int
    """Left out because a reply ends beyond prompt.context. None is ever cut."""


def encode(pair: Pair, template: Template) -> dict[str, list[int]]:
    """Prompt and both replies as token ids, each reply with its end of turn."""
    prompt = template.encode(pair.prompt, reply=True).ids
    chosen, rejected = (
        template.encode([*pair.prompt, Message("assistant", reply)]).ids[len(prompt) :]
        for reply in (pair.chosen, pair.rejected)
    )
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def rows_of(pairs: Sequence[Pair], template: Template, settings: recipe.Recipe) -> Rows:
    """Encode pairs and divide them; one prompt never stands on both sides.

    Raises:
        DataError: a pair is too long and prompt.too_long is `stop`, or nothing is left to train on.
    """
    allowed = [pair for pair in pairs if settings.data.lint in ("off", "report") or not pair.forbidden]
    encoded = [(pair, encode(pair, template)) for pair in allowed]
    context = settings.prompt.context
    kept = [
        (pair, row)
        for pair, row in encoded
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= context
    ]
    too_long = len(encoded) - len(kept)
    if too_long and settings.prompt.too_long == "stop":
        raise DataError(
            f"{too_long:,} of {len(encoded):,} preference pairs are longer than {context:,} tokens",
            code="data-too-long",
            hint="raise prompt.context, or set prompt.too_long to `drop`",
        )
    if not kept:
        raise DataError(
            f"of {len(pairs):,} preference pairs none is left",
            code="data-empty",
            hint=f"{len(pairs) - len(allowed):,} prefer a reply that the lint forbids, {too_long:,} are too long",
        )
    groups = [fingerprint([asdict(message) for message in pair.prompt]) for pair, _ in kept]
    share = settings.preference.validation
    parts = assign(groups, [""] * len(groups), validation=share, test=0, seed=settings.data.seed)
    train, validation = ([row for (_, row), at in zip(kept, parts, strict=True) if at == p] for p in ("train", "val"))
    return Rows(train, validation, len(pairs) - len(allowed), too_long)


def tune_preferences(settings: recipe.Recipe, pairs: Sequence[Pair], trained: Path, folder: Path) -> dict[str, Any]:
    """Go on with the adapter in `trained`; leave `adapter/` and `metrics.jsonl` in `folder`. Returns a summary.

    Work already done in `folder` goes on at its newest whole checkpoint.

    Raises:
        DataError: no pair can be used.
        ModelError: TRL is missing, the base cannot be loaded or the adapter is another base's.
    """
    check(settings)
    began = time.monotonic()
    tokenizer = load.load_tokenizer(settings.base)
    rows = rows_of(pairs, Template.of(tokenizer, settings.prompt), settings)
    for count, why in ((rows.forbidden, "prefer a reply that the lint forbids"), (rows.too_long, "are too long")):
        if count:
            console.warn(f"{count:,} of {len(pairs):,} pairs {why} and are left out")
    identity = load.identity(settings.base)
    model = adapter.load_adapter(load.load_model(settings.base), trained, identity, trainable=True)
    with writing(folder), load.quiet():
        trainer = _trainer(settings, model, tokenizer, rows, folder / "checkpoints")
        total = trainer.args.max_steps
        with console.progress("preferences", total) as bar:
            trainer.add_callback(_shown(bar))
            trainer.train(resume_from_checkpoint=_newest(folder / "checkpoints"))
        held_out = trainer.evaluate() if rows.validation else {}
        write_jsonl(folder / "metrics.jsonl", (row for row in trainer.state.log_history if "loss" in row))
        model.delete_adapter("ref")
        adapter.save_adapter(model, folder / "adapter", identity)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    last = [row for row in trainer.state.log_history if "loss" in row][-1]
    beta = settings.preference.beta
    return {
        "base": identity,
        "pairs": len(pairs),
        "train": len(rows.train),
        "validation": len(rows.validation),
        "forbidden": rows.forbidden,
        "too_long": rows.too_long,
        "steps": trainer.state.global_step,
        "last": _measured(last, "", beta),
        "held_out": _measured(held_out, "eval_", beta) if held_out else None,
        "seconds": round(time.monotonic() - began, 1),
    }


def _measured(row: dict[str, float], prefix: str, beta: float) -> dict[str, float]:
    """What a log row says in words. The reply's log-probability ratio is tuned against as it was before."""
    return {
        "loss": round(row[f"{prefix}loss"], 4),
        "margin": round(row[f"{prefix}rewards/margins"], 4),
        "right": round(row[f"{prefix}rewards/accuracies"], 4),
        "chosen_log_ratio": round(row[f"{prefix}rewards/chosen"] / beta, 4),
        "rejected_log_ratio": round(row[f"{prefix}rewards/rejected"] / beta, 4),
    }


def _shown(bar: console.Bar) -> TrainerCallback:
    class Shown(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "rewards/margins" in logs:
                bar.to(state.global_step, f"loss {logs['loss']:.3f} · margin {logs['rewards/margins']:.3f}")

    return Shown()


def _newest(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; the trainer writes its state last."""
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        return str(folder)
    return None


def _trainer(settings: recipe.Recipe, model: Any, tokenizer: Any, rows: Rows, folder: Path) -> Any:
    trl, datasets = _package("trl"), _package("datasets")
    chosen = settings.preference

    class Trainer(trl.DPOTrainer):  # type: ignore[misc, name-defined]
        """TRL's trainer on rows that are tokenised already. It writes no card and tells nobody that it ran."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def create_model_card(self, *_: Any, **__: Any) -> None: ...

        def _send_telemetry(self) -> None: ...

    gpu = torch.cuda.is_available()
    mixed = settings.base.load != "fp32"
    half = gpu and not torch.cuda.is_bf16_supported(including_emulation=False)
    steps = max(1, round(chosen.epochs * len(rows.train) / chosen.batch))
    arguments = trl.DPOConfig(
        output_dir=str(folder),
        beta=chosen.beta,
        max_length=None,
        max_steps=steps,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=chosen.batch,
        gradient_checkpointing=gpu,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.1 * steps),
        max_grad_norm=settings.train.clip,
        weight_decay=0.0,
        bf16=mixed and not half,
        fp16=mixed and half,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        seed=settings.train.seed,
        logging_steps=1,
        save_steps=chosen.save_every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    # TRL rounds the adapter of a quantised base to bf16, where steps of this size are lost; it stays fp32.
    exact = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows.train),
        eval_dataset=datasets.Dataset.from_list(rows.validation) if rows.validation else None,
    )
    for name, weights in exact.items():
        model.get_parameter(name).data = weights
    for module in model.modules():
        # As in our own loop: bitsandbytes' repacked NF4 kernel for AVX-512 has no backward.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    trainer.remove_callback(PrinterCallback)
    return trainer
