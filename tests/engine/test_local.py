"""The local engine: ends as it says, stops when told, leaves nothing running."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from warmline import recipe
from warmline.engine.base import Call, Options
from warmline.engine.local import LocalEngine
from warmline.errors import EngineError
from warmline.messages import Message

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
