"""Sources to splits: read, clean, anonymise, lint, dedupe, split. The order of the stages lives here and nowhere else.

    sources ─read─► parts of 500 ─clean, hold back what must stay unseen, anonymise, lint, fingerprint─► .work/part-…
    fingerprints ─copies, ties─► groups ─assign─► train.jsonl  val.jsonl  test.jsonl  rejected.jsonl

Texts are only ever in one part at a time; of the rest, some hundred bytes of numbers are kept for every conversation.
A part that is on the disk is not made again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from warmline import console, recipe, runs
from warmline.corpus import canary, clean, dedupe, split
from warmline.corpus import lint as linting
from warmline.corpus.anonymise import masking
from warmline.corpus.read import Inspection, OnReject, Reject, conversations, files_of, inspect, is_hub_id, stop
from warmline.errors import DataError
from warmline.messages import Conversation

PART = 500
_MANY_BYTES = 24 << 20
"""Input from which on a second process is worth its start."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What a run can choose beyond the recipe's data section."""

    lint: linting.Action = "drop"
    """What happens to a conversation with something that must not be learnt."""
    dedupe: bool = True
    """Drop copies. Ties are kept in any case: near copies never stand on two sides of a split."""
    not_in: tuple[str, ...] = ()
    """Sources, such as evaluation sets, whose texts must not be in the result."""
    on_error: Literal["skip", "stop"] = "skip"
    """Go on without records that cannot be read, or stop at the first."""
    workers: int = 0
    """Processes. 0: as many as there are cores, for large input."""
    surrogates: str = ""
    """Key for stand-in names instead of placeholders; empty for placeholders."""


@dataclass(slots=True)
class PartResult:
    """What one part came to; the texts themselves are on the disk."""

    read: int = 0
    kept: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Counters by kind: repairs, pii, lint, and rejects by `stage:reason`."""
    themes: list[str] = field(default_factory=list)
    """The themes that occur; `ABOUT` points into it."""


ABOUT = np.dtype(
    [("id", "u8"), ("group", "u8"), ("theme", "u4"), ("reply_words", "u4"), ("prose", "?"), ("synthetic", "?")]
)
"""What is kept of every conversation beside its fingerprint; id and group as hashes, 0 for no group."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What a worker needs to know."""

    folder: str
    language: str
    anonymise: bool
    lint: linting.Action
    surrogates: str
    unseen: dedupe.Unseen | None


def prepare(section: recipe.Data, folder: Path, choices: Choices = Choices()) -> dict[str, Any]:
    """Make `train.jsonl`, `val.jsonl`, `test.jsonl`, `rejected.jsonl`, `card.md` and `report.html` in `folder`.

    Returns the summary that goes into the manifest. What is unfinished stays in `folder/.work` and is used again by the
    next call with the same settings.

    Raises:
        DataError: a source is missing or in no known shape, a licence is unknown and not stated, nothing usable is
            left, or it is too little to be divided.
    """
    began = time.monotonic()
    inspections, absent = _inspect_all(section, choices)
    _require_licences(inspections, section.licence)
    work = folder / ".work"
    key = runs.fingerprint([section.model_dump(mode="json"), asdict(choices) | {"workers": 0}, _stamps(inspections)])
    _begin(work, key)

    read_rejects: list[Reject] = list(absent)
    on_reject: OnReject = stop if choices.on_error == "stop" else read_rejects.append
    unseen = _unseen(choices.not_in, section) if choices.not_in else None
    task = _Work(str(work), section.language, section.anonymise, choices.lint, choices.surrogates, unseen)
    stream = itertools.islice(_all(inspections, section, on_reject), section.limit)
    size = sum(one.bytes for one in inspections)
    results = _parts(stream, task, _workers(choices.workers, size), _expected(inspections, section.limit))
    read = sum(result.read for result in results)
    kept = sum(result.kept for result in results)
    if kept == 0:
        raise _empty(read, read_rejects, results, inspections)
    console.say(f"read {read:,} conversations, {kept:,} usable; looking for copies")
    summary = _divide(section, choices, folder, work, results, read_rejects)
    summary["sources"] = [_ledger_row(one) for one in inspections]
    summary["licences"] = sorted({one.licence or "unknown" for one in inspections})
    summary["settings"] = {"data": section.model_dump(mode="json"), **asdict(choices)}
    summary["settings"].pop("surrogates")
    summary["seconds"] = round(time.monotonic() - began, 1)
    from warmline.corpus import card, report

    runs.write_atomically(folder / "card.md", card.render(summary))
    runs.write_atomically(folder / "report.html", report.render(summary))
    shutil.rmtree(work, ignore_errors=True)
    return summary


def _inspect_all(section: recipe.Data, choices: Choices) -> tuple[list[Inspection], list[Reject]]:
    """Every file of every source; those that cannot be read at all become rejects, or stop the run."""
    found: list[Inspection] = []
    absent: list[Reject] = []
    for source in section.sources:
        if is_hub_id(source):
            from warmline.corpus import hub

            found.append(hub.inspect(source, section.format, section.columns, section.licence)[0])
            continue
        for path in files_of(source):
            one = inspect(path, format=section.format, columns=section.columns, licence=section.licence)
            if not one.problem:
                found.append(one)
                continue
            alone = len(section.sources) == 1 and Path(source).expanduser().is_file()
            if alone or choices.on_error == "stop":
                raise DataError(
                    one.problem,
                    code="data-empty" if one.reason in ("empty-file", "no-record") else "data-format",
                    where=str(path),
                    hint="say which it is: --format NAME, or name the columns: --columns question=...,answer=...",
                )
            absent.append(Reject(path.stem, one.source, None, None, "read", one.reason))
    return found, absent


def _require_licences(found: Sequence[Inspection], stated: str | None) -> None:
    nameless = [one.source for one in found if one.licence is None and one.format != "warmline"]
    nameless += [one.source for one in found if one.licence is None and one.format == "warmline" and not _own(one)]
    if nameless and not stated:
        listed = ", ".join(nameless[:5]) + (f" and {len(nameless) - 5} more" if len(nameless) > 5 else "")
        raise DataError(
            f"the licence of {listed} is not known",
            code="data-licence",
            hint="state it: --licence 'CC-BY-4.0' (data.licence in a recipe); --licence unknown goes on without one",
        )


def _own(one: Inspection) -> bool:
    """True if our own conversations say themselves what their licence is."""
    first = next(iter(conversations(one, on_reject=lambda reject: None)), None)
    return first is not None and first.provenance.licence != "unknown"


def _stamps(found: Sequence[Inspection]) -> list[Any]:
    return [
        [one.source, one.bytes, one.path.stat().st_mtime_ns if one.path is not None else 0, one.format, one.columns]
        for one in found
    ]


def _begin(work: Path, key: str) -> None:
    marker = work / "KEY"
    if work.exists() and not (marker.exists() and marker.read_text() == key):
        shutil.rmtree(work)
    runs.write_atomically(marker, key)


def _all(found: Sequence[Inspection], section: recipe.Data, on_reject: OnReject) -> Iterator[Conversation]:
    for one in found:
        if one.path is None:
            from warmline.corpus import hub

            yield from hub.conversations(one.source, one.format, dict(one.columns), one.licence, on_reject)
        else:
            yield from conversations(one, on_reject=on_reject)


def _unseen(sources: Sequence[str], section: recipe.Data) -> dedupe.Unseen:
    """The texts of the sources that training must not see; their own faults do not matter here."""

    def texts() -> Iterator[Conversation]:
        for source in sources:
            for path in files_of(source):
                one = inspect(path)
                if one.format is None:
                    continue
                for conversation in conversations(inspect_again(one), on_reject=lambda reject: None):
                    mended = tuple(type(m)(m.role, clean.mend(m.content, Counter())) for m in conversation.messages)
                    yield conversation.with_messages(mended)

    def inspect_again(one: Inspection) -> Inspection:
        from dataclasses import replace

        return replace(one, problem="")

    return dedupe.Unseen(texts())


def _workers(wanted: int, size: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted or (min(cores, 8) if size > _MANY_BYTES else 1)


def _batches(stream: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    stream = iter(stream)
    while batch := list(itertools.islice(stream, PART)):
        yield batch


def _parts(stream: Iterable[Conversation], task: _Work, workers: int, total: float | None) -> list[PartResult]:
    """All parts in order, made now or found on the disk. `total` is about how many conversations there are."""
    results: dict[int, PartResult] = {}
    began, made, read = time.monotonic(), 0, 0
    with console.progress("conversations", total) as bar:

        def done(number: int, result: PartResult, *, fresh: bool) -> None:
            nonlocal made, read
            results[number] = result
            read += result.read
            made += result.read if fresh else 0
            rate = made / max(time.monotonic() - began, 0.001)
            # The total is an estimate: never say that all is done while it is not.
            bar.to(read if total is None else min(read, 0.99 * total), f"{read:,} read, {rate:,.0f} rows/s")

        def waiting() -> Iterator[tuple[int, list[Conversation]]]:
            for number, batch in enumerate(_batches(stream)):
                there = _stored(task, number)
                if there is not None and there.read == len(batch):
                    done(number, there, fresh=False)
                else:
                    yield number, batch

        if workers == 1:
            for number, batch in waiting():
                done(number, _part(task, number, batch), fresh=True)
        else:
            _in_processes(waiting(), task, workers, done)
        if total is not None:
            bar.to(total)
    return [results[number] for number in sorted(results)]


def _expected(found: Sequence[Inspection], limit: int | None) -> float | None:
    """About how many conversations the files hold, from their sizes and first records, for the time that is left."""
    about = 0.0
    for one_file in found:
        if one_file.path is None or one_file.path.suffix in (".gz", ".zst", ".zstd", ".parquet"):
            return None
        first = list(itertools.islice(conversations(one_file, on_reject=lambda reject: None), 30))
        size = sum(len(json.dumps(c.to_json(), ensure_ascii=False).encode()) - 200 for c in first)
        about += one_file.bytes / max(size / max(len(first), 1), 40) if len(first) == 30 else len(first)
    return min(about, limit or about)


def _in_processes(waiting: Iterator[tuple[int, list[Conversation]]], task: _Work, workers: int, done: Any) -> None:
    import multiprocessing

    pending: dict[Future[PartResult], int] = {}
    with ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_set_task, initargs=(task,)
    ) as pool:
        try:
            for number, batch in waiting:
                pending[pool.submit(_part_of_process, number, batch)] = number
                # Two parts a process in hand keep everyone busy and memory flat.
                while len(pending) >= 2 * workers:
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        done(pending.pop(future), future.result(), fresh=True)
            for future, number in pending.items():
                done(number, future.result(), fresh=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_task: _Work | None = None


def _set_task(task: _Work) -> None:
    global _task
    _task = task


def _part_of_process(number: int, batch: list[Conversation]) -> PartResult:
    assert _task is not None
    return _part(_task, number, batch)


def _file(work: str | Path, number: int, what: str) -> Path:
    """A part's conversations (jsonl), rejects.jsonl, prints.npy, keys.npy, about.npy and, written last, its json."""
    return Path(work) / f"part-{number:06d}.{what}"


def _stored(task: _Work, number: int) -> PartResult | None:
    """A part that an earlier, interrupted run finished. Its numbers are written last."""
    numbers = _file(task.folder, number, "json")
    return PartResult(**runs.read_json(numbers)) if numbers.exists() else None


def _part(task: _Work, number: int, batch: Sequence[Conversation]) -> PartResult:
    result = PartResult(read=len(batch))
    counts = {"repairs": Counter[str](), "pii": Counter[str](), "lint": Counter[str](), "rejects": Counter[str]()}
    kept: list[Conversation] = []
    rejects: list[Reject] = []
    themes: dict[str, int] = {}
    about = np.zeros(len(batch), dtype=ABOUT)
    prints = np.zeros((len(batch), dedupe.WIDTH), dtype=np.uint8)
    keys: list[tuple[int, int]] = []
    for conversation in batch:
        done = one(conversation, task.language, task.anonymise, task.lint, task.surrogates, task.unseen, counts)
        if isinstance(done, str):
            stage, _, reason = done.partition(":")
            where = conversation.provenance
            rejects.append(Reject(conversation.id, where.source, where.row, None, stage, reason))
            counts["rejects"][done] += 1
            continue
        at = len(kept)
        kept.append(done)
        prose = done.labels.get("form") == "prose"
        about[at] = (
            split.hashed(done.id),
            split.hashed(done.group) if done.group else 0,
            themes.setdefault(done.theme, len(themes)),
            sum(len(m.content.split()) for m in done.messages if m.role == "assistant"),
            prose,
            done.labels.get("synthetic") == "yes",
        )
        if not prose:
            prints[at] = dedupe.fingerprint(done)
            keys += [(at, key) for key in dedupe.tie_keys(done)]
    result.kept = len(kept)
    result.counts = {kind: dict(counter) for kind, counter in counts.items()}
    result.themes = list(themes)
    runs.write_jsonl(_file(task.folder, number, "jsonl"), (c.to_json() for c in kept))
    runs.write_jsonl(_file(task.folder, number, "rejects.jsonl"), (r.to_json() for r in rejects))
    with runs.writing(Path(task.folder)):
        np.save(_file(task.folder, number, "prints.npy"), prints[: len(kept)])
        np.save(_file(task.folder, number, "about.npy"), about[: len(kept)])
        np.save(_file(task.folder, number, "keys.npy"), np.array(keys, dtype=np.uint64).reshape(-1, 2))
    runs.write_atomically(_file(task.folder, number, "json"), json.dumps(asdict(result)))
    return result


def one(
    conversation: Conversation,
    language: str,
    anonymise: bool,
    lint_action: linting.Action,
    surrogates: str,
    unseen: dedupe.Unseen | None,
    counts: dict[str, Counter[str]],
) -> Conversation | str:
    """One conversation through all stages that need no other: the result, or `stage:reason` why it is left out."""
    cleaned = clean.clean(conversation, wanted=language)
    counts["repairs"].update(cleaned.repairs)
    if cleaned.conversation is None:
        return f"clean:{cleaned.reason}"
    if unseen is not None and unseen.holds(cleaned.conversation):
        return "unseen:in-held-back-set"
    done = cleaned.conversation
    if anonymise:
        done = masking.mask_conversation(done, counts["pii"], surrogates=surrogates)
    settled, found = linting.settle(done, lint_action)
    counts["lint"].update({finding.rule for finding in found})
    return f"lint:{found[0].rule}" if settled is None else settled


def _divide(
    section: recipe.Data,
    choices: Choices,
    folder: Path,
    work: Path,
    results: Sequence[PartResult],
    read_rejects: Sequence[Reject],
) -> dict[str, Any]:
    """Copies, groups, splits; then the files, in the order of the sources."""
    kept = sum(result.kept for result in results)
    about = np.zeros(kept, dtype=ABOUT)
    prints = np.memmap(work / "prints.dat", dtype=np.uint8, mode="w+", shape=(kept, dedupe.WIDTH))
    theme_index: dict[str, int] = {}
    owners: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    hashes: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
    at = 0
    for number, result in enumerate(results):
        here = slice(at, at + result.kept)
        prints[here] = np.load(_file(work, number, "prints.npy"))
        about[here] = np.load(_file(work, number, "about.npy"))
        codes = np.array([theme_index.setdefault(theme, len(theme_index)) for theme in result.themes], dtype=np.uint32)
        about["theme"][here] = codes[about["theme"][here]] if result.kept else 0
        pairs = np.load(_file(work, number, "keys.npy"))
        owners.append(pairs[:, 0].astype(np.int64) + at)
        hashes.append(pairs[:, 1])
        at += result.kept
    themes = list(theme_index)
    tied = dedupe.ties(
        prints,
        np.where(about["group"] == 0, about["id"] ^ np.arange(kept, dtype=np.uint64), about["group"]),
        about["prose"],
        about["reply_words"].astype(np.int64),
        (np.concatenate(owners), np.concatenate(hashes)),
        drop=choices.dedupe,
    )
    stays = tied.copy_of < 0
    real = np.flatnonzero(stays & ~about["synthetic"])
    part_of = np.full(kept, -1, dtype=np.int8)
    part_of[real] = [
        split.PARTS.index(part)
        for part in split.assign(
            tied.group[real].tolist(),
            [themes[code] for code in about["theme"][real]],
            validation=section.validation,
            test=section.test,
            seed=section.seed,
        )
    ]
    # What a model made is for training only, and not where its original is held out.
    held = np.unique(tied.group[part_of > 0])
    part_of[stays & about["synthetic"] & ~np.isin(tied.group, held)] = 0
    twice = np.ones(kept, dtype=np.bool_)
    twice[np.unique(about["id"], return_index=True)[1]] = False
    measured = {part: Measure() for part in split.PARTS}
    counts = Counter(f"{reject.stage}:{reject.reason}" for reject in read_rejects)

    def rejects() -> Iterator[dict[str, Any]]:
        yield from (reject.to_json() for reject in read_rejects)
        for number in range(len(results)):
            yield from runs.read_jsonl(_file(work, number, "rejects.jsonl"))
        yield from runs.read_jsonl(work / "copies.jsonl")

    def divided(out: dict[split.Part, Any]) -> Iterator[dict[str, Any]]:
        """Write every conversation that stays to its part, and yield the rejects of the others."""
        position = -1
        for number in range(len(results)):
            for row in runs.read_jsonl(_file(work, number, "jsonl")):
                position += 1
                if part_of[position] < 0:
                    reason = "exact-copy" if tied.exact[position] else "near-copy"
                    reason = "synthetic-of-held-out" if stays[position] else reason
                    where = row["provenance"]
                    counts[f"dedupe:{reason}"] += 1
                    yield Reject(row["id"], where["source"], where["row"], None, "dedupe", reason).to_json()
                    continue
                part = split.PARTS[part_of[position]]
                row["group"] = row["group"] or f"g{int(tied.group[position])}"
                if twice[position]:
                    row["id"] = f"{row['id']}-{position}"
                out[part].write(json.dumps(row, ensure_ascii=False) + "\n")
                measured[part].add(row)

    with runs.writing(folder):
        with contextlib.ExitStack() as opened:
            out = {
                part: opened.enter_context(open(folder / f".{part}.jsonl.partial", "w", encoding="utf-8"))
                for part in split.PARTS
            }
            runs.write_jsonl(work / "copies.jsonl", divided(out))
            for planted in canary.canaries(section.canaries):
                out["train"].write(json.dumps(planted.to_json(), ensure_ascii=False) + "\n")
                measured["train"].add(planted.to_json())
        for part in split.PARTS:
            os.replace(folder / f".{part}.jsonl.partial", folder / f"{part}.jsonl")
    runs.write_jsonl(folder / "rejected.jsonl", rejects())
    for result in results:
        counts.update(result.counts["rejects"])
    return _summary(results, counts, measured, _leaks(folder), len(np.unique(tied.group[stays])))


def _conversations_in(path: Path) -> Iterator[Conversation]:
    return (Conversation.from_json(row) for row in runs.read_jsonl(path))


def _leaks(folder: Path) -> dict[str, Any]:
    """What stands in the training part and in another, told from the finished files."""
    train, *held = (_conversations_in(folder / f"{part}.jsonl") for part in split.PARTS)
    found = [asdict(one) for one in split.leaks_into(train, *held)]
    for one in found:
        one.pop("ids")
    return dict(zip(split.PARTS[1:], found, strict=True))


@dataclass(slots=True)
class Measure:
    """Running numbers of one split."""

    conversations: int = 0
    messages: int = 0
    words: int = 0
    reply_words: int = 0
    themes: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    """Conversations by words, in steps of 50."""
    languages: Counter[str] = field(default_factory=Counter)
    synthetic: int = 0

    def add(self, row: dict[str, Any]) -> None:
        words = [len(m["content"].split()) for m in row["messages"]]
        self.conversations += 1
        self.messages += len(words)
        self.words += sum(words)
        self.reply_words += sum(w for w, m in zip(words, row["messages"], strict=True) if m["role"] == "assistant")
        self.themes[row["theme"] or "none"] += 1
        self.turns[sum(m["role"] == "assistant" for m in row["messages"])] += 1
        self.lengths[sum(words) // 50 * 50] += 1
        self.synthetic += row["labels"].get("synthetic") == "yes"

    def summary(self) -> dict[str, Any]:
        return {
            "conversations": self.conversations,
            "messages": self.messages,
            "words": self.words,
            "reply_words": self.reply_words,
            "synthetic": self.synthetic,
            "themes": dict(self.themes.most_common()),
            "turns": {str(k): v for k, v in sorted(self.turns.items())},
            "lengths": {str(k): v for k, v in sorted(self.lengths.items())},
        }


def _summary(
    results: Sequence[PartResult],
    rejects: Counter[str],
    measured: dict[split.Part, Measure],
    leaks: dict[str, Any],
    groups: int,
) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {"repairs": Counter(), "pii": Counter(), "lint": Counter()}
    for result in results:
        for kind, counter in counts.items():
            counter.update(result.counts[kind])
    by_stage: dict[str, Counter[str]] = {}
    for reject, count in rejects.items():
        stage, _, reason = reject.partition(":")
        by_stage.setdefault(stage, Counter())[reason] += count
    read = sum(result.read for result in results)
    left = read
    flow: dict[str, int] = {"read": read}
    for stage in ("clean", "unseen", "anonymise", "lint", "dedupe"):
        left -= sum(by_stage.get(stage, Counter()).values())
        flow[stage] = left
    return {
        "counts": flow | {part: m.conversations for part, m in measured.items()},
        "unreadable": sum(by_stage.get("read", Counter()).values()),
        "rejects": {stage: dict(found.most_common()) for stage, found in by_stage.items()},
        **{kind: dict(found.most_common()) for kind, found in counts.items()},
        "splits": {part: m.summary() for part, m in measured.items()},
        "groups": groups,
        "leaks": leaks,
    }


def _ledger_row(found: Inspection) -> dict[str, Any]:
    return {
        "source": found.source,
        "format": found.format,
        "licence": found.licence or "unknown",
        "licence_from": found.licence_from,
        "consent": found.consent,
        "bytes": found.bytes,
        "sha256": runs.sha256(found.path) if found.path is not None else None,
    }


def _empty(
    read: int, faults: Sequence[Reject], results: Sequence[PartResult], found: Sequence[Inspection]
) -> DataError:
    reasons = Counter(reject.reason for reject in faults)
    for result in results:
        for reject, count in result.counts["rejects"].items():
            reasons[reject.partition(":")[2]] += count
    why = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(4))
    return DataError(
        f"no usable conversation is left of {read:,} read" + (f": {why}" if why else ""),
        code="data-empty",
        where=", ".join(one.source for one in found[:5]) or None,
        hint="`warmline data inspect FILE` shows what is seen in a file; --format and --columns say it by hand",
    )
