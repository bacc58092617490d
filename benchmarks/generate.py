"""How much of llama.cpp's speed reaches a visitor: random-initialised Llamas, everything interleaved in one run.

    python benchmarks/generate.py [--size 135M|490M|tiny] [--quant q4_k_m] [--rounds N] [--threads N] [--turns N]

Measured for a prompt of about 500 tokens: decoding (llama.cpp called directly, our engine, our engine through `chat`
with its guards); time to the first token cold, from the cache, and of a start with and without the kept prompt; eight
conversations at once with and without the shared safety prompt, and with people who leave and join in mid-flight; peak
memory, which may be 150 MB over llama.cpp's own; a long conversation's time to the first token per turn, each turn
followed by the first of a new conversation; and what the memory's bandwidth would allow. Everything is also given by
processor time (`_cpu`), which a busy machine changes little (with one thread; with more, waiting threads count too).
Random weights write nonsense, which the guard would cut, so `chat` is given the engine's pace with a fixed text. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from warmline.engine.base import Call, Options, Usage
from warmline.engine.llamacpp import LlamaCppEngine, cores
from warmline.engine.vocabulary import Vocabulary
from warmline.messages import Message
from warmline.model.template import Template

SHAPES = {
    # SmolLM's 135 M; the 490 M class of Qwen's and others' small models
    "135M": {"width": 576, "layers": 30, "heads": 9, "kv": 3, "inner": 1536, "vocabulary": 49152},
    "490M": {"width": 1024, "layers": 28, "heads": 16, "kv": 8, "inner": 3072, "vocabulary": 49152},
    "tiny": {"width": 64, "layers": 2, "heads": 4, "kv": 2, "inner": 128, "vocabulary": 6144},
}
CONTEXT = 1024
PROSE = (
    "That sounds like a long week, and you carried most of it alone. What was the hardest part of it for you? "
    "You said the evenings are quiet. I wonder what goes through your mind when the house is still. "
)
SYSTEM = "You listen. You are warm, plain and brief, and you ask one question at a time. " * 17
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}


def make(size: str, quant: str, folder: Path) -> Path:
    """Write the random model as GGUF, quantised by llama.cpp."""
    import llama_cpp
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from warmline import recipe
    from warmline.model.export.weights import write_gguf
    from warmline.model.load import embedded_folder, load_tokenizer

    target = folder / f"{size}-{quant}.gguf"
    if target.exists():
        return target
    shape = SHAPES[size]
    config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        intermediate_size=shape["inner"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    source = folder / size
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / name).write_bytes((embedded_folder() / name).read_bytes())
    tokenizer = load_tokenizer(recipe.Base(model=str(source)))
    plain = folder / f"{size}-bf16.gguf"
    write_gguf(source, plain, "bf16", Template(tokenizer))
    if quant != "bf16":
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant.upper()}")
        partial = target.with_suffix(".partial")
        assert llama_cpp.llama_model_quantize(str(plain).encode(), str(partial).encode(), settings) == 0
        partial.rename(target)
    return target


class Direct:
    """llama.cpp with nothing around it: one context, one sequence, decode and sample."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp as llama

        self.llama = llama
        self.quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = CONTEXT, threads, threads
        self.context = llama.llama_init_from_model(self.model, settings)
        self.memory = llama.llama_get_memory(self.context)
        vocabulary = llama.llama_model_get_vocab(self.model)
        self.sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        tokens = llama.llama_vocab_n_tokens(vocabulary)
        for part in (
            llama.llama_sampler_init_penalties(tokens, CONTEXT, 1.1, 0.0, 0.0),
            llama.llama_sampler_init_top_k(256),
            llama.llama_sampler_init_temp(0.7),
            llama.llama_sampler_init_top_p(0.9, 1),
            llama.llama_sampler_init_dist(7),
        ):
            llama.llama_sampler_chain_add(self.sampler, part)

    def run(self, ids: list[int], tokens: int) -> tuple[float, float, float]:
        """Seconds to the first token from an empty cache, tokens a second after it, the same by processor time."""
        llama = self.llama
        llama.llama_memory_clear(self.memory, False)
        llama.llama_sampler_reset(self.sampler)
        began = time.perf_counter()
        for token in ids:
            llama.llama_sampler_accept(self.sampler, token)
        array = (llama.llama_token * len(ids))(*ids)
        assert llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(ids))) == 0
        token = llama.llama_sampler_sample(self.sampler, self.context, -1)
        first, spent = time.perf_counter(), time.process_time()
        one = (llama.llama_token * 1)()
        for _ in range(tokens - 1):
            one[0] = token
            assert llama.llama_decode(self.context, llama.llama_batch_get_one(one, 1)) == 0
            token = llama.llama_sampler_sample(self.sampler, self.context, -1)
        spent = time.process_time() - spent
        return first - began, (tokens - 1) / (time.perf_counter() - first), (tokens - 1) / spent


class Sane:
    """The engine's pace with words that a guard lets through."""

    def __init__(self, inner: LlamaCppEngine) -> None:
        self.inner, self.name = inner, inner.name

    def reply(self, call: Call) -> Iterator[str]:
        words = iter((PROSE * 8).split(" "))
        for _ in self.inner.shared.stream(
            self.inner.template.encode(call.messages, reply=True).ids,
            call,
            limit=call.options.max_tokens,
            ends=frozenset(),
            quiet=self.inner._quiet,
            head=len(self.inner._head),
        ):
            yield next(words) + " "


class Timing(NamedTuple):
    first: float
    """Seconds to the first token."""
    first_cpu: float
    rate: float
    """Tokens a second after it."""
    rate_cpu: float
    usage: Usage


def stream(engine: LlamaCppEngine, messages: list[Message], tokens: int, head: bool = True) -> Timing:
    """Time one reply, which never stops early."""
    call = Call(messages, Options(max_tokens=tokens, seed=7, **SAMPLING))
    first = began = _clocks()
    ids = engine.template.encode(messages, reply=True).ids
    for number, _ in enumerate(
        engine.shared.stream(
            ids, call, limit=tokens, ends=frozenset(), quiet=engine._quiet, head=len(engine._head) if head else 0
        )
    ):
        first = first if number else _clocks()
    wall, cpu = (max(end - middle, 1e-9) for end, middle in zip(_clocks(), first, strict=True))
    return Timing(first[0] - began[0], first[1] - began[1], (tokens - 1) / wall, (tokens - 1) / cpu, call.usage)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def start(path: Path, template: Template, threads: int, saved: Path | None) -> tuple[float, float]:
    """Seconds and processor seconds from opening the engine to the first visitor's first token."""
    began = _clocks()
    engine = LlamaCppEngine.open(path, template, name="x", context=CONTEXT, threads=threads, saved=saved)
    stream(engine, [Message("system", SYSTEM), Message("user", "I am tired.")], 1)
    wall, cpu = (end - begin for end, begin in zip(_clocks(), began, strict=True))
    engine.close()
    return wall, cpu


def through_chat(engine: LlamaCppEngine, tokens: int) -> tuple[float, float]:
    """Tokens a second, and by processor time, from the message's screening to the last screened sentence.

    Reading the person's message is in it, so it is a little below what is felt.
    """
    from warmline.chat import Chat, Thread

    chat = Chat(Sane(engine), system=SYSTEM, country="GB", options=Options(max_tokens=tokens, seed=7, **SAMPLING))
    events = chat.turn(Thread(), "It was a rough week at work and I am tired.")
    first = spent = 0.0
    for event in events:
        if type(event).__name__ == "Safety":  # the guard's reading of the message is behind us
            first, spent = time.perf_counter(), time.process_time()
    return tokens / (time.perf_counter() - first), tokens / (time.process_time() - spent)


def bandwidth() -> float:
    """Bytes a second that one core reads from memory."""
    import numpy as np

    block = np.ones(1 << 26, dtype=np.float32)  # 256 MB, beyond any cache
    best = 0.0
    for _ in range(5):
        began = time.process_time()
        block.sum()
        best = max(best, block.nbytes / (time.process_time() - began))
    return best


def eight(engine: LlamaCppEngine, shared: bool, tokens: int, restless: bool = False) -> tuple[float, float]:
    """All tokens a second of eight conversations at once, prompts included, and by processor time.

    `restless`: the first four people leave after a quarter of their reply, and with each of them another one comes.
    """
    system, told = SYSTEM if shared else "", [0] * 12

    def talk(number: int) -> None:
        own = f"{number} " * 3 + ("" if shared else SYSTEM)
        messages = [Message("system", system), Message("user", f"{own} I am number {number}, tired.")]
        call = Call(messages, Options(max_tokens=tokens, seed=7, **SAMPLING))
        ids, head = engine.template.encode(messages, reply=True).ids, len(engine._head) if shared else 0
        for _ in engine.shared.stream(ids, call, limit=tokens, ends=frozenset(), quiet=engine._quiet, head=head):
            told[number] += 1
            if restless and number < 4 and told[number] == tokens // 4:
                call.cancel.set()
        if restless and number < 4:
            talk(number + 8)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    began = _clocks()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = (end - begin for end, begin in zip(_clocks(), began, strict=True))
    return sum(told) / wall, sum(told) / cpu


def forget(engine: LlamaCppEngine) -> None:
    """Empty the cache, heads included. Nothing may be under way."""
    shared = engine.shared
    for sequence in (*shared._heads.values(), *shared._sequences):
        shared._remove(sequence, 0)


def memory(kind: str, path: Path, folder: Path, threads: int) -> int:
    """Peak resident MB of a fresh process that loads the GGUF and replies once."""
    command = [sys.executable, __file__, "--peak", kind, "--model", str(path), "--folder", str(folder)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak(kind: str, path: Path, folder: Path, threads: int) -> None:
    template = Template(Vocabulary(folder), system=SYSTEM)
    prompt = [Message("system", SYSTEM), Message("user", "I am tired.")]
    ids = template.encode(prompt, reply=True).ids
    if kind == "direct":
        Direct(path, threads).run(ids, 32)
    else:
        engine = LlamaCppEngine.open(path, template, name="x", context=CONTEXT, threads=threads)
        through_chat(engine, 32)
        engine.close()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)


def long_talk(engine: LlamaCppEngine, turns: int) -> list[dict[str, float]]:
    """A conversation that outgrows its context: the oldest exchanges are left out, the cache moves along."""
    from warmline.chat import Chat, Thread

    def fits(messages: list[Message]) -> bool:
        return engine.fits(messages, 40)

    chat = Chat(Sane(engine), system=SYSTEM, fits=fits, options=Options(max_tokens=40, seed=7, **SAMPLING))
    thread, rows = Thread(), []
    for turn in range(turns):
        text = f"It is evening number {turn} and work was long again, my brother called about the garden."
        told = stream(engine, chat.context(thread, text), 4)
        thread.messages += [Message("user", text), Message("assistant", PROSE.strip())]
        new = stream(engine, chat.context(Thread(), f"Number {turn}, who has just come and is tired."), 4)
        rows.append({"turn": turn + 1, "prompt": told.usage.prompt_tokens})
        for name, timing in (("", told), ("new_", new)):
            rows[-1][f"{name}read"] = timing.usage.prompt_tokens - timing.usage.cached_tokens
            rows[-1][f"{name}seconds"] = round(timing.first, 3)
            rows[-1][f"{name}cpu"] = round(timing.first_cpu, 3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SHAPES, default="135M")
    parser.add_argument("--quant", default="q4_k_m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "warmline-generate")
    parser.add_argument("--peak", choices=("direct", "engine"))
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    if args.peak:
        peak(args.peak, args.model, args.folder, args.threads)
        return
    args.folder.mkdir(exist_ok=True)
    path = make(args.size, args.quant, args.folder)
    folder = args.folder / args.size
    template = Template(Vocabulary(folder), system=SYSTEM)
    prompt = [Message("system", SYSTEM), Message("user", "It was a rough week at work and I am tired.")]
    ids = template.encode(prompt, reply=True).ids
    result: dict[str, Any] = {"size": args.size, "quant": args.quant, "threads": args.threads, "prompt": len(ids)}
    peaks = {kind: memory(kind, path, folder, args.threads) for kind in ("direct", "engine")}
    result["peak_mb"] = peaks | {"allowed": peaks["direct"] + 150}
    print(result["peak_mb"], flush=True)

    direct = Direct(path, args.threads)
    engine = LlamaCppEngine.open(path, template, name="random", context=CONTEXT, threads=args.threads)
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)
        print(f"{name:28} {value:9.3f}", flush=True)

    kept = args.folder / f"{path.stem}.prompt"
    for _ in range(args.rounds):
        first, rate, cpu = direct.run(ids, args.tokens)
        note("first_cold_direct", first)
        note("decode_direct", rate)
        note("decode_direct_cpu", cpu)
        forget(engine)
        told = stream(engine, prompt, args.tokens)
        note("first_cold", told.first)
        note("first_cold_cpu", told.first_cpu)
        note("decode_engine", told.rate)
        note("decode_engine_cpu", told.rate_cpu)
        told = stream(engine, [prompt[0], Message("user", "Another person, tired.")], 4)
        note("first_cached", told.first)
        note("first_cached_cpu", told.first_cpu)
        _, rate, cpu = direct.run(ids, args.tokens)
        note("decode_direct", rate)
        note("decode_direct_cpu", cpu)
        rate, cpu = through_chat(engine, args.tokens)
        note("decode_chat", rate)
        note("decode_chat_cpu", cpu)
        kept.unlink(missing_ok=True)
        for name in ("start_reading", "start_kept"):  # the first start keeps the prompt for the second
            wall, cpu = start(path, template, args.threads, kept)
            note(name, wall)
            note(f"{name}_cpu", cpu)
        for name, shared, restless in (
            ("eight_own_prompt", False, False),
            ("eight_shared", True, False),
            ("eight_restless", True, True),
        ):
            forget(engine)
            if shared:
                stream(engine, prompt, 1)
            wall, cpu = eight(engine, shared, 16, restless)
            note(name, wall)
            note(f"{name}_cpu", cpu)
    result |= {name: round(statistics.median(values), 3) for name, values in rows.items()}
    for kind in ("engine", "chat"):
        for unit in ("", "_cpu"):
            share = result[f"decode_{kind}{unit}"] / result[f"decode_direct{unit}"]
            result[f"share_of_direct_{kind}{unit}"] = round(share, 3)
    # each token reads every weight once; the table of embeddings is one of them where it is tied
    result["bandwidth_limit"] = round(bandwidth() / path.stat().st_size, 1)
    result["long_talk"] = long_talk(engine, args.turns)
    engine.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
