"""A cache that begins small and grows under replies says what one of full size says."""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_llamacpp import Dictated, empty, messages, opened, same, say, together
from warmline.engine.base import Call, Options
from warmline.engine.llamacpp import LlamaCppEngine
from warmline.engine.sequences import LIKELIEST, WORTH_SHIFTING, SharedContext, _Job
from warmline.errors import EngineError

TEXTS = [f"Number {n} cannot sleep at night and it worries me about work, my mother says." for n in range(8)]


@pytest.mark.parametrize("family", ["llama", "falcon", "gemma3", "qwen3"])
def test_replies_under_way_do_not_notice(models: dict[str, Path], gguf: dict[str, Path], family: str) -> None:
    engine = opened(models, gguf, family, context=512, at_once=8)
    assert engine.shared._room == 512, "one conversation's room to begin with"
    with Dictated(engine) as dictated:
        alone = []
        for text in TEXTS:
            alone.append(dictated.of(say(engine, text, max_tokens=120)[1]))
            empty(engine)
        assert engine.shared._room == 512
        staying = Call(messages("I was here first."), Options(max_tokens=150))
        reading = engine.reply(staying)
        next(reading)
        calls = together(engine, TEXTS, max_tokens=120)
        "".join(reading)
        assert engine.shared._room > 512
        assert all(same(dictated.of(call), expected) for call, expected in zip(calls, alone, strict=True))
        empty(engine)
        again = say(engine, "I was here first.", max_tokens=150)[1]
        assert same(dictated.of(staying), dictated.of(again))
    engine.close()


def test_what_was_kept_is_there_after_it_has_grown(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3", at_once=4)
    with Dictated(engine) as dictated:
        first = say(engine, "I cannot sleep.", max_tokens=30)[1]
        rooms = []
        for text in TEXTS:
            say(engine, text, max_tokens=30)
            rooms.append(engine.shared._room)
        again = say(engine, "I cannot sleep.", max_tokens=30)[1]
    assert rooms[0] < rooms[-1] <= max(engine.shared.cells, 1792)
    assert rooms == sorted(rooms)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert same(dictated.of(again), dictated.of(first))
    engine.close()


def test_what_a_window_let_go_is_not_taken_over(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    """Layers that look back over a window give up what lies behind it when others need the cells, and whoever begins
    with the same words as that conversation must not miss them."""
    engine = opened(models, gguf, "gemma3", context=512, at_once=8)
    shared = engine.shared
    with Dictated(engine) as dictated:
        cold = dictated.of(say(engine, "Number 1 cannot sleep, and nor can I.")[1])
        empty(engine)
        say(engine, "Number 1 cannot sleep at all.", max_tokens=120)
        holder = next(s for s in shared._sequences if s.ids)
        whole = len(holder.ids)
        with shared._wake:
            assert shared._grow(2000)
        say(engine, "A different beginning.", max_tokens=120)
        first = shared._llama.llama_memory_seq_pos_min(shared._memory, holder.number)
        assert 0 < first < whole == len(holder.ids), "nothing was given up: the test shows nothing"
        warm = say(engine, "Number 1 cannot sleep, and nor can I.")[1]
    assert same(dictated.of(warm), cold)
    assert warm.usage.cached_tokens >= len(engine._head), "what is still whole is taken"
    engine.close()


def test_it_waits_until_a_shift_is_done(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    """A conversation that loses its oldest turns shifts its cache; one that comes in the same moment makes it grow."""

    def talk(at_once: int, crowd: bool) -> tuple[Any, LlamaCppEngine]:
        engine = opened(models, gguf, "qwen3", context=512, at_once=at_once)
        turns = ["I cannot sleep, and it worries me about work.", "That is a long time to carry it alone."] * 3
        turns[0] = "Good evening, I have never done this before and hardly know where I should begin."
        later = [*turns[2:], "It is the same every night."]
        with Dictated(engine) as dictated:
            say(engine, *turns[:-1])
            shifting = waiting(engine, later, 12)
            jobs = [shifting, *(waiting(engine, [text], 200) for text in TEXTS[: 3 * crowd])]
            with engine.shared._wake:  # all are there when the next step begins
                engine.shared._waiting.extend(jobs)
                engine.shared._wake.notify()
            for job in jobs:
                while isinstance(job.out.get(timeout=60), int):
                    pass
        assert shifting.call.usage.cached_tokens > len(engine._head) + WORTH_SHIFTING, "it was shifted"
        return dictated.of(shifting.call), engine

    quiet, small = talk(1, crowd=False)
    crowded, grown = talk(8, crowd=True)
    assert grown.shared._room > small.shared._room
    assert same(quiet, crowded)
    small.close()
    grown.close()


def waiting(engine: LlamaCppEngine, turns: list[str], limit: int) -> _Job:
    """What `stream` makes of a call that never stops early."""
    call = Call(messages(*turns), Options(max_tokens=limit))
    return _Job(engine.prompt(call)[0], limit, frozenset(), engine._quiet, len(engine._head), call)


def aside(reading: Iterator[str]) -> threading.Thread:
    """Read a reply in a thread of its own, whatever becomes of it."""

    def read() -> None:
        with contextlib.suppress(EngineError):
            "".join(reading)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


class Instead:
    """llama.cpp with one function replaced."""

    def __init__(self, real: Any, name: str, function: Any) -> None:
        self.real, self.name, self.function = real, name, function

    def __getattr__(self, name: str) -> Any:
        return self.function if name == self.name else getattr(self.real, name)


def test_without_memory_it_stays_as_it_is(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3", at_once=8)
    shared, room = engine.shared, engine.shared._room
    real, asked = shared._llama.llama_init_from_model, []

    def init(model: Any, settings: Any) -> Any:
        asked.append(settings.n_ctx)
        return None if settings.n_ctx > room else real(model, settings)

    shared._llama = Instead(shared._llama, "llama_init_from_model", init)
    with Dictated(engine) as dictated:
        alone = say(engine, TEXTS[0], max_tokens=120)[1]
        calls = together(engine, TEXTS, max_tokens=120)
        assert same(dictated.of(calls[0]), dictated.of(alone))
    assert len(asked) == 2, "tried once, then waited for room as any full cache does"
    assert shared._room == room
    engine.close()


def test_a_cache_that_cannot_be_moved_is_begun_anew(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3", context=512, at_once=8)
    with Dictated(engine) as dictated:
        expected = dictated.of(say(engine, TEXTS[0])[1])
    real = engine.shared._llama
    # on a busy machine the first reply would be done before the others come, and nothing would have to be moved
    slow = Instead(real, "llama_decode", lambda *given: time.sleep(0.02) or real.llama_decode(*given))
    engine.shared._llama = slow
    reading = engine.reply(Call(messages("I was here first."), Options(max_tokens=200, temperature=0.0)))
    next(reading)
    engine.shared._llama = Instead(slow, "llama_state_set_data", lambda *_: 0)
    others = [aside(engine.reply(Call(messages(text), Options(max_tokens=200)))) for text in TEXTS[:2]]
    with pytest.raises(EngineError, match="moved"):
        "".join(reading)
    for other in others:
        other.join()
    engine.shared._llama = real
    with Dictated(engine) as dictated:
        assert same(dictated.of(say(engine, TEXTS[0])[1]), expected)
    engine.close()


def test_with_no_memory_at_all_every_reader_is_told(models: dict[str, Path], gguf: dict[str, Path]) -> None:
    engine = opened(models, gguf, "qwen3", context=512, at_once=8)
    engine.shared._llama = Instead(engine.shared._llama, "llama_init_from_model", lambda *_: None)
    jobs = [waiting(engine, [text], 200) for text in TEXTS[:4]]
    with engine.shared._wake:
        engine.shared._waiting.extend(jobs)
        engine.shared._wake.notify()
    for job in jobs:
        while isinstance(told := job.out.get(timeout=60), int):
            pass
        assert told == "cancelled" or "MemoryError" in str(told)
    with pytest.raises(EngineError, match="closed"):
        say(engine, TEXTS[0])
    engine.close()


# ---------------------------------------------------------------- the penalty looks at the likeliest only


@pytest.fixture(scope="module")
def shared(gguf: dict[str, Path]) -> Any:
    context = SharedContext(gguf["qwen3"], cells=256, threads=1)
    yield context
    context.close()


@given(
    said=st.lists(st.integers(5, 900), min_size=1, max_size=60),
    penalty=st.sampled_from([1.05, 1.3, 2.0, 5.0]),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    seed=st.integers(0, 1000),
)
def test_a_draw_is_that_of_a_penalty_on_everything(
    shared: Any, said: list[int], penalty: float, temperature: float, seed: int
) -> None:
    """Words that were likely before the penalty, so that it pushes many of the likeliest down."""
    llama = shared._llama
    options = Options(temperature=temperature, repetition_penalty=penalty, seed=seed, top_p=0.98)
    job = _Job(said, 4, frozenset(), frozenset(), 0, Call([], options))
    ours = shared._sampler(job)
    whole = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    parts = [llama.llama_sampler_init_penalties(shared.tokens, 256, penalty, 0.0, 0.0)]
    if temperature:
        parts += [
            llama.llama_sampler_init_top_k(LIKELIEST),
            llama.llama_sampler_init_temp(temperature),
            llama.llama_sampler_init_top_p(0.98, 1),
            llama.llama_sampler_init_dist(seed),
        ]
    else:
        parts.append(llama.llama_sampler_init_greedy())
    for part in parts:
        llama.llama_sampler_chain_add(whole, part)
    for token in said:
        llama.llama_sampler_accept(whole, token)

    drawn: dict[str, list[int]] = {"ours": [], "whole": []}
    for name, chain in (("ours", ours), ("whole", whole)):
        for step in range(4):
            rows = (llama.llama_token_data * shared.tokens)()
            for token in range(shared.tokens):
                likely = token / 512 + (6.0 if token in said else 3.0 * math.sin(token * 0.37 + step))  # no two alike
                rows[token] = llama.llama_token_data(token, likely, 0.0)
            array = llama.llama_token_data_array(rows, shared.tokens, -1, False)
            llama.llama_sampler_apply(chain, ctypes.byref(array))
            token = array.data[array.selected].id
            llama.llama_sampler_accept(chain, token)
            drawn[name].append(token)
        llama.llama_sampler_free(chain)
    assert drawn["ours"] == drawn["whole"]
