"""The llama.cpp engine: what comes from the cache, from a batch or from a moved cache is what a fresh one says."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.conftest import SYSTEM
from warmline.engine.base import Call, Options, common
from warmline.engine.llamacpp import LlamaCppEngine
from warmline.engine.sequences import moved
from warmline.engine.vocabulary import Vocabulary
from warmline.errors import EngineError, ModelError
from warmline.messages import Message
from warmline.model.template import Template

FAMILIES = ("llama", "falcon", "gemma", "gemma3", "qwen3")


def opened(models: dict[str, Path], gguf: dict[str, Path], family: str, **more: Any) -> LlamaCppEngine:
    template = Template(Vocabulary(models[family]), system=SYSTEM)
    return LlamaCppEngine.open(gguf[family], template, name=family, threads=1, **{"context": 400, **more})


@pytest.fixture(scope="module")
def engine(models: dict[str, Path], gguf: dict[str, Path]) -> Iterator[LlamaCppEngine]:
    engine = opened(models, gguf, "qwen3")
    yield engine
    engine.close()


def messages(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message("system", SYSTEM), *(Message(roles[n % 2], t) for n, t in enumerate(turns))]  # type: ignore[arg-type]


def say(engine: LlamaCppEngine, *turns: str, **options: Any) -> tuple[str, Call]:
    call = Call(messages(*turns), Options(**{"max_tokens": 12, "temperature": 0.9, "seed": 1, **options}))
    return "".join(engine.reply(call)), call


class Dictated:
    """Makes every reply the same dictated ids and keeps what the model expected at each: rounding may decide a draw
    between two words, but it does not move what is expected."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        self.shared, self.real = engine.shared, engine.shared._llama
        self.seen: dict[int, list[Any]] = {}
        self.calls: list[Call] = []
        self.draw = engine.shared._draw

    def __enter__(self) -> Dictated:
        self.shared._llama, self.shared._draw = self, self._noted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.shared._llama, self.shared._draw = self.real, self.draw  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _noted(self, job: Any) -> None:
        self.job = job
        self.draw(job)

    def llama_sampler_sample(self, sampler: Any, context: Any, row: int) -> int:
        logits = self.real.llama_get_logits_ith(context, row)
        expected = np.ctypeslib.as_array(logits, shape=(self.shared.tokens,)).copy()
        self.calls.append(self.job.call)  # kept, so that no other gets its id
        self.seen.setdefault(id(self.job.call), []).append(expected)
        return 40 + 7 * self.job.produced % 200

    def of(self, call: Call) -> Any:
        return np.stack(self.seen[id(call)])


def same(a: Any, b: Any) -> bool:
    """Equal but for 16-bit rounding, which on these models is about .004 where logits have a spread of .5."""
    return a.shape == b.shape and float(np.abs(a - b).max()) < 0.012


def empty(engine: LlamaCppEngine) -> None:
    shared = engine.shared
    for sequence in (*shared._heads.values(), *shared._sequences):
        shared._remove(sequence, 0)


def settled(engine: LlamaCppEngine) -> bool:
    """No reply is under way: a cancelled one is let go within a step."""
    for _ in range(200):
        if not engine.shared._jobs:
            return True
        threading.Event().wait(0.02)
    return False


# ---------------------------------------------------------------- the same words


@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_transformers_says(models: dict[str, Path], gguf: dict[str, Path], family: str) -> None:
    from warmline import recipe
    from warmline.engine.local import LocalEngine

    prompt = {"system": SYSTEM, "context": 400}
    settings = recipe.parse({"name": "x", "base": {"model": str(models[family]), "load": "fp32"}, "prompt": prompt})
    local = LocalEngine.open(settings, None, "x")
    engine = opened(models, gguf, family)
    greedy = {"max_tokens": 8, "temperature": 0.0, "repetition_penalty": 1.0}
    call = Call(messages("I cannot sleep."), Options(**greedy))
    expected = "".join(local.reply(call)).lstrip(" ")
    found, again = say(engine, "I cannot sleep.", **greedy)
    assert again.usage.prompt_tokens == call.usage.prompt_tokens
    assert found.rstrip("\ufffd")[:6] == expected.rstrip("\ufffd")[:6]
    engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_cache_as_from_nothing(models: dict[str, Path], gguf: dict[str, Path], family: str) -> None:
    engine = opened(models, gguf, family)
    turns = ("I cannot sleep.", "That is a long time.", "My mother says I work too much.")
    with Dictated(engine) as dictated:
        _, first = say(engine, *turns[:1])
        assert first.usage.cached_tokens >= len(engine._head), "the safety prompt was read before anybody came"
        _, warm = say(engine, *turns)
        # all but the last words, and the reply, which came back in other words than it was given
        assert warm.usage.prompt_tokens - warm.usage.cached_tokens < 60
        _, again = say(engine, *turns)
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        empty(engine)
        _, cold = say(engine, *turns)
        assert cold.usage.cached_tokens == 0
        _, other = say(engine, *(f"{turn} The kettle!" for turn in reversed(turns)))
    assert same(dictated.of(warm), dictated.of(cold))
    assert same(dictated.of(again), dictated.of(cold))
    assert not same(dictated.of(other), dictated.of(cold)), "what was said before matters"
    engine.close()


def together(engine: LlamaCppEngine, texts: list[str], **options: Any) -> list[Call]:
    """All texts at once, each from a thread of its own."""
    calls = [Call(messages(text), Options(**options)) for text in texts]
    threads = [threading.Thread(target=lambda c=c: "".join(engine.reply(c))) for c in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls


def test_eight_at_once_expect_what_each_expects_alone(engine: LlamaCppEngine) -> None:
    texts = [f"Number {n} cannot sleep." for n in range(8)]
    with Dictated(engine) as dictated:
        alone = [dictated.of(say(engine, text)[1]) for text in texts]
        empty(engine)
        say(engine, "hello")
        calls = together(engine, texts, max_tokens=12)
        assert all(same(dictated.of(call), expected) for call, expected in zip(calls, alone, strict=True))
    assert all(call.usage.cached_tokens >= len(engine._head) for call in calls), "one safety prompt for all"
    assert not same(alone[0], alone[1])


def test_one_joins_and_one_leaves_in_mid_flight(engine: LlamaCppEngine) -> None:
    with Dictated(engine) as dictated:
        alone = say(engine, "I cannot sleep.", max_tokens=40)[1]
        joined = say(engine, "The night bus.")[1]
        empty(engine)
        staying = Call(messages("I cannot sleep."), Options(max_tokens=40))
        reading = engine.reply(staying)
        next(reading)
        leaving = engine.reply(Call(messages("Another, who leaves."), Options(max_tokens=200)))
        next(leaving)
        late = say(engine, "The night bus.")[1]
        leaving.close()
        "".join(reading)
    assert same(dictated.of(staying), dictated.of(alone))
    assert same(dictated.of(late), dictated.of(joined))
    assert settled(engine)


def test_eight_at_once_while_people_come_and_go(engine: LlamaCppEngine) -> None:
    """Four of eight leave in mid-reply, and with each of them another one comes: nobody else notices."""
    texts = [f"Number {n} cannot sleep." for n in range(12)]
    with Dictated(engine) as dictated:
        alone = [dictated.of(say(engine, text, max_tokens=24)[1]) for text in texts]
        empty(engine)
        say(engine, "hello")
        calls = [Call(messages(text), Options(max_tokens=24)) for text in texts]

        def talk(number: int) -> None:
            leaves = number < 4
            for count, _ in enumerate(engine.shared.stream(
                engine.prompt(calls[number])[0], calls[number], limit=24, ends=frozenset(), quiet=engine._quiet,
                head=len(engine._head),
            )):  # fmt: skip
                if leaves and count == 5:
                    calls[number].cancel.set()
            if leaves:
                talk(number + 8)

        threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(4, 12):
            assert same(dictated.of(calls[number]), alone[number]), number
        for number in range(4):
            said = dictated.of(calls[number])
            assert 6 <= len(said) < 24, "gone at one of the next tokens"
            assert same(said, alone[number][: len(said)])
            assert calls[number].usage.stop_reason == "cancelled"
    assert all(call.usage.cached_tokens >= len(engine._head) for call in calls), "one safety prompt for all twelve"
    assert settled(engine)


def test_a_conversation_beyond_its_context_moves_its_cache(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3", context=360)
    other = ("The shift rota.", "That is a long time.", "It never stops.")
    with Dictated(engine) as dictated:
        before = say(engine, *other)[1]
        turns: list[str] = []
        left_out, most = 0, 0
        for turn in range(24):
            turns.append(f"I cannot sleep, night {turn}, and it worries me about work.")
            while not engine.fits(messages(*turns), 12):
                turns, left_out = turns[2:], left_out + 1
            _, call = say(engine, *turns)
            if turn:
                most = max(most, call.usage.prompt_tokens - call.usage.cached_tokens)
            turns.append("That is a long time to carry it alone.")
        after = say(engine, *other)[1]
    assert left_out > 5
    assert most < 90, "the prompt is some 350 tokens; what was read before stays, from the first turn to the last"
    assert after.usage.cached_tokens == after.usage.prompt_tokens - 1
    assert same(dictated.of(after), dictated.of(before)), "nobody else's cache has moved"
    engine.close()


def test_more_conversations_than_room(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3", at_once=1, context=380)
    texts = [f"Number {n} cannot sleep at night and it worries me about work, my mother says." for n in range(12)]
    with Dictated(engine) as dictated:
        alone = []
        for text in texts:
            empty(engine)
            alone.append(dictated.of(say(engine, text, max_tokens=40)[1]))
        calls = together(engine, texts, max_tokens=40)
        assert all(same(dictated.of(call), expected) for call, expected in zip(calls, alone, strict=True))
    engine.close()


# ---------------------------------------------------------------- options


def test_sampling_options_do_something(engine: LlamaCppEngine) -> None:
    def draw(**options: Any) -> str:
        return say(engine, "I cannot sleep.", **{"seed": None, **options})[0]

    assert draw(seed=3) == draw(seed=3)
    assert len({draw(seed=seed) for seed in range(6)}) > 1
    assert len({draw() for _ in range(6)}) > 1, "without a seed every reply is new"
    greedy = draw(temperature=0.0)
    assert greedy == draw(temperature=0.0, seed=5)
    assert draw(top_p=1e-6, seed=8) == greedy
    assert draw(temperature=1e-3, seed=8) == greedy
    assert draw(temperature=0.0, repetition_penalty=5.0) != draw(temperature=0.0, repetition_penalty=1.0)
    assert len({draw(temperature=2.0, top_p=1.0, seed=seed) for seed in range(6)}) == 6


def test_usage_and_limits(engine: LlamaCppEngine) -> None:
    _, call = say(engine, "I cannot sleep.", max_tokens=5, temperature=0.9, seed=1)
    assert call.usage.prompt_tokens == len(engine.template.encode(call.messages, reply=True))
    assert call.usage.completion_tokens <= 5
    assert (call.usage.stop_reason == "length") == (call.usage.completion_tokens == 5)
    endings = {
        say(engine, "hello", max_tokens=300, temperature=2.0, top_p=1.0, seed=s)[1].usage.stop_reason for s in range(8)
    }
    assert "stop" in endings, "the end-of-turn token ends a reply"


def test_a_stop_string_is_not_shown(engine: LlamaCppEngine) -> None:
    whole, _ = say(engine, "I cannot sleep.", max_tokens=40)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    text, call = say(engine, "I cannot sleep.", max_tokens=40, stop=(stop,))
    assert text == whole[: whole.index(stop)]
    assert call.usage.stop_reason == "stop"
    assert settled(engine)


def test_cancel_and_leaving(engine: LlamaCppEngine) -> None:
    call = Call(messages("I cannot sleep."), Options(max_tokens=200, temperature=0.0, repetition_penalty=1.0))
    for _ in engine.reply(call):
        call.cancel.set()
    assert call.usage.stop_reason == "cancelled"
    assert call.usage.completion_tokens < 200
    before = Call(messages("I cannot sleep."))
    before.cancel.set()
    assert "".join(engine.reply(before)) == ""
    assert before.usage.stop_reason == "cancelled"
    assert settled(engine)


def test_letters_of_many_bytes_are_never_torn(engine: LlamaCppEngine) -> None:
    pieces = [p for s in range(12) for p in engine.reply(Call(messages("疲れた"), Options(200, 2.0, 1.0, 1.0, s)))]
    assert not any("\udc80" <= c <= "\udcff" for piece in pieces for c in piece)
    assert not any(token in "".join(pieces) for token in ("<|im_start|>", "<|im_end|>", "<think>", "</think>"))


def test_what_does_not_fit_is_an_error(engine: LlamaCppEngine) -> None:
    with pytest.raises(EngineError) as caught:
        say(engine, "word " * 900)
    assert caught.value.code == "engine-failed"
    assert not engine.fits(messages("word " * 900), 10)


# ---------------------------------------------------------------- adapters


def test_the_adapter_goes_on_and_off(models: dict[str, Path], gguf: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from warmline.model.export.weights import write_lora
    from warmline.runs import read_json

    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(str(models["qwen3"]), dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(tmp_path / "adapter")
    write_lora(tmp_path / "adapter", tmp_path / "adapter.gguf", read_json(models["qwen3"] / "config.json"))
    plain, both = opened(models, gguf, "qwen3"), opened(models, gguf, "qwen3", adapter=tmp_path / "adapter.gguf")
    expected = say(plain, "I cannot sleep.")[0]
    on = say(both, "I cannot sleep.")[0]
    assert on != expected
    for _ in range(2):
        off, call = say(both, "I cannot sleep.", adapter=False)
        assert off == expected, "off is the base, to the word"
        assert say(both, "I cannot sleep.")[0] == on
    assert call.usage.cached_tokens == call.usage.prompt_tokens - 1, "each way keeps a cache of its own"
    found: list[tuple[bool, str]] = []

    def talk(adapter: bool) -> None:
        found.append((adapter, say(both, "I cannot sleep.", adapter=adapter)[0]))

    threads = [threading.Thread(target=talk, args=(n % 2 == 0,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([(False, expected)] * 4 + [(True, on)] * 4)
    room = both.shared._room
    together(both, [f"Number {n} cannot sleep." for n in range(6)], max_tokens=120)
    empty(both)
    assert both.shared._room > room
    assert say(both, "I cannot sleep.")[0] == on, "a cache that has grown keeps the adapter"
    plain.close()
    both.close()


def test_a_merged_model_has_no_base_to_ask(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3", merged=True)
    with pytest.raises(EngineError):
        say(engine, "I cannot sleep.", adapter=False)
    assert say(engine, "I cannot sleep.")[0]
    engine.close()


# ---------------------------------------------------------------- faults


def test_files_that_cannot_be_read(models: dict[str, Path], gguf: dict[str, Path], tmp_path: Path) -> None:
    template = Template(Vocabulary(models["qwen3"]), system=SYSTEM)
    whole = gguf["qwen3"].read_bytes()
    faults = {
        "missing": None,
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "text": b"no model at all",
        "unknown": whole.replace(b"qwen3", b"qwenX"),
    }
    for name, content in faults.items():
        path = tmp_path / f"{name}.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            LlamaCppEngine.open(path, template, name="x", context=200, threads=1)
        assert caught.value.code == "gguf-damaged", name
    path.write_bytes(b"no adapter")
    with pytest.raises(ModelError):
        LlamaCppEngine.open(gguf["qwen3"], template, name="x", context=200, adapter=path, threads=1)


def test_no_memory_for_it(models: dict[str, Path], gguf: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(ModelError) as caught:
        opened(models, gguf, "qwen3")
    assert caught.value.code == "fit-memory"


def test_a_failing_step_is_told_and_gone(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3")
    expected = say(engine, "I cannot sleep.")[0]
    real = engine.shared._llama

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: -3) if name == "llama_decode" else getattr(real, name)

    engine.shared._llama = Failing()
    with pytest.raises(EngineError):
        say(engine, "I cannot sleep.")
    engine.shared._llama = real
    assert say(engine, "I cannot sleep.")[0] == expected
    engine.close()


def test_closing_ends_replies_under_way(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3")
    call = Call(messages("I cannot sleep."), Options(max_tokens=300, temperature=0.0, repetition_penalty=1.0))
    reading = engine.reply(call)
    next(reading)
    engine.close()
    engine.close()
    "".join(reading)
    assert call.usage.stop_reason in ("cancelled", "length", "stop")
    with pytest.raises(EngineError):
        say(engine, "hello")


def test_a_program_may_end_in_mid_reply(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from warmline.engine.base import Call, Options\n"
        "from warmline.engine.llamacpp import LlamaCppEngine\n"
        "from warmline.engine.vocabulary import Vocabulary\n"
        "from warmline.messages import Message\n"
        "from warmline.model.template import Template\n"
        "template = Template(Vocabulary(Path(sys.argv[1])))\n"
        "engine = LlamaCppEngine.open(Path(sys.argv[2]), template, name='x', context=400)\n"
        "for _ in engine.reply(Call([Message('user', 'hello')], Options(max_tokens=300))): sys.exit(3)\n"
    )
    command = [sys.executable, "-c", code, str(models["qwen3"]), str(gguf["qwen3"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr[-500:]
    assert done.stderr == "", "llama.cpp's log stays off the terminal"


# ---------------------------------------------------------------- what stays of a cache

IDS = st.lists(st.integers(0, 3), max_size=30)


@given(IDS, IDS)
def test_common_is_the_longest_equal_beginning(a: list[int], b: list[int]) -> None:
    n = common(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


@given(IDS, IDS, st.integers(0, 30))
def test_moved_is_the_longest_that_stands_further_back(held: list[int], wanted: list[int], start: int) -> None:
    place, length = moved(held, wanted, start)
    assert held[place : place + length] == wanted[start : start + length]
    best = max((common(held[p:], wanted[start:]) for p in range(start + 1, len(held))), default=0)
    assert length == (best if start < len(wanted) else 0)
