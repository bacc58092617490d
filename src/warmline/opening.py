"""From a finished run to something that talks: load its model and stand the one door, `chat`, before it.

The only place above the engines that names one; the page and the terminal get the door and nothing behind it.
"""

from __future__ import annotations

from warmline import recipe
from warmline.chat import Chat
from warmline.engine.base import Options
from warmline.errors import RunError
from warmline.messages import Message
from warmline.runs import Run
from warmline.safety.audit import AuditLog

LONGEST_REPLY = 160
"""Tokens. Long replies read like lectures; the page shows a few sentences at a time."""


def resolved_base(run: Run, settings: recipe.Recipe) -> recipe.Recipe:
    """The recipe with `base.model: new` replaced by the base that the run made."""
    if settings.base.model != "new":
        return settings
    base = settings.base.model_copy(update={"model": str(run.folder / "base")})
    return settings.model_copy(update={"base": base})


def open_chat(run: Run, *, tuned: bool = True, country: str | None = None, seed: int | None = None) -> Chat:
    """Load the run's model, tuned or as it was before, with the safety layer before it and an audit log beside it.

    Raises:
        RunError: the run is not trained yet.
        ModelError: the base cannot be loaded or is not the one the run was trained on.
    """
    from warmline.engine.local import LocalEngine

    if not (run.folder / "train").exists():
        raise RunError(
            f"run `{run.name}` is not trained yet",
            code="run-missing",
            where=str(run.folder),
            hint="run the same `warmline train` command again; it continues where it was",
        )
    settings = resolved_base(run, recipe.load(str(run.folder / "recipe.yaml")))
    engine = LocalEngine.open(settings, run.folder / "train" if tuned else None, run.name)
    asked = settings.evaluate
    options = Options(
        min(LONGEST_REPLY, settings.prompt.context // 3),
        asked.temperature,
        asked.top_p,
        asked.repetition_penalty,
        seed,
    )

    def fits(messages: list[Message]) -> bool:
        return engine.fits(messages, options.max_tokens)

    return Chat(
        engine,
        system=settings.prompt.system,
        country=country,
        options=options,
        audit=AuditLog(run.folder / "audit.jsonl", sync=False),
        fits=fits,
    )
