"""The whole chain: files in, splits, rejects, card and report out; interrupted, it goes on; nobody's words leak."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from warmline import recipe
from warmline.corpus import pipeline
from warmline.corpus.pipeline import Choices, prepare
from warmline.corpus.split import leaks
from warmline.errors import DataError
from warmline.messages import Conversation, Message, Provenance
from warmline.runs import read_jsonl

SHARED = Path(os.environ.get("WARMLINE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets are not on this machine")


def conversations(path: Path) -> list[Conversation]:
    return [Conversation.from_json(row) for row in read_jsonl(path)]


def write(path: Path, rows: list[Conversation]) -> Path:
    path.write_text("".join(json.dumps(c.to_json()) + "\n" for c in rows), "utf-8")
    return path


def talk(number: int, asked: str = "", said: str = "", **more) -> Conversation:
    return Conversation(
        f"t{number}",
        (
            Message(
                "user", asked or f"The week number {number} was long and the nights number {number * 7} longer still."
            ),
            Message("assistant", said or f"What was it about night {number * 7} that stayed with you?"),
        ),
        **({"theme": f"theme{number % 3}", "provenance": Provenance("t", "MIT")} | more),
    )


def test_the_sample(tmp_path: Path) -> None:
    summary = prepare(recipe.Data(), tmp_path)
    counts = summary["counts"]
    parts = {part: conversations(tmp_path / f"{part}.jsonl") for part in ("train", "val", "test")}
    assert {part: len(rows) for part, rows in parts.items()} == {p: counts[p] for p in parts}
    assert counts["read"] > 300
    assert counts["train"] > 0.75 * counts["read"]
    assert abs(counts["test"] - counts["dedupe"] / 10) <= 2
    assert not leaks(parts["train"], parts["val"]).any
    assert not leaks(parts["train"], parts["test"]).any
    assert len({c.id for rows in parts.values() for c in rows}) == counts["dedupe"]
    assert summary["licences"] == ["Apache-2.0"]
    assert (tmp_path / "report.html").read_text().count("<h2>") >= 8
    assert "license: apache-2.0" in (tmp_path / "card.md").read_text()
    assert not (tmp_path / ".work").exists()
    json.dumps(summary)


def test_the_same_input_gives_the_same_files_with_one_process_and_with_two(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [talk(n) for n in range(620)])
    digests = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        out.mkdir()
        prepare(recipe.Data(sources=(str(source),)), out, Choices(workers=workers))
        digests.append([(out / f"{p}.jsonl").read_bytes() for p in ("train", "val", "test", "rejected")])
    assert digests[0] == digests[1]


def test_interrupted_it_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PART", 50)
    source = write(tmp_path / "in.jsonl", [talk(n) for n in range(400)])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    section = recipe.Data(sources=(str(source),))
    prepare(section, whole)
    real, made = pipeline._part, []

    def part(task, number, batch):
        if number == 4 and not made.count(4):
            made.append(4)
            raise KeyboardInterrupt
        made.append(number)
        return real(task, number, batch)

    monkeypatch.setattr(pipeline, "_part", part)
    with pytest.raises(KeyboardInterrupt):
        prepare(section, broken)
    prepare(section, broken)
    assert made == [0, 1, 2, 3, 4, 4, 5, 6, 7], "finished parts are not made again"
    for name in ("train", "val", "test", "rejected"):
        assert (whole / f"{name}.jsonl").read_bytes() == (broken / f"{name}.jsonl").read_bytes()


def test_every_conversation_is_kept_or_has_a_reason_and_rejects_hold_no_words(tmp_path: Path) -> None:
    rows = [talk(n) for n in range(60)]
    rows += [talk(60 + n, asked=rows[n].messages[0].content, said=rows[n].messages[1].content) for n in range(5)]
    rows += [talk(70, said="You should just get over it, zebraquilt.")]
    rows += [talk(71, asked="...", said="zebraquilt")]
    rows += [
        talk(
            72,
            asked="Ich weiß nicht mehr weiter und meine Frau sagt, dass ich zebraquilt mit jemandem "
            "reden soll, weil es mir nicht gut geht",
        )
    ]
    source = write(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out"
    out.mkdir()
    summary = prepare(recipe.Data(sources=(str(source),), limit=None), out)
    rejected = list(read_jsonl(out / "rejected.jsonl"))
    assert len(rejected) + sum(summary["counts"][p] for p in ("train", "val", "test")) == len(rows)
    assert {(r["stage"], r["reason"]) for r in rejected} == {
        ("dedupe", "exact-copy"),
        ("lint", "dismissive"),
        ("clean", "one-sided"),
        ("clean", "language"),
    }
    for name in ("rejected.jsonl", "report.html", "card.md"):
        assert "zebraquilt" not in (out / name).read_text()
    assert "zebraquilt" not in json.dumps(summary)


def test_names_are_masked_unless_told_not_to(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        [talk(n, asked=f"My sister Priyanka shouted {n} times last night and the night before.") for n in range(30)],
    )
    for wanted in (True, False):
        out = tmp_path / f"out{wanted}"
        out.mkdir()
        summary = prepare(recipe.Data(sources=(str(source),), anonymise=wanted), out, Choices(dedupe=False))
        assert ("Priyanka" in (out / "train.jsonl").read_text()) != wanted
        assert bool(summary["pii"]) == wanted


def test_not_in_keeps_evaluation_sets_out(tmp_path: Path) -> None:
    rows = [talk(n) for n in range(40)]
    evaluation = write(tmp_path / "eval.jsonl", rows[:7])
    out = tmp_path / "out"
    out.mkdir()
    source = write(tmp_path / "in.jsonl", rows)
    summary = prepare(recipe.Data(sources=(str(source),)), out, Choices(not_in=(str(evaluation),)))
    assert summary["rejects"]["unseen"] == {"in-held-back-set": 7}


def test_synthetic_rows_are_for_training_only(tmp_path: Path) -> None:
    rows = [talk(n, group=f"g{n}") for n in range(60)]
    rows += [
        talk(
            100 + n,
            asked=f"Another way to put what happened in the {n} weeks since.",
            group=f"g{n}",
            labels={"synthetic": "yes"},
        )
        for n in range(60)
    ]
    out = tmp_path / "out"
    out.mkdir()
    summary = prepare(recipe.Data(sources=(str(write(tmp_path / "in.jsonl", rows)),)), out)
    assert summary["splits"]["val"]["synthetic"] == summary["splits"]["test"]["synthetic"] == 0
    assert summary["splits"]["train"]["synthetic"] == summary["counts"]["train"] / 2
    held = {c.group for p in ("val", "test") for c in conversations(out / f"{p}.jsonl")}
    assert not held & {c.group for c in conversations(out / "train.jsonl")}


def test_prose_passes_untouched(tmp_path: Path) -> None:
    path = tmp_path / "prose.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": f"The kettle boils. You just need to get over it. {n % 5}"}) + "\n" for n in range(50)
        )
    )
    out = tmp_path / "out"
    out.mkdir()
    summary = prepare(recipe.Data(sources=(str(path),), licence="MIT", anonymise=False), out)
    assert sum(summary["counts"][p] for p in ("train", "val", "test")) == 50


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sources": ("nowhere.csv",)}, "data-missing"),
        ({"sources": ("{tmp}/none.csv",)}, "data-licence"),
        ({"sources": ("{tmp}/none.csv",), "licence": "MIT", "language": "de"}, "data-empty"),
        ({"sources": ("{tmp}/none.csv",), "licence": "MIT", "format": "nonsense"}, "data-format"),
        (
            {"sources": ("{tmp}/none.csv",), "licence": "MIT", "columns": {"question": "nope", "answer": "a"}},
            "data-format",
        ),
        ({"sources": ("{tmp}/none.csv",), "licence": "MIT", "columns": {"frage": "q"}}, "data-format"),
        ({"sources": ("{tmp}/two.csv",), "licence": "MIT"}, "data-split"),
    ],
)
def test_errors(tmp_path: Path, change: dict, code: str) -> None:
    question = "Why do I lie awake at night and count the hours until it is time to get up for work"
    rows = [f"{question} {n},What is loudest in the hour number {n * 3}?\n" for n in range(30)]
    (tmp_path / "none.csv").write_text("question,answer\n" + "".join(rows))
    (tmp_path / "two.csv").write_text(
        "question,answer\n" + rows[0] + "What is the matter with the dog today,Tell me about him\n"
    )
    settings = {k: tuple(v.format(tmp=tmp_path) for v in vs) if k == "sources" else vs for k, vs in change.items()}
    with pytest.raises(DataError) as caught:
        prepare(recipe.Data(**settings), tmp_path)
    assert caught.value.code == code


@shared
@pytest.mark.slow
def test_all_public_folders_in_one_go(tmp_path: Path) -> None:
    sources = tuple(str(p) for p in sorted(SHARED.iterdir()) if p.is_dir())
    assert len(sources) == 10
    summary = prepare(recipe.Data(sources=sources, licence="unknown", anonymise=False), tmp_path, Choices(lint="off"))
    assert summary["counts"]["read"] > 7_000
    assert summary["rejects"]["dedupe"]["exact-copy"] > 1_000, "the two CounselChat scrapes share most answers"
    assert all(not found["same_conversation"] and not found["same_question"] for found in summary["leaks"].values())
    text = "".join((tmp_path / f"{p}.jsonl").read_text() for p in ("train", "val", "test"))
    assert "therapistInfo" not in text
    assert "Clinical Social Worker, " not in text


def test_commands(tmp_path: Path) -> None:
    from warmline.cli.main import app

    source = write(tmp_path / "in.jsonl", [talk(n) for n in range(40)])
    runner = CliRunner()
    seen = runner.invoke(app, ["data", "inspect", str(source)])
    assert seen.exit_code == 0
    assert json.loads(seen.stdout.splitlines()[0])["format"] == "warmline"
    out = tmp_path / "out"
    for _ in range(2):
        made = runner.invoke(app, ["data", "prepare", str(source), "-o", str(out)])
        assert made.exit_code == 0, made.output
        assert json.loads(made.stdout.splitlines()[-1])["counts"]["read"] == 40
        names = {p.name for p in out.iterdir()}
        assert names == {
            "train.jsonl",
            "val.jsonl",
            "test.jsonl",
            "rejected.jsonl",
            "card.md",
            "report.html",
            "MANIFEST.json",
        }
    notes = tmp_path / "notes.txt"
    notes.write_text("my sister priya called\n")
    masked = runner.invoke(app, ["anonymise", str(notes)])
    assert json.loads(masked.stdout)["text"] == "my sister [PERSON_1] called"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    refused = runner.invoke(app, ["data", "prepare", str(source), "-o", str(tmp_path / "full")])
    assert refused.exception is not None
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
