"""The local engine: ends as it says, stops when told, leaves nothing running."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.conftest import ARCHITECTURES
from warmline import recipe
from warmline.engine.base import Call, Options
from warmline.engine.local import LocalEngine
from warmline.errors import EngineError
from warmline.messages import Message
from warmline.model.adapter import add_adapter

HELLO = [Message("user", "I cannot sleep at night.")]


@pytest.fixture(scope="module")
def engine(models: dict[str, Path]) -> LocalEngine:
    settings = recipe.parse({"name": "x", "base": {"model": str(models["qwen3"]), "load": "bf16"}})
    return LocalEngine.open(settings, None, "x")


def running() -> int:
    return sum(thread.name == "generate" for thread in threading.enumerate())


def test_a_seed_repeats_a_reply_and_zero_temperature_needs_none(engine: LocalEngine) -> None:
    def say(**options: object) -> str:
        return "".join(engine.reply(Call(HELLO, Options(max_tokens=12, **options))))  # type: ignore[arg-type]

    assert say(seed=3) == say(seed=3)
    assert len({say(seed=seed) for seed in range(6)}) > 1, "the seed decides, so temperature does something"
    assert say(temperature=0.0) == say(temperature=0.0, seed=9)


def test_usage_says_how_it_ended(engine: LocalEngine) -> None:
    call = Call(HELLO, Options(max_tokens=5, seed=1))
    "".join(engine.reply(call))
    assert call.usage.prompt_tokens == len(engine.template.encode(HELLO, reply=True))
    assert call.usage.completion_tokens <= 5
    assert call.usage.stop_reason in ("length", "stop")
    assert (call.usage.stop_reason == "length") == (call.usage.completion_tokens == 5)


def test_cancel_ends_the_reply(engine: LocalEngine) -> None:
    call = Call(HELLO, Options(max_tokens=300, seed=1))
    for _ in engine.reply(call):
        call.cancel.set()
    assert call.usage.stop_reason == "cancelled"
    assert call.usage.completion_tokens < 300
    assert running() == 0


def test_a_reader_who_leaves_leaves_nothing_running(engine: LocalEngine) -> None:
    stream = engine.reply(Call(HELLO, Options(max_tokens=300, seed=1)))
    next(stream)
    stream.close()
    assert running() == 0


def test_a_stop_string_is_not_shown(engine: LocalEngine) -> None:
    whole = "".join(engine.reply(Call(HELLO, Options(max_tokens=40, seed=2))))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    call = Call(HELLO, Options(max_tokens=40, seed=2, stop=(stop,)))
    assert stop not in "".join(engine.reply(call))
    assert call.usage.stop_reason == "stop"


def test_what_does_not_fit_is_an_error(engine: LocalEngine) -> None:
    with pytest.raises(EngineError) as caught:
        list(engine.reply(Call([Message("user", "word " * 2000)])))
    assert caught.value.code == "engine-failed"
    assert not engine.fits([Message("user", "word " * 2000)], 10)


def empty(engine: LocalEngine) -> None:
    engine._held.clear()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_from_the_cache_as_from_nothing(models: dict[str, Path], family: str) -> None:
    prompt = {"system": "Listen with care, ask one thing at a time and never diagnose."}
    engine = LocalEngine.open(
        recipe.parse({"name": "x", "base": {"model": str(models[family]), "load": "fp32"}, "prompt": prompt}), None, "x"
    )

    def say(*turns: str) -> tuple[str, Call]:
        said = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(turns)]  # type: ignore[arg-type]
        call = Call(said, Options(max_tokens=10, temperature=0.0, repetition_penalty=1.3))
        return "".join(engine.reply(call)), call

    turns = ["I cannot sleep at night."]
    warm = []
    for more in ("My mother says I think too much.", "The night bus.", "It never stops."):
        text, call = say(*turns)
        warm.append(text)
        turns += ["That is a long time to carry it alone.", more]
    assert call.usage.prompt_tokens - call.usage.cached_tokens < 70
    text, call = say("Somebody else, who is tired.")
    assert call.usage.cached_tokens > 10, "the safety prompt is shared"
    again, call = say(*turns[:5])
    assert call.usage.cached_tokens == call.usage.prompt_tokens - 1, "and the other conversation kept its own"
    assert again == warm[2]
    for n in range(3):
        empty(engine)
        cold, call = say(*turns[: 2 * n + 1])
        assert call.usage.cached_tokens == 0
        assert cold == warm[n]
    empty(engine)
    assert say("Somebody else, who is tired.")[0] == text


def test_the_adapter_goes_on_and_off(models: dict[str, Path]) -> None:
    settings = recipe.parse({"name": "x", "base": {"model": str(models["qwen3"]), "load": "fp32"}})
    plain, tuned = LocalEngine.open(settings, None, "x"), LocalEngine.open(settings, None, "x")
    tuned.model = add_adapter(tuned.model, recipe.Adapter(rank=4, alpha=16), seed=1)
    torch.manual_seed(2)
    for name, parameter in tuned.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.model.eval()

    def say(engine: LocalEngine, **options: object) -> tuple[str, Call]:
        call = Call(HELLO, Options(max_tokens=10, temperature=0.0, **options))  # type: ignore[arg-type]
        return "".join(engine.reply(call)), call

    expected, on = say(plain)[0], say(tuned)[0]
    assert on != expected
    for _ in range(2):
        off, call = say(tuned, adapter=False)
        assert off == expected, "off is the base, to the word"
        assert say(tuned)[0] == on
    assert call.usage.cached_tokens == call.usage.prompt_tokens - 1, "each way keeps a cache of its own"
    merged = LocalEngine(plain.model, plain.template, "x", merged=True)
    with pytest.raises(EngineError):
        say(merged, adapter=False)


def test_a_program_may_end_in_mid_reply(models: dict[str, Path]) -> None:
    code = (
        "import sys\n"
        "from warmline import recipe\n"
        "from warmline.engine.base import Call, Options\n"
        "from warmline.engine.local import LocalEngine\n"
        "from warmline.messages import Message\n"
        "s = recipe.parse({'name': 'x', 'base': {'model': sys.argv[1], 'load': 'bf16'}})\n"
        "engine = LocalEngine.open(s, None, 'x')\n"
        "call = Call([Message('user', 'hello')], Options(max_tokens=200))\n"
        "for _ in engine.reply(call): sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(models["qwen3"])], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr[-500:]
    assert "Traceback" not in done.stderr
