"""From a finished run to something that talks: choose an engine, load it and stand the one door, `chat`, before it.

The only place above the engines that names one; the page and the terminal get the door and nothing behind it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from warmline import recipe
from warmline.chat import Chat
from warmline.engine.base import Options
from warmline.engine.choice import Choice, choose, unchanged
from warmline.errors import RunError
from warmline.messages import Message
from warmline.runs import Run
from warmline.safety.audit import AuditLog
from warmline.safety.own import rules

if TYPE_CHECKING:
    from warmline.engine.llamacpp import LlamaCppEngine
    from warmline.engine.local import LocalEngine
    from warmline.engine.remote import RemoteEngine
    from warmline.model.template import Template

LONGEST_REPLY = 160
"""Tokens. Long replies read like lectures; the page shows a few sentences at a time."""


def resolved_base(run: Run, settings: recipe.Recipe) -> recipe.Recipe:
    """The recipe with `base.model: new` replaced by the base that the run made."""
    if settings.base.model != "new":
        return settings
    base = settings.base.model_copy(update={"model": str(run.folder / "base")})
    return settings.model_copy(update={"base": base})


def open_chat(
    run: Run,
    *,
    tuned: bool = True,
    country: str | None = None,
    seed: int | None = None,
    engine: str | None = None,
) -> Chat:
    """Load the run's model, tuned or as it was before, with the safety layer before it and an audit log beside it.

    `engine` overrides the recipe's `engine.use`.

    Raises:
        RunError: the run is not trained yet.
        ModelError: the model cannot be loaded, or the base is not the one the run was trained on.
        EngineError: the engine that was asked for cannot be used.
    """
    if not (run.folder / "train").exists():
        raise RunError(
            f"run `{run.name}` is not trained yet",
            code="run-missing",
            where=str(run.folder),
            hint="run the same `warmline train` command again; it continues where it was",
        )
    settings = resolved_base(run, recipe.load(str(run.folder / "recipe.yaml")))
    own = rules(run.folder / "protocol.yaml")
    choice = choose(run, engine or settings.engine.use, tuned=tuned)
    opened = open_engine(run, settings, choice, tuned=tuned)
    asked = settings.evaluate
    options = Options(
        min(LONGEST_REPLY, settings.prompt.context // 3),
        asked.temperature,
        asked.top_p,
        asked.repetition_penalty,
        seed,
    )

    def fits(messages: list[Message]) -> bool:
        return opened.fits(messages, options.max_tokens)

    return Chat(
        opened,
        system=settings.prompt.system,
        country=country,
        options=options,
        audit=AuditLog(run.folder / "audit.jsonl", sync=False),
        fits=fits,
        policy=own.policy,
        protocol=own.protocol,
        refuse_minors=own.refuse_minors,
    )


def open_engine(
    run: Run, settings: recipe.Recipe, choice: Choice, *, tuned: bool = True
) -> LlamaCppEngine | LocalEngine | RemoteEngine:
    """Load what was chosen; only that engine's libraries are imported."""
    context = settings.prompt.context
    if choice.kind == "remote":
        from warmline.engine.remote import RemoteEngine

        key = os.environ.get("WARMLINE_ENGINE_KEY")
        return RemoteEngine.open(choice.url, choice.model, key=key, context=context)
    if choice.files is not None:
        from warmline.engine.llamacpp import LlamaCppEngine

        unchanged(run, choice.files)
        return LlamaCppEngine.open(
            choice.files.model,
            _template(run, settings),
            name=run.name,
            context=context,
            adapter=choice.files.adapter,
            merged=choice.files.merged,
            at_once=settings.engine.at_once,
            saved=run.folder / "cache" / f"{(choice.files.adapter or choice.files.model).stem}.prompt",
        )
    from warmline.engine.local import LocalEngine

    return LocalEngine.open(settings, run.folder / run.tuned if tuned else None, run.name)


def _template(run: Run, settings: recipe.Recipe) -> Template:
    """The run's template, without torch where the tokenizer's own files are at hand."""
    from warmline.engine.vocabulary import Vocabulary
    from warmline.model.template import Template

    trained = run.folder / "train" / "model"
    here = Path(__file__).parent / "model" / "embedded"
    folder = trained if trained.exists() else here if settings.base.model == "embedded" else Path(settings.base.model)
    if (folder / "tokenizer.json").exists():
        return Template.of(Vocabulary(folder), settings.prompt)
    from warmline.model.load import load_tokenizer

    return Template.of(load_tokenizer(settings.base), settings.prompt)
