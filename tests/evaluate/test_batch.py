"""Many prompts at once are what they would be alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from warmline import recipe
from warmline.engine.base import Call, Options
from warmline.engine.local import LocalEngine
from warmline.errors import EngineError
from warmline.evaluate import batch
from warmline.evaluate.asking import ask
from warmline.messages import Message

PROMPTS = [
    [Message("user", text)]
    for text in ("Hello.", "I cannot sleep at night and it worries me.", "My mother says I think too much. " * 3, "No?")
]
SEEDS = [3, 4, 5, 6]


@pytest.fixture(scope="module")
def engines(models: dict[str, Path]) -> dict[str, LocalEngine]:
    def opened(name: str) -> LocalEngine:
        base = {"model": str(models[name]), "load": "fp32"}
        return LocalEngine.open(recipe.parse({"name": name, "base": base, "prompt": {"context": 200}}), None, name)

    return {name: opened(name) for name in models}


@pytest.mark.parametrize("name", ["llama", "falcon", "gemma", "gemma3", "qwen3"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_likeliest_replies_are_those_of_one_at_a_time(
    engines: dict[str, LocalEngine], name: str, penalty: float
) -> None:
    options = Options(max_tokens=12, temperature=0, repetition_penalty=penalty)
    together = batch.ask_all(engines[name], PROMPTS, options, SEEDS)
    alone = [ask(engines[name], prompt, options) for prompt in PROMPTS]
    assert together == [{key: row[key] for key in ("reply", "stop", "tokens")} for row in alone]


@pytest.mark.parametrize("rows", [1, 3])
def test_the_company_changes_nothing(
    engines: dict[str, LocalEngine], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(max_tokens=12, temperature=0.9, top_p=0.95)
    whole = batch.ask_all(engines["llama"], PROMPTS, options, SEEDS)
    monkeypatch.setattr(batch.batches, "__defaults__", (rows,))
    assert batch.ask_all(engines["llama"], PROMPTS, options, SEEDS) == whole
    other = batch.ask_all(engines["llama"], PROMPTS, options, [9, *SEEDS[1:]])
    assert other[0] != whole[0]
    assert other[1:] == whole[1:]


def test_a_reply_ends_where_it_ends(engines: dict[str, LocalEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    """The third token of the first reply is made an end: others go on, nothing behind the end is shown."""
    engine = engines["llama"]
    options = Options(max_tokens=10, temperature=0, repetition_penalty=1.0)
    before = batch.ask_all(engine, PROMPTS, options, SEEDS)
    ids, _ = engine.prompt(Call(PROMPTS[0], options))
    with torch.inference_mode():
        said = engine.model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0, len(ids) :].tolist()
    end = said[2]
    monkeypatch.setattr(engine.template, "end_ids", (*engine.template.end_ids, end))
    after = batch.ask_all(engine, PROMPTS, options, SEEDS)
    assert after[0]["stop"] == "stop"
    assert after[0]["tokens"] == said.index(end) + 1
    assert before[0]["reply"].startswith(after[0]["reply"])
    alone = [ask(engine, prompt, options) for prompt in PROMPTS]
    assert [(r["stop"], r["tokens"]) for r in after] == [(r["stop"], r["tokens"]) for r in alone]


def test_what_is_drawn_has_the_models_distribution() -> None:
    """10,000 draws against temperature and top_p worked out by hand."""
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
    n = 10_000
    drawn = batch.Drawn(Options(temperature=0.8, top_p=0.9, repetition_penalty=1.0), range(n), [0] * n)
    found = drawn(torch.zeros(n, 1, dtype=torch.long), logits.repeat(n, 1)).bincount(minlength=5) / n
    expected = (logits / 0.8).softmax(-1)
    expected[3:] = 0  # the first three hold .97 of it, two only .86
    expected /= expected.sum()
    assert found.tolist() == pytest.approx(expected.tolist(), abs=0.015)


@pytest.mark.parametrize("top_p", [0.4, 0.9, 1.0])
def test_the_likeliest_few_decide_as_the_whole_vocabulary_does(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(1)) * 4
    options = Options(temperature=0.7, top_p=top_p, repetition_penalty=1.0)
    ids = torch.zeros(200, 1, dtype=torch.long)
    monkeypatch.setattr(batch, "LIKELIEST", 300)
    whole = batch.Drawn(options, range(200), [0] * 200)(ids, logits)
    monkeypatch.setattr(batch, "LIKELIEST", 60)
    assert batch.Drawn(options, range(200), [0] * 200)(ids, logits).equal(whole)
    assert len(set(whole.tolist())) > 50


def test_nearly_equal_models_draw_nearly_the_same() -> None:
    """The same number for both: replies differ where the models do, not where the dice would."""
    logits = torch.randn(500, 50, generator=torch.Generator().manual_seed(1)) * 2
    near = logits + 0.01 * torch.randn(500, 50, generator=torch.Generator().manual_seed(2))
    options = Options(temperature=1.0, top_p=1.0, repetition_penalty=1.0)
    ids = torch.zeros(500, 1, dtype=torch.long)
    picks = [batch.Drawn(options, range(500), [0] * 500)(ids, x) for x in (logits, near)]
    assert (picks[0] == picks[1]).float().mean() > 0.9


def test_half_the_batch_where_memory_is_short(engines: dict[str, LocalEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(max_tokens=6, temperature=0)
    whole = batch.ask_all(engines["llama"], PROMPTS, options, SEEDS)
    real, sizes = batch._generate, []

    def small(engine: object, asked: object, places: list[int], *rest: object) -> object:
        sizes.append(len(places))
        if len(places) > 1:
            raise torch.OutOfMemoryError
        return real(engine, asked, places, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "_generate", small)
    assert batch.ask_all(engines["llama"], PROMPTS, options, SEEDS) == whole
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_a_prompt_without_room(engines: dict[str, LocalEngine]) -> None:
    with pytest.raises(EngineError, match="the context holds"):
        batch.ask_all(engines["llama"], [[Message("user", "word " * 400)]], Options(), [1])


def test_no_prompts_no_replies(engines: dict[str, LocalEngine]) -> None:
    assert batch.ask_all(engines["llama"], [], replace(Options(), max_tokens=3), []) == []
