"""Commands about data: `data inspect`, `data prepare`, `data show`, `data augment`, `anonymise`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from warmline import console
from warmline.errors import DataError

if TYPE_CHECKING:
    from warmline.corpus.augment import Writer, Written
    from warmline.messages import Message

data = typer.Typer(
    help="Look into counselling data and make clean, anonymous, leak-free splits of it.", no_args_is_help=True
)

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, hub dataset ids, or `sample`.")
]
FormatOption = Annotated[str | None, typer.Option("--format", help="Name of the reader. Default: detected.")]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="Which column is what, e.g. question=Frage,answer=Antwort.")
]


def _columns(text: str | None) -> dict[str, str]:
    """`question=Frage,answer=Antwort` as a mapping."""
    found: dict[str, str] = {}
    for pair in (text or "").split(","):
        role, equals, name = pair.partition("=")
        if pair.strip() and not (equals and role.strip() and name.strip()):
            raise DataError(
                f"--columns {pair.strip()} names no column",
                code="usage",
                hint="write it as --columns question=Frage,answer=Antwort",
            )
        if pair.strip():
            found[role.strip()] = name.strip()
    return found


@data.command("inspect")
def inspect_(sources: Sources, format: FormatOption = None, columns: ColumnsOption = None) -> None:
    """Say what each file is taken for, before anything runs: shape, columns, licence.

    \b
    Example:
      warmline data inspect counsel.csv
    """
    from warmline.corpus import read

    rows = []
    for source in sources:
        if read.is_hub_id(source):
            from warmline.corpus import hub

            seen = [hub.inspect(source, format, _columns(columns), None)[0]]
        else:
            seen = [read.inspect(p, format=format, columns=_columns(columns)) for p in read.files_of(source)]
        for one in seen:
            fields = ", ".join(f"{role} = {name}" for role, name in one.columns.items()) or ", ".join(one.names[:8])
            rows.append([one.source, one.container, one.format or "-", fields, one.licence or "unknown: state it"])
            console.json_line(
                {
                    "source": one.source,
                    "container": one.container,
                    "format": one.format,
                    "columns": one.columns,
                    "names": list(one.names),
                    "licence": one.licence,
                    "licence_from": one.licence_from,
                    "bytes": one.bytes,
                    "fits": one.fits,
                    "problem": one.problem or None,
                }
            )
            if one.problem:
                console.warn(one.problem)
    console.table("what is seen", ["file", "kind", "format", "read as", "licence"], rows)


@data.command("prepare")
def prepare_(
    sources: Sources,
    to: Annotated[Path, typer.Option("-o", "--out", help="Folder for the result.")],
    format: FormatOption = None,
    columns: ColumnsOption = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence of sources that state none; `unknown` goes on without.")
    ] = None,
    not_in: Annotated[
        list[str] | None,
        typer.Option("--not-in", help="Source whose texts must not be in the result. May be repeated."),
    ] = None,
    on_error: Annotated[Literal["skip", "stop"], typer.Option(help="What a record that cannot be read does.")] = "skip",
    lint: Annotated[
        Literal["drop", "route", "report", "off"],
        typer.Option(help="Conversations with something not to be learnt: leave out, put right, or only count."),
    ] = "drop",
    anonymise: Annotated[
        bool, typer.Option("--anonymise/--no-anonymise", help="Replace what identifies people.")
    ] = True,
    surrogates: Annotated[
        str, typer.Option(help="Secret key: stand-in names instead of placeholders.", envvar="WARMLINE_SURROGATES")
    ] = "",
    language: Annotated[str, typer.Option(help="Language to keep, or `any`.")] = "en",
    validation: Annotated[float, typer.Option(help="Share for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share for the test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides which groups are held out.")] = 17,
    limit: Annotated[int | None, typer.Option(help="Only the first so many conversations.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 decides by the size of the input.")] = 0,
) -> None:
    """Read, clean, anonymise, lint, dedupe and split; leave a report and a data card beside the splits.

    \b
    Examples:
      warmline data prepare sample -o data/
      warmline data prepare counsel.csv more/ -o data/ --licence MIT --not-in evaluation.jsonl
    """
    from warmline import recipe
    from warmline.corpus.pipeline import Choices, prepare
    from warmline.errors import RunError
    from warmline.runs import MANIFEST, Run

    section = recipe.parse(
        {
            "name": "data",
            "data": {
                "sources": list(sources),
                "format": format,
                "columns": _columns(columns),
                "licence": licence,
                "limit": limit,
                "validation": validation,
                "test": test,
                "seed": seed,
                "language": language,
                "anonymise": anonymise,
            },
        },
        "the command line",
    ).data
    choices = Choices(lint=lint, not_in=tuple(not_in or ()), on_error=on_error, workers=workers, surrogates=surrogates)
    target = to.expanduser().resolve()
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise RunError(
            f"{to} holds other files", code="run-unwritable", hint="name a new folder; nothing is written over"
        )
    run = Run.create(target.parent)
    inputs = {"data": section.model_dump(mode="json"), "not_in": list(choices.not_in), "lint": lint}
    stage = run.stage(target.name, inputs)
    summary = prepare(section, stage.begin(), choices)
    stage.finish(summary, inputs)
    _show(summary)
    console.say(f"report: {to / 'report.html'}")
    console.json_line(
        {
            "folder": str(to),
            "counts": summary["counts"],
            "unreadable": summary["unreadable"],
            "seconds": summary["seconds"],
        }
    )


@data.command("show")
def show_(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_DATA", help="A run, a file or folder of conversations, or `sample`.")
    ],
    name: Annotated[
        str | None, typer.Option("--recipe", help="Recipe whose base and prompt to use. Default: the run's, or laptop.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many conversations to print.")] = 3,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override one setting, e.g. --set prompt.context=512.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
) -> None:
    """Print training conversations as the model sees them: what it learns painted, control tokens visible.

    Prints people's words, to this terminal only. The counts are of all conversations, not only of those printed.

    \b
    Examples:
      warmline data show sample -n 1
      warmline data show first
      warmline data show counsel.csv --recipe my.yaml --set base.model=./Qwen3-0.6B
    """
    from warmline import recipe
    from warmline.corpus import read
    from warmline.model import load
    from warmline.model.template import Template
    from warmline.model.texts import encode_all, spelt
    from warmline.runs import Run

    is_run = any((folder / "recipe.yaml").exists() for folder in (runs / source, Path(source)))
    run = Run.open(source, runs) if is_run else None
    chosen = recipe.load(name or (str(run.folder / "recipe.yaml") if run else "laptop"), tuple(settings or ()))
    base = chosen.base
    if run:
        run.manifest("data")
        source = str(run.folder / "data" / "train.jsonl")
        if base.model == "new":
            base = base.model_copy(update={"model": str(run.folder / "base")})
    elif (prepared := Path(source) / "train.jsonl").exists():
        source = str(prepared)
    template = Template.of(load.load_tokenizer(base), chosen.prompt)
    conversations = list(read.read(source, columns=chosen.data.columns, format=chosen.data.format))
    texts = encode_all(conversations, template, chosen.prompt)
    for conversation in conversations[:count]:
        mine = [text for text in texts.encoded if text.owner == conversation.id]
        console.heading(conversation.id)
        for number, text in enumerate(mine, 1):
            part = f"part {number} of {len(mine)}: " if len(mine) > 1 else ""
            console.say(f"{part}{len(text):,} tokens, {text.targets:,} learnt")
            console.painted((piece.text, piece.learnt, piece.control) for piece in spelt(text, template))
        if not mine:
            console.say(f"left out: longer than {chosen.prompt.context:,} tokens, or without a reply")
    console.heading(f"{base.model}, template `{template.kind}`")
    found = texts.summary()
    console.table("all conversations", [key.replace("_", " ") for key in found], [list(found.values())])
    console.json_line({"base": base.model, "template": template.kind, **found})


@data.command("augment")
def augment_(
    folder: Annotated[Path, typer.Argument(help="Folder made by `data prepare`.")],
    model: Annotated[
        str,
        typer.Option("--model", help="Who writes: a folder or hub id, loaded here, or with --server its name there."),
    ],
    server: Annotated[
        str | None, typer.Option("--server", help="OpenAI-compatible server, e.g. http://localhost:8000/v1.")
    ] = None,
    precision: Annotated[
        Literal["nf4", "int8", "bf16", "fp32"], typer.Option("--load", help="Precision of a model loaded here.")
    ] = "nf4",
    kinds: Annotated[
        str, typer.Option("--kinds", help="What to make: paraphrase, persona, follow-up; with commas.")
    ] = "paraphrase",
    each: Annotated[int, typer.Option("--each", min=1, help="How many of each kind for a conversation.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", help="Requests at most.")] = None,
    per_minute: Annotated[float, typer.Option("--per-minute", min=0.1, help="Requests in a minute at most.")] = 60,
    price_in: Annotated[float, typer.Option("--price-in", help="Price of a million prompt tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option("--price-out", help="Price of a million answer tokens.")] = 0.0,
    budget: Annotated[float | None, typer.Option("--budget", help="Stop when so much is spent.")] = None,
) -> None:
    """Make more training conversations with a language model, marked synthetic. Validation and test stay untouched.

    A model loaded here keeps the conversations on this machine. A server gets them: name one you trust with them.
    Stopped, it goes on where it was.

    \b
    Examples:
      warmline data augment data/ --model ./Qwen3-4B --load nf4
      warmline data augment data/ --server http://localhost:8000/v1 --model qwen --kinds paraphrase,follow-up
    """
    from typing import get_args

    from warmline.corpus import augment

    chosen: list[augment.Kind] = []
    for kind in kinds.split(","):
        if kind.strip() not in get_args(augment.Kind):
            raise DataError(
                f"--kinds {kind.strip()} is not known", code="usage", hint=f"known: {', '.join(get_args(augment.Kind))}"
            )
        chosen.append(kind.strip())  # type: ignore[arg-type]
    writer = augment.Server(server, model, per_minute=per_minute) if server else _writer(model, precision)
    spent = augment.Spent(price_in=price_in, price_out=price_out)
    result = augment.augment_folder(folder, writer, kinds=chosen, each=each, limit=limit, spent=spent, budget=budget)
    console.say(f"{result['made']:,} new conversations: {folder / 'synthetic.jsonl'}; train on it as one more source")
    console.json_line(result)


def _writer(model: str, precision: str) -> Writer:
    """A model loaded in this process. What is too long for it is answered by nothing, and so not taken."""
    from warmline import recipe
    from warmline.corpus.augment import Written
    from warmline.engine.base import Call, Options
    from warmline.engine.local import LocalEngine

    chosen = {"name": "writer", "base": {"model": model, "load": precision}, "prompt": {"context": 4096}}
    engine = LocalEngine.open(recipe.parse(chosen), None, "writer")
    options = Options(max_tokens=1024, temperature=0.8, top_p=0.95, repetition_penalty=1.0)

    def write(messages: Sequence[Message]) -> Written:
        if not engine.fits(list(messages), 64):
            return Written("")
        call = Call(messages, options)
        text = "".join(engine.reply(call))
        return Written(text, call.usage.prompt_tokens, call.usage.completion_tokens)

    return write


def _show(summary: dict[str, object]) -> None:
    counts, rejects = summary["counts"], summary["rejects"]
    assert isinstance(counts, dict)
    assert isinstance(rejects, dict)
    names = {
        "read": "read",
        "clean": "after cleaning",
        "unseen": "after --not-in",
        "anonymise": "anonymised",
        "lint": "after lint",
        "dedupe": "without copies",
    }
    console.table(
        "conversations",
        ["stage", "left", "left out because"],
        [
            [label, counts[stage], ", ".join(f"{why} {n:,}" for why, n in rejects.get(stage, {}).items())]
            for stage, label in names.items()
        ],
    )
    unread = ", ".join(f"{why} {n:,}" for why, n in rejects.get("read", {}).items())
    if unread:
        console.warn(f"records that could not be read: {unread}; see rejected.jsonl")
    console.say(f"train {counts['train']:,} · validation {counts['val']:,} · test {counts['test']:,}")


def anonymise(
    file: Annotated[Path, typer.Argument(help="Text or JSONL file; `-` reads standard input.")],
    format: Annotated[
        Literal["text", "jsonl"],
        typer.Option("--format", help='text: every line is a text. jsonl: {"text"} or messages.'),
    ] = "text",
    surrogates: Annotated[
        str, typer.Option(help="Secret key: stand-in names instead of placeholders.", envvar="WARMLINE_SURROGATES")
    ] = "",
    policy: Annotated[
        Literal["strict", "standard"], typer.Option(help="strict also replaces every age, month and year.")
    ] = "standard",
    whole: Annotated[bool, typer.Option("--whole", help="Take the whole file for one text.")] = False,
) -> None:
    """Mask what identifies people: one JSON object a line with the masked text and the spans found.

    Nothing leaves this machine. Spans are character offsets into the input.

    \b
    Example:
      warmline anonymise notes.txt
    """
    from warmline.corpus import anonymise as engine

    for line in engine.file_lines(file, format, surrogates=surrogates, policy=policy, whole=whole):
        console.json_line(line)


def register(app: typer.Typer) -> None:
    app.add_typer(data, name="data")
    app.command()(anonymise)
