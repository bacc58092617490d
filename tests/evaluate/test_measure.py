"""The whole stage on a tiny run: what is measured, left out, kept after a stop, and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_run
from warmline import recipe
from warmline.corpus.canary import canaries
from warmline.errors import DataError, ModelError, WarmlineError
from warmline.evaluate import asking, batch, measure, safety, suites
from warmline.runs import Run, read_json, write_jsonl

Made = tuple[Run, recipe.Recipe]


def test_base_and_tuned_on_what_neither_has_seen(run: Made) -> None:
    stage, measured = measure.evaluate(*run)
    assert measured["leak"]["sets"]["test"] == {"items": 10, "contaminated": 1}
    assert [row["id"] for row in measured["leak"]["contaminated"]] == ["test-0"]
    assert measured["conversations"] == 9  # the contaminated one is not scored
    assert measured["asked"] == 9
    assert set(measured["models"]) == {"base", "tuned"}
    base, tuned = (measured["models"][name]["perplexity"]["value"] for name in ("base", "tuned"))
    assert measured["ratio"]["value"] == pytest.approx(tuned / base)
    assert base != tuned
    assert not measured["memorisation"]["alarm"]
    for name, metric in measured["metrics"].items():
        if name != "copied":  # replies as short as these have nothing to copy
            difference, systems = metric["differences"]["tuned − base"], metric["systems"]
            told = systems["tuned"]["value"] - systems["base"]["value"]
            assert difference["value"] == pytest.approx(told), name
    for name in ("report.html", "report.md", "evidence.md", "model-card.md", "measured.json"):
        assert (stage.folder / name).stat().st_size > 500


def test_the_adapter_switched_off_is_the_base(run: Made, models: dict[str, Path]) -> None:
    """One loaded model answers for both; the base's part is that of a base loaded alone."""
    from warmline.engine.local import LocalEngine
    from warmline.evaluate import perplexity

    run_, settings = run
    stage, _ = measure.evaluate(run_, settings)
    alone = LocalEngine.open(settings, None, "alone")
    leaks = frozenset({"test-0"})
    task = asking.Task(settings, run_.folder / "data", run_.folder / "train", stage.folder, 24, leaks)
    encoded, _ = task.encoded(task.test, alone.template)
    expected = perplexity.surprise(alone.model, encoded)
    found = asking.surprise_of(read_json(stage.folder / "base" / "perplexity.json"))
    assert found.owners == expected.owners
    assert found.nats == pytest.approx(expected.nats, rel=1e-5)
    said = read_json(stage.folder / "base" / "answers.json")
    asked = task.questions(alone)
    again = batch.ask_all(alone, [q.messages for q in asked], task.options, task.seeds(len(asked)))
    assert [row["reply"] for row in said] == [row["reply"] for row in again]


def test_what_is_finished_is_not_done_again(run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = asking.ask_all

    def ask_all(*args: Any) -> list[dict[str, Any]]:
        asked.append("")
        if len(asked) == 3:  # after the first system's replies and answers
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(asking, "ask_all", ask_all)
    with pytest.raises(KeyboardInterrupt):
        measure.evaluate(*run)
    partial = run[0].folder / ".evaluation"
    kept = {p: p.read_text() for p in partial.rglob("*.json")}
    assert {p.name for p in kept} == {
        *("inputs.json", "suites.json", "leak.json", "perplexity.json", "replies.json", "answers.json")
    }
    stage, first = measure.evaluate(*run)
    assert {p.relative_to(partial): t for p, t in kept.items()} == {
        p.relative_to(partial): (stage.folder / p.relative_to(partial)).read_text() for p in kept
    }
    # without a stop: the same numbers
    monkeypatch.setattr(asking, "ask_all", real)
    again, settings = make_run(run[0].folder.parent / "again", run[1].base.model, prompt={"context": 200})
    _, second = measure.evaluate(again, settings)
    assert first == second


def test_a_finished_evaluation_is_kept(run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    measure.evaluate(*run)
    monkeypatch.setattr(measure, "_measure", lambda *_: pytest.fail("measured again"))
    measure.evaluate(*run)


def test_a_call_adds_to_what_was_measured_before(run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites, forms and items come one after the other; nothing that stands is asked again, nothing is dropped."""
    made, settings = run
    asked: list[int] = []
    real = batch.ask_all

    def ask_all(engine: Any, prompts: Any, *rest: Any) -> list[dict[str, Any]]:
        asked.append(len(prompts))
        return real(engine, prompts, *rest)

    monkeypatch.setattr(asking, "ask_all", ask_all)
    monkeypatch.setattr(safety, "ask_all", ask_all)
    few = [replace(suite, items=suite.items[:3]) for suite in suites.chosen(["human", "methods"])]
    measure.evaluate(made, settings, items=4, suites=few[:1])
    assert asked == [2, 4, 4, 3] * 2  # replies, answers, memory, one suite; base and tuned
    asked.clear()
    _, both = measure.evaluate(made, settings, suites=few[1:])
    assert asked == [3] * 2
    assert both["asked"] == 4
    assert list(both["safety"]["suites"]) == ["human", "methods"]
    asked.clear()
    stage, same = measure.evaluate(made, settings)  # none asked for: none lost
    assert asked == []
    assert same == both
    changed = [replace(few[0], items=suites.chosen(["human"])[0].items[3:6])]
    _, other = measure.evaluate(made, settings, items=5, suites=changed)
    assert asked == [5, 5, 3] * 2
    assert other["safety"]["gate"]["pairs"]["tuned − base"]["items"] == 6
    rows = read_json(stage.folder / "tuned" / "safety-human.json")["rows"]
    assert [row["id"] for row in rows] == [item.id for item in changed[0].items]


def test_a_stopped_call_serves_one_that_asks_for_something_else(run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = asking.ask_all, []

    def ask_all(engine: Any, prompts: Any, *rest: Any) -> list[dict[str, Any]]:
        asked.append(len(prompts))
        if len(asked) == 6:  # the base and the tuned model's replies are done
            raise KeyboardInterrupt
        return real(engine, prompts, *rest)

    monkeypatch.setattr(asking, "ask_all", ask_all)
    with pytest.raises(KeyboardInterrupt):
        measure.evaluate(*run, items=4)
    asked[:] = [0] * 10
    _, measured = measure.evaluate(*run, items=5)
    assert asked[10:] == [5, 5, 5, 5]  # answers and memory of both; no perplexity, no replies
    assert measured["asked"] == 5


def test_html_stands_alone_and_leads_with_the_leak(run: Made) -> None:
    stage, _ = measure.evaluate(*run)
    page = (stage.folder / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    first = page[page.index("<main>") : page.index("perplexity")]
    assert "Leak check" in first
    assert "1 of 10 items" in first
    assert "Memorisation" in first
    text = (stage.folder / "report.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    table = [line.count("|") for line in rows if "tuned − base" in line or "open question" in line]
    assert len(table) == 2
    assert len(set(table)) == 1


def test_cards_come_from_the_files(run: Made) -> None:
    import yaml

    stage, measured = measure.evaluate(*run)
    card = (stage.folder / "model-card.md").read_text("utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license_name"] == "unknown AND MIT"
    value = head["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == measured["models"]["tuned"]["perplexity"]["value"]
    from huggingface_hub import ModelCardData

    assert ModelCardData(**{k: v for k, v in head.items() if k != "model-index"}).library_name == "peft"
    evidence = (stage.folder / "evidence.md").read_text("utf-8")
    for heading in ("Intended use", "Foreseeable harms", "Training data", "Tests run", "Known failures", "Sign-off"):
        assert f"## {heading}" in evidence
    assert "Safety against the base was not measured" in evidence
    assert str(run[0].folder) not in evidence + card


def test_many_passes_raise_the_alarm(models: dict[str, Path], tmp_path: Path) -> None:
    made = make_run(tmp_path / "runs" / "many", models["llama"], epochs=116.0)
    stage, measured = measure.evaluate(*made)
    assert measured["memorisation"]["alarm"]
    assert "Memorisation alarm" in (stage.folder / "report.html").read_text("utf-8")
    assert "Memorisation: each of 13" in (stage.folder / "evidence.md").read_text("utf-8")


def test_planted_secrets_are_probed_and_scored_by_no_other_number(run: Made) -> None:
    """Random weights know none of them: no alarm, and neither training nor test items are other than without."""
    made, settings = run
    rows = [json.loads(line) for line in (made.folder / "data" / "train.jsonl").read_text().splitlines()]
    write_jsonl(made.folder / "data" / "train.jsonl", [*rows, *(c.to_json() for c in canaries(8))])
    stage, measured = measure.evaluate(made, settings, items=3)
    found = measured["memorisation"]["canaries"]
    assert found["tuned"]["n"] == 8
    assert found["tuned"]["value"] < 3.0
    assert not measured["memorisation"]["alarm"]
    memory = read_json(stage.folder / "tuned" / "memory.json")
    assert not [owner for owner in memory["surprise"]["owners"] if owner.startswith("canary")]
    assert "8 planted secrets" in (stage.folder / "report.html").read_text("utf-8")


def test_nothing_left_after_the_leak_check(run: Made) -> None:
    made, settings = run
    rows = [json.loads(line) for line in (made.folder / "data" / "test.jsonl").read_text().splitlines()]
    write_jsonl(made.folder / "data" / "train.jsonl", rows)
    with pytest.raises(DataError, match="stands in the training split"):
        measure.evaluate(made, settings)


def test_no_test_split(run: Made) -> None:
    write_jsonl(run[0].folder / "data" / "test.jsonl", [])
    with pytest.raises(DataError, match="no test split"):
        measure.evaluate(*run)


def test_an_adapter_of_another_base(run: Made, models: dict[str, Path]) -> None:
    made, settings = run
    other = settings.model_copy(update={"base": settings.base.model_copy(update={"model": str(models["qwen3"])})})
    with pytest.raises(ModelError, match="another state"):
        measure.evaluate(made, other)


def test_forms_are_named(run: Made) -> None:
    made, settings = run
    assert measure.chosen_forms(made, settings, ["auto"]) == ["fp32", "bf16", "int8", "nf4"]
    assert measure.chosen_forms(made, settings, ["none"]) == []
    with pytest.raises(WarmlineError, match="gguf-q8_0"):
        measure.chosen_forms(made, settings, ["gguf-q8_0"])
