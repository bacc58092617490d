"""Read counselling data of any known shape from files, folders, the sample corpus or a hub into `Conversation`s.

Detects what a file is, says so before anything runs, and notes where every conversation came from. Cleans nothing.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from warmline import runs
from warmline.corpus import rows as files
from warmline.corpus.formats import (
    FORMATS,
    Draft,
    Format,
    Sample,
    question_answer_columns,
    to_messages,
    utterance_columns,
)
from warmline.corpus.rows import Container, Fault, Row, Unreadable
from warmline.errors import DataError
from warmline.messages import Conversation, Provenance

SAMPLE = resources.files("warmline") / "sample" / "conversations.jsonl"
SAMPLE_LICENCE = "Apache-2.0"
SURE = 50
"""A shape is taken without being named when it fits at least so well."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A record or conversation that is left out: where it stands and why, never what it says."""

    id: str
    source: str
    row: int | None
    line: int | None
    stage: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


OnReject = Callable[[Reject], None]


def stop(reject: Reject) -> None:
    """End the reading at the first record that cannot be used."""
    at = f"{reject.source}:{reject.line}" if reject.line else reject.source
    raise DataError(
        f"row {reject.row} of {reject.source} cannot be used: {reject.reason}",
        code="data-row",
        where=at,
        hint="mend the row, or go on without it with --on-error skip",
    )


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is taken for, before anything is read from it in earnest."""

    source: str
    """File name with its folder, as it goes into provenance."""
    path: Path | None
    container: str
    format: str | None
    """None when no known shape fits."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column is read as what, for tables."""
    names: tuple[str, ...] = ()
    """Column or key names, those that could be somebody's words left out."""
    licence: str | None = None
    licence_from: str = ""
    consent: str = "as published"
    bytes: int = 0
    fits: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    """Why the file cannot be read, in words for a person; empty when it can."""
    reason: str = ""
    """The same as a short code, for `rejected.jsonl`."""


@functools.cache
def known() -> dict[str, Any]:
    """The table of public data sets whose licence is known."""
    table: dict[str, Any] = yaml.safe_load((resources.files("warmline.corpus") / "known.yaml").read_text("utf-8"))
    return table


def files_of(source: str) -> list[Path]:
    """The data files of a source: the file itself, or those below a folder in the order of their names.

    Raises:
        DataError: there is no such file or folder, or the folder holds no data file.
    """
    if source == "sample":
        return [Path(str(SAMPLE))]
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(
            f"{source} does not exist",
            code="data-missing",
            hint="name a file, a folder, a hub dataset id such as `owner/name`, or `sample`",
        )
    found = sorted(
        p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(files.SUFFIXES) and p.name[0] != "."
    )
    if not found:
        raise DataError(
            f"{source} holds no data file",
            code="data-missing",
            where=str(path),
            hint=f"data files end in {', '.join(files.SUFFIXES)}",
        )
    return found


def is_hub_id(source: str) -> bool:
    """True for `owner/name` when no such file or folder is here."""
    return bool(re.fullmatch(r"[\w-]+/[\w.-]+", source)) and not Path(source).expanduser().exists()


def _label(path: Path) -> str:
    return "sample" if str(path) == str(SAMPLE) else f"{path.resolve().parent.name}/{path.name}"


def _safe_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Column names for messages and pages. Without a heading line the first row is somebody's words."""
    return tuple(
        name if len(name) <= 40 and len(name.split()) <= 4 else f"column {index}" for index, name in enumerate(names, 1)
    )


def _sample(path: Path, container: Container, size: int = 40) -> Sample:
    with_rows = files.rows(path, container, lambda fault: None)
    try:
        return Sample(container, tuple(row.value for row in itertools.islice(with_rows, size)))
    finally:
        with_rows.close() if hasattr(with_rows, "close") else None


def _fit(sample: Sample, wanted: str | None, columns: Mapping[str, str]) -> tuple[str | None, dict[str, int]]:
    fits = {name: points for name, one in FORMATS.items() if (points := one.fits(sample)) > 0}
    if wanted is not None:
        return wanted, fits
    # Named columns say which reader is meant.
    for name, needed in (("utterances", {"session", "speaker"}), ("question-answer", {"question", "answer"})):
        if needed <= set(columns):
            return name, fits
    best = max(fits, key=lambda name: fits[name], default=None)
    return (best if best is not None and fits[best] >= SURE else None), fits


def _columns(name: str | None, sample: Sample, given: Mapping[str, str]) -> dict[str, str]:
    guess: dict[str, str] = {}
    if name == "question-answer":
        guess = question_answer_columns(sample)
    elif name == "utterances":
        guess = utterance_columns(sample)
    return guess | dict(given)


def inspect(
    path: Path, *, format: str | None = None, columns: Mapping[str, str] | None = None, licence: str | None = None
) -> Inspection:
    """Say what a file is: container, shape, columns, licence. Reads only its beginning (and its bytes for the hash).

    Raises:
        DataError: `format` names no known shape, or `columns` name something the shape has not.
    """
    given = dict(columns or {})
    _check_request(format, given)
    source, size = _label(path), path.stat().st_size
    empty = Inspection(source, path, "none", None, bytes=size)
    try:
        container = files.container_of(path)
    except DataError as error:
        return replace(empty, problem=error.what, reason="unknown-container")
    if container is None:
        return replace(empty, problem=f"{path.name} is empty", reason="empty-file")
    sample = _sample(path, container)
    name, fits = _fit(sample, format, given)
    if name is None and container in ("csv", "tsv", "yaml", "xml") and path.suffix.lower() in ("", ".txt", ".gz"):
        # Prose with commas in its first line is no table.
        container, sample = "text", _sample(path, "text")
        name, fits = _fit(sample, format, given)
    names = _safe_names(sample.names)
    found = replace(
        empty, container=container, format=name, columns=_columns(name, sample, given), names=names, fits=fits
    )
    found = _with_licence(found, licence)
    if found.problem:
        return found
    absent = [column for role, column in found.columns.items() if role in given and column not in sample.names]
    if sample.values and absent and container != "text" and sample.names:
        return replace(
            found,
            problem=f"{path.name} has no column {', '.join(f'`{c}`' for c in absent)}; it has {', '.join(names)}",
            reason="missing-column",
        )
    if not sample.values:
        return replace(found, problem=f"no record of {path.name} can be read", reason="no-record")
    if name is None:
        seen = f"; it has {', '.join(names)}" if names else ""
        return replace(found, problem=f"{path.name} is in no known shape{seen}", reason="unknown-format")
    if name == "question-answer" and not {"question", "answer"} <= set(found.columns):
        return replace(
            found,
            problem=f"{path.name} shows no question and answer column; it has {', '.join(names)}",
            reason="missing-column",
        )
    return found


def _check_request(format: str | None, columns: Mapping[str, str]) -> None:
    if format is not None and format not in FORMATS:
        raise DataError(
            f"`{format}` is no known format", code="data-format", hint=f"known formats: {', '.join(FORMATS)}"
        )
    roles = {role for one in FORMATS.values() for role in one.roles}
    if unknown := sorted(set(columns) - roles):
        raise DataError(
            f"--columns cannot map {', '.join(f'`{name}`' for name in unknown)}",
            code="data-format",
            hint=f"it maps {', '.join(sorted(roles))}, e.g. --columns question=Frage,answer=Antwort",
        )


def _with_licence(found: Inspection, stated: str | None) -> Inspection:
    table = known()
    if found.source == "sample":
        return replace(found, licence=SAMPLE_LICENCE, licence_from="part of Warmline", consent="written for Warmline")
    key = table["files"].get(runs.sha256(found.path)) if found.path is not None and found.bytes < 1 << 30 else None
    by = "the file's bytes" if key else "the file's shape"
    key = key or table["shapes"].get(found.format)
    if key:
        entry = table["sets"][key]
        if what := entry.get("instrument"):
            # Training on what a model will be judged by would make the judgement worthless.
            found = replace(found, problem=f"{found.source} is {what}, not conversations", reason="instrument")
        return replace(
            found, licence=entry["licence"], licence_from=f"{entry['title']}, known by {by}", consent=entry["consent"]
        )
    if stated:
        return replace(found, licence=stated, licence_from="stated by hand")
    return found


def _slug(source: str) -> str:
    """The beginning of the ids of a source's conversations. Holds nothing of its content."""
    plain = re.sub(r"(\.(csv|tsv|jsonl?|ndjson|parquet|xml|ya?ml|txt|gz|zstd?))+$", "", source.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "data"


def conversations(found: Inspection, *, on_reject: OnReject = stop) -> Iterator[Conversation]:
    """The conversations of an inspected file, in its order. Records that cannot be used go to `on_reject`.

    Raises:
        DataError: the file is in no known shape.
    """
    if found.problem or found.format is None or found.path is None:
        raise DataError(
            found.problem or f"{found.source} is in no known shape",
            code="data-format",
            where=str(found.path or found.source),
            hint="say which: --format NAME, or name the columns: --columns question=...,answer=...",
        )

    def faulty(fault: Fault) -> None:
        on_reject(
            Reject(
                f"{_slug(found.source)}-{fault.number}", found.source, fault.number, fault.line, "read", fault.reason
            )
        )

    records = files.rows(found.path, cast(Container, found.container), faulty)
    yield from _conversations(found, records, on_reject)


def _conversations(found: Inspection, records: Iterator[Row], on_reject: OnReject) -> Iterator[Conversation]:
    slug = _slug(found.source)
    origin = Provenance(found.source, found.licence or "unknown", None, found.consent)

    def refuse(row: Row, reason: str) -> None:
        on_reject(Reject(f"{slug}-{row.number}", found.source, row.number, row.line, "read", reason))

    last, again = -1, 0
    for row, draft in _drafts(FORMATS[str(found.format)], records, found.columns, refuse):
        # Several conversations of one record (an intent's patterns, a document's pairs) are numbered within it.
        again = again + 1 if row.number == last else 0
        last = row.number
        number = f"{row.number}.{again}" if again else str(row.number)
        if draft.whole is not None:
            kept = draft.whole
            if "provenance" not in row.value or kept.provenance == Provenance("unknown"):
                kept = replace(kept, provenance=replace(origin, row=row.number))
            elif kept.provenance.licence == "unknown" and found.licence:
                kept = replace(kept, provenance=replace(kept.provenance, licence=found.licence))
            yield kept
            continue
        yield Conversation(
            id=f"{slug}-{number}",
            messages=to_messages(draft),
            theme=draft.theme,
            group=f"{slug}:{draft.group}" if draft.group and not _shared_group(draft.group) else draft.group,
            labels=draft.labels,
            provenance=replace(origin, row=row.number),
        )


def _shared_group(group: str) -> bool:
    return group.startswith(("intent:", "medquad:"))


def _drafts(
    shape: Format, records: Iterator[Row], columns: Mapping[str, str], refuse: Callable[[Row, str], None]
) -> Iterator[tuple[Row, Draft]]:
    if shape.gather is not None:
        yield from shape.gather(records, columns, refuse)
        return
    assert shape.read is not None
    for row in records:
        try:
            yield row, shape.read(row.value, columns)
        except Unreadable as error:
            refuse(row, error.reason)


def read(
    source: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    licence: str | None = None,
    on_reject: OnReject = stop,
) -> Iterator[Conversation]:
    """Every conversation of a source: `sample`, a file, a folder or a hub dataset id.

    Without `on_reject` the first broken record ends the reading.

    Raises:
        DataError: the source does not exist, or is in no known shape.
    """
    if is_hub_id(source):
        from warmline.corpus import hub

        _check_request(format, columns or {})
        yield from hub.conversations(source, format, dict(columns or {}), licence, on_reject)
        return
    for path in files_of(source):
        found = inspect(path, format=format, columns=columns, licence=licence)
        if found.problem and Path(source).expanduser().is_dir():
            on_reject(Reject(_slug(found.source), found.source, None, None, "read", found.reason))
            continue
        yield from conversations(found, on_reject=on_reject)
