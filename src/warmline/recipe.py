"""Recipes: every setting of a run in one YAML file, each explained once, under its field.

Knows nothing about how a setting is carried out. The text under a field feeds `--help`, the reference page and editors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from warmline.errors import RecipeError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Data(Section):
    """Which conversations, and how they are divided."""

    sources: tuple[str, ...] = ("sample",)
    """Files, folders or hub dataset ids; `sample` is the corpus that ships with Warmline."""
    format: str | None = None
    """Name of the reader. Empty: detected from the file."""
    columns: dict[str, str] = {}
    """Which column is what, e.g. {question: Frage, answer: Antwort}, for tables with unusual headings."""
    licence: str | None = None
    """Licence of sources that state none. Without it an unknown licence stops the run."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many conversations."""
    validation: float = Field(0.1, ge=0, lt=0.5)
    """Share of groups held out to choose the best checkpoint."""
    test: float = Field(0.1, ge=0, lt=0.5)
    """Share of groups held out for the final measurement; never seen in training."""
    seed: int = 17
    """Decides which groups are held out."""
    language: str = "en"
    """Conversations in another language are rejected. `any` keeps all."""
    anonymise: bool = True
    """Replace names, places, numbers and addresses of people by placeholders."""
    lint: Literal["drop", "route", "report", "off"] = "drop"
    """What happens to replies that must not be learnt (diagnosis, methods, blame ...): drop the conversation, route it
    to a safe answer, only report it, or do not look."""
    dedupe: bool = True
    """Leave out copies and near copies, so that none stands on both sides of a split."""
    canaries: int = Field(0, ge=0, le=100)
    """So many made-up secrets are planted among the training conversations, and the evaluation tells whether the model
    has learnt them by heart. 8 or more say something."""


class NewBase(Section):
    """Shape of a base that is trained from nothing (`base.model: new`), Llama architecture."""

    vocabulary: int = Field(6144, ge=512)
    """Size of the byte-level BPE vocabulary, control tokens included; learnt from the training text."""
    width: int = Field(256, ge=32)
    """Hidden size. Parameters grow with its square."""
    layers: int = Field(8, ge=1)
    """Transformer blocks, one after the other."""
    heads: int = Field(4, ge=1)
    """Attention heads; each is width / heads wide."""
    inner: int = Field(704, ge=32)
    """Width of the gated feed-forward layer."""
    context: int = Field(1024, ge=64)
    """Longest text in tokens."""


class Base(Section):
    """The language model to start from."""

    model: str = "embedded"
    """A local folder, a hub id such as `Qwen/Qwen3-4B`, `embedded` for the small base that ships, or `new`."""
    revision: str | None = None
    """Commit or tag of the hub repository. Pin it: a base that changes underneath is another base."""
    load: Literal["nf4", "int8", "bf16", "fp32"] = "nf4"
    """Precision of the frozen weights in memory: nf4 needs about 0.55 bytes a parameter, int8 1.1, bf16 2, fp32 4."""
    double_quant: bool = True
    """Quantise NF4's own scales too (QLoRA, arXiv 2305.14314): 0.4 bits a parameter less."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base. Only for a publisher and a revision you have checked."""
    new: NewBase = NewBase()


class Prompt(Section):
    """How a conversation becomes text; one template for training and inference."""

    template: Literal["auto", "chat", "plain", "seed"] = "auto"
    """`chat`: the tokenizer's own chat template. `plain`: <HUMAN>/<ASSISTANT> lines with an end-of-turn token.
    `auto`: chat where the tokenizer has one, else plain. `seed`: as `prompt.seed_format` spells it, faults included."""
    seed_format: str = ""
    """The training text of the project a recipe repeats, with {user} and {reply}, and {system} before them if it had
    one. What it spells outside the braces is tokenised as its authors' trainer did, control tokens included."""
    system: str = ""
    """System message put before every conversation that has none, in training and in the chat alike. `listener` stands
    for the careful one that ships with Warmline; its words are written into the run's own recipe."""
    supervise: Literal["assistant", "all"] = "assistant"
    """Whose tokens carry the loss. `all` is for training a base, and for repeating the seeds' fault on purpose."""
    context: int = Field(1024, ge=32)
    """Longest conversation in tokens."""
    too_long: Literal["split", "drop", "stop"] = "split"
    """What happens to a longer one: split at turn boundaries, drop, or stop with an error. Never cut silently."""

    @field_validator("system")
    @classmethod
    def _named(cls, system: str) -> str:
        return listener() if system == "listener" else system

    @model_validator(mode="after")
    def _slots(self) -> Prompt:
        slots = re.findall(r"\{(system|user|reply)\}", self.seed_format)
        if self.seed_format and slots not in (["user", "reply"], ["system", "user", "reply"]):
            raise ValueError("seed_format needs {user} and then {reply}, each once, and {system} only before them")
        if self.template == "seed" and not self.seed_format:
            raise ValueError("template `seed` needs prompt.seed_format, which only the seeds' recipes have")
        return self


class Adapter(Section):
    """What is trained on top of the base."""

    method: Literal["lora", "full"] = "lora"
    """`lora` trains a small adapter on a frozen base; `full` trains every weight."""
    rank: int = Field(16, ge=1)
    """Width of the LoRA update. Doubling it doubles the adapter's size on disk."""
    alpha: float = Field(32, gt=0)
    """Scale of the update; its effect is alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of inputs of the update dropped in training."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an update."""
    dora: bool = False
    """Weight-decomposed update (arXiv 2402.09353): a little better, slower."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv 2312.03732): for large ranks."""


class Train(Section):
    """How long and how fast."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the training conversations. More than about 10 on a small corpus is memorisation."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides `epochs` when given."""
    batch: int = Field(16, ge=1)
    """Conversations in one optimizer step."""
    pack: Annotated[int, Field(ge=64)] | Literal["auto"] = 2048
    """Tokens computed at once. Affects memory and speed, not the result. `auto`: as many as the plan says fit."""
    share_prefixes: bool = True
    """Compute once what conversations of a pack begin with alike: the system message, one question with many answers.
    Affects speed, not the result; with adapter.dropout above 0 they also share what is dropped there."""
    order: Literal["random", "grouped"] = "random"
    """`grouped`: answers to one question, and the parts of one conversation, come one after the other, so that sharing
    saves most; a step then sees fewer questions. Which question comes when is drawn anew each epoch, either way."""
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    """Largest step size, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    floor: float = Field(0.0, ge=0, le=1)
    """Where the schedule ends, as a share of the learning rate."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    weight_decay: float = Field(0.0, ge=0)
    """Pull of matrices towards zero (AdamW); norms are left alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Memory of AdamW's two averages."""
    optimizer: Literal["auto", "adamw", "adamw-8bit"] = "auto"
    """AdamW with averages in fp32, or in 8 bits and paged out of a full GPU (arXiv 2110.02861). `auto`: fp32, but
    8 bits on a GPU where the plan finds room for nothing more."""
    seed: int = 17
    """Order of the conversations, initial adapter, dropout."""
    validate_every: int = Field(50, ge=1)
    """Steps between two measurements on the validation split."""
    save_every: int = Field(50, ge=1)
    """Steps between two checkpoints. An interrupted run loses at most so many."""
    save_seconds: float = Field(60.0, gt=0)
    """A checkpoint is written at least this often."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the result: lowest validation loss, or the last ones."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many measurements on the validation split without a new lowest loss. Empty: never early."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """When a step's loss is NaN or infinite: stop with its conversations named, leave the step out, or go back to the
    last checkpoint and leave it out on the way. Five such steps in a row stop the run in any case."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where the numbers go beside metrics.jsonl. wandb and trackio send them to other machines; no text is sent."""
    samples: int = Field(1, ge=0)
    """So many of `evaluate.prompts` are answered at each measurement, into samples.jsonl."""

    @property
    def pack_tokens(self) -> int:
        """`pack` as a number; what `auto` comes to before a plan is made."""
        return 2048 if self.pack == "auto" else self.pack


class Prefer(Section):
    """Which of two replies is better (DPO, arXiv 2305.18290): what `warmline prefer` teaches the trained adapter."""

    sources: tuple[str, ...] = ("sample",)
    """Files or folders of pairs: prompt, chosen, rejected. `sample` are those that ship with Warmline."""
    validation: float = Field(0.1, ge=0, lt=0.5)
    """Share of prompts held out to measure what was learnt."""
    beta: float = Field(0.1, gt=0)
    """How closely the result is held to the adapter it began as. Lower moves further away from it."""
    epochs: float = Field(2.0, gt=0)
    """Passes over the pairs."""
    batch: int = Field(8, ge=1)
    """Pairs in one optimizer step."""
    learning_rate: float = Field(1e-5, gt=0, lt=1)
    """Largest step size. Far below that of training: too much unlearns how to speak."""
    save_every: int = Field(10, ge=1)
    """Steps between two checkpoints. An interrupted run loses at most so many."""


class Evaluate(Section):
    """What the tuned model and its base are asked."""

    prompts: tuple[str, ...] = ()
    """Replies to these are printed side by side."""
    new_tokens: int = Field(120, ge=1)
    """Longest reply in tokens."""
    temperature: float = Field(0.7, ge=0)
    """0 takes the likeliest token every time."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Draw only from the likeliest tokens that together have this probability."""
    repetition_penalty: float = Field(1.1, ge=1)
    """Above 1, tokens that stand in the conversation already become less likely."""
    seed: int = 17
    """Makes the measured replies repeatable."""


class Engine(Section):
    """What replies at `warmline chat` and `warmline serve`."""

    use: str = "auto"
    """`auto`, `llamacpp`, `local`, or the address of a server that speaks OpenAI's API, such as
    http://127.0.0.1:8000/v1, with #MODEL behind it if it has several. Its key belongs into WARMLINE_ENGINE_KEY."""
    at_once: int = Field(4, ge=1)
    """Whole contexts that llama.cpp's cache may grow to; more conversations fit while they are short."""


class Recipe(Section):
    """Everything a run needs to repeat itself."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Also the name of the run's folder."""
    description: str = ""
    data: Data = Data()
    base: Base = Base()
    prompt: Prompt = Prompt()
    adapter: Adapter = Adapter()
    train: Train = Train()
    preference: Prefer = Prefer()
    evaluate: Evaluate = Evaluate()
    engine: Engine = Engine()


def shipped() -> list[str]:
    """Names of the recipes that come with Warmline."""
    folder = resources.files("warmline") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def source(name: str) -> tuple[str, str]:
    """The YAML text of a recipe given by path or by shipped name, and what to call it in messages.

    Raises:
        RecipeError: there is none; the message offers near names.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text("utf-8"), str(path)
        except OSError:
            raise RecipeError(
                f"recipe {path} cannot be read", code="recipe-unknown", hint=f"shipped recipes: {', '.join(shipped())}"
            ) from None
        except UnicodeDecodeError:
            raise RecipeError(f"{path} is not UTF-8 text", code="recipe-invalid") from None
    if name not in shipped():
        near = difflib.get_close_matches(name, shipped(), 1)
        hint = (
            f"did you mean `{near[0]}`?"
            if near
            else f"shipped recipes: {', '.join(shipped())}, or a path ending in .yaml"
        )
        raise RecipeError(f"recipe `{name}` does not exist", code="recipe-unknown", hint=hint)
    return (resources.files("warmline") / "recipes" / f"{name}.yaml").read_text("utf-8"), name


def listener() -> str:
    """The system message that ships with Warmline: listen first, never diagnose, in danger name help."""
    return (resources.files("warmline") / "recipes" / "listener.txt").read_text("utf-8").strip()


def load(name: str, settings: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by path or shipped name, with overrides such as `train.epochs=2` laid over it.

    Raises:
        RecipeError: all faults in one message, with near matches for misspelt settings.
    """
    text, label = source(name)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{label}:{mark.line + 1}" if mark else label
        raise RecipeError(f"{label} is not YAML", code="recipe-invalid", where=line) from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{label} holds no settings", code="recipe-invalid", hint="see `warmline recipes show demo`")
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(
                f"--set {setting} has no value", code="recipe-invalid", hint="write it as --set train.epochs=2"
            )
        node = tree
        *parents, leaf = path.strip().split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise RecipeError(f"--set {path}: `{parent}` is not a section", code="recipe-invalid")
            node = child
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {path}: its value is not YAML", code="recipe-invalid") from None
    return parse(tree, label)


def parse(tree: dict[str, Any], label: str = "recipe") -> Recipe:
    """Check a tree of settings whole and turn it into a `Recipe`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        known = set(settings(Recipe))
        faults: dict[str, list[str]] = {}
        near = []
        for fault in error.errors():
            path = _setting(fault["loc"], known)
            if fault["type"] == "extra_forbidden":
                faults[f"`{path}` is not a setting"] = []
                close = difflib.get_close_matches(path, known, 1, 0.6)
                near += [f"`{close[0]}` for `{path}`"] if close else []
            elif fault["type"] == "missing":
                faults[f"`{path}` is missing"] = []
            elif fault["type"] == "value_error":
                faults.setdefault(f"`{path}`", []).append(str(fault["ctx"]["error"]))
            else:  # a setting that may be of two kinds has a fault for each
                faults.setdefault(f"`{path}` is {fault['input']!r}", []).append(
                    fault["msg"][:1].lower() + fault["msg"][1:]
                )
        said = [f"{what}: {' or '.join(why)}" if why else what for what, why in faults.items()]
        count = "1 problem" if len(faults) == 1 else f"{len(faults)} problems"
        raise RecipeError(
            f"{count} in {label}: {'; '.join(said)}",
            code="recipe-invalid",
            hint=f"did you mean {', '.join(near)}?" if near else "see `warmline recipes show demo` for every setting",
        ) from None


def _setting(location: tuple[int | str, ...], known: set[str]) -> str:
    """The dotted name of the setting a fault is in; what pydantic adds about kinds of values is left out."""
    parts = [str(part) for part in location]
    for stop in range(1, len(parts)):
        if (name := ".".join(parts[:stop])) in known:
            return ".".join([name, *(part for part in parts[stop:] if part.isdigit())])
    return ".".join(parts)


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, in the order of the recipe."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def explain(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, explanation) of every setting, for the reference page and `recipes explain`."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from explain(field.annotation, f"{prefix}{name}.")
        else:
            choices = get_args(field.annotation) if "Literal" in str(field.annotation) else ()
            allowed = " | ".join(str(c) for c in choices if isinstance(c, str))
            default = "" if field.is_required() else repr(field.default)
            yield (
                f"{prefix}{name}",
                default,
                " ".join((field.description or "").split()) + (f" ({allowed})" if allowed else ""),
            )


def dump(recipe: Recipe) -> str:
    """The recipe as resolved, as YAML: reading it back gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
