"""How much of llama.cpp's speed reaches a visitor: random-initialised Llamas, everything interleaved in one run.

    python benchmarks/generate.py                                  135 M and 490 M, every row
    python benchmarks/generate.py --size 490M --only decode memory --rounds 5
    python benchmarks/generate.py --size 135M --only talk --plot first-token.png

Measured for a prompt of 500 tokens, for each size and each kind of row:

    decode        tokens a second of llama.cpp called directly, of our engine, of our engine through `chat` with its
                  guards, for each `--quant`
    first         seconds to the first token: cold, and of a new conversation behind the cached safety prompt
    start         from opening the engine to the first visitor's first token, without and with the kept prompt
    eight         eight conversations at once with a prompt of their own, with a shared one, and with people who leave
                  and join in mid-flight
    memory        peak MB of a process that replies once; aim: llama.cpp's own + 150; and with the cache at its largest
    transformers  the engine `local` in bf16, NF4 and int8: cold, cached, decoding, peak MB
    talk          a long conversation's time to the first token per turn, and of a new conversation after each turn
    bandwidth     the tokens a second that reading all weights for each token allows

Everything is also given by processor time (`_cpu`), which a busy machine changes little (with one thread; with more,
threads that wait for one another count too). Random weights write nonsense, which the guard would cut, so `chat` is
given the engine's pieces as words of a fixed text. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
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
ROWS = ("decode", "first", "start", "eight", "memory", "transformers", "talk", "bandwidth")
LOADS = ("bf16", "nf4", "int8")
TRANSFORMERS_ROUNDS = 2
"""Each loads torch and a model anew, which takes most of the time."""
PROSE = (
    "That sounds like a long week, and you carried most of it alone. What was the hardest part of it for you? "
    "You said the evenings are quiet. I wonder what goes through your mind when the house is still. "
)
SYSTEM = "You listen. You are warm, plain and brief, and you ask one question at a time. " * 24
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}


def make(size: str, quant: str, folder: Path) -> Path:
    """Write the random model as GGUF by our own export, quantised by llama.cpp."""
    target = folder / f"{size}-{quant}.gguf"
    if target.exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from warmline import recipe
    from warmline.model.export.make import quantise
    from warmline.model.export.weights import write_gguf
    from warmline.model.load import embedded_folder, load_tokenizer

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
    if not plain.exists():
        write_gguf(source, plain, "bf16", Template(tokenizer))
    if quant != "bf16":
        partial = target.with_suffix(".partial")
        quantise(plain, partial, quant)
        partial.rename(target)
    return target


SILENT: list[Any] = []
"""Kept as long as the process: C holds no reference, and logs when a model is closed, too."""


class Direct:
    """llama.cpp with nothing around it: one context, one sequence, decode and sample."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp as llama

        self.llama = llama
        SILENT.append(llama.llama_log_callback(lambda *_: None))
        llama.llama_log_set(SILENT[-1], ctypes.c_void_p(0))
        llama.llama_backend_init()
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

    def close(self) -> None:
        self.llama.llama_sampler_free(self.sampler)
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)

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
    """The engine's own stream, each of its tokens spelt as a word that a guard lets through."""

    def __init__(self, inner: LlamaCppEngine) -> None:
        self.inner, self.name = inner, inner.name
        self.clocks: list[tuple[float, float]] = []

    def reply(self, call: Call) -> Iterator[str]:
        shared, words = self.inner.shared, itertools.cycle(PROSE.split(" "))
        real = shared.spelling

        def spelling(token: int) -> bytes:
            real(token)
            self.clocks.append(_clocks())
            return f"{next(words)} ".encode()

        shared.spelling = spelling  # type: ignore[method-assign]
        try:
            yield from self.inner.reply(call)
        finally:
            shared.spelling = real  # type: ignore[method-assign]


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
    """Tokens a second, and by processor time, from the first token to the last screened sentence."""
    from warmline.chat import Chat, Done, Thread

    sane = Sane(engine)
    chat = Chat(sane, system=SYSTEM, country="GB", options=Options(max_tokens=tokens, seed=7, **SAMPLING))
    *_, done = chat.turn(Thread(), "It was a rough week at work and I am tired.")
    wall, cpu = (end - begin for end, begin in zip(_clocks(), sane.clocks[0], strict=True))
    assert isinstance(done, Done)
    assert done.stop_reason in ("length", "stop"), "the guard has cut it"
    return (len(sane.clocks) - 1) / wall, (len(sane.clocks) - 1) / cpu


def bandwidth(threads: int) -> float:
    """Bytes a second that so many cores together read from memory."""
    import numpy as np

    blocks = [np.ones(1 << 25, dtype=np.float32) for _ in range(threads)]  # 128 MB each, beyond any cache
    best = 0.0
    for _ in range(9):
        began = time.process_time()
        readers = [threading.Thread(target=block.sum) for block in blocks]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, threads * sum(block.nbytes for block in blocks) / (time.process_time() - began))
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


def alone(kind: str, path: Path, folder: Path, threads: int) -> dict[str, float]:
    """What `--alone KIND` says of itself in a fresh process."""
    command = [sys.executable, __file__, "--alone", kind, "--model", str(path), "--folder", str(folder)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def stand_alone(kind: str, path: Path, folder: Path, threads: int) -> dict[str, float]:
    """Reply once, or twice by transformers, in a process of its own, which knows the memory it took."""
    prompt = [Message("system", SYSTEM), Message("user", "It was a rough week at work and I am tired.")]
    told: dict[str, float] = {}
    if kind in LOADS:
        told = by_transformers(kind, folder, threads, prompt)
    else:
        template = Template(Vocabulary(folder), system=SYSTEM)
        if kind == "direct":
            Direct(path, threads).run(template.encode(prompt, reply=True).ids, 32)
        else:
            with tempfile.TemporaryDirectory() as kept:
                saved = Path(kept) / "a.prompt"
                engine = LlamaCppEngine.open(path, template, name="x", context=CONTEXT, threads=threads, saved=saved)
                if kind == "full":
                    engine.shared._grow(engine.shared.cells)
                through_chat(engine, 32)
                engine.close()
    status = Path("/proc/self/status").read_text()
    return told | {"peak_mb": int(status.split("VmHWM:")[1].split()[0]) // 1024}


def by_transformers(load: str, folder: Path, threads: int, prompt: list[Message]) -> dict[str, float]:
    """The engine `local`: seconds to the first token cold and cached, tokens a second after it."""
    import torch

    from warmline import recipe
    from warmline.engine.local import LocalEngine

    torch.set_num_threads(threads)
    settings = {"name": "x", "base": {"model": str(folder), "load": load}, "prompt": {"context": CONTEXT}}
    engine = LocalEngine.open(recipe.parse(settings), None, "x")
    list(engine.reply(Call([Message("user", "Hello.")], Options(max_tokens=2))))  # what the first call sets up
    told: dict[str, float] = {}
    for name, said in (("cold", prompt), ("cached", [prompt[0], Message("user", "Another person, tired.")])):
        call = Call(said, Options(max_tokens=24, seed=7, **SAMPLING))
        first = began = _clocks()
        for number, _ in enumerate(engine.reply(call)):
            first = first if number else _clocks()
        wall, cpu = (end - begin for end, begin in zip(_clocks(), first, strict=True))
        told |= {f"first_{name}": first[0] - began[0], f"first_{name}_cpu": first[1] - began[1]}
        told |= {"decode": (call.usage.completion_tokens - 1) / wall}
        told |= {"decode_cpu": (call.usage.completion_tokens - 1) / cpu}
    return told


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


def plot(turns: list[dict[str, float]], file: Path) -> None:
    """Draw the time to the first token of each turn."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    numbers = [row["turn"] for row in turns]
    axes.plot(numbers, [row["cpu"] for row in turns], label="the conversation's next turn")
    axes.plot(numbers, [row["new_cpu"] for row in turns], label="a new conversation's first")
    axes.set(xlabel="turn", ylabel="first token, processor s", ylim=(0, None))
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


class Measured:
    """One size of model: every round adds a value to each row that was asked for."""

    def __init__(self, size: str, args: argparse.Namespace) -> None:
        self.size, self.only, self.tokens, self.threads = size, args.only, args.tokens, args.threads
        self.paths = {quant: make(size, quant, args.folder) for quant in args.quant}
        self.folder, self.path = args.folder / size, self.paths[args.quant[0]]
        self.kept = args.folder / f"{self.path.stem}.prompt"
        self.template = Template(Vocabulary(self.folder), system=SYSTEM)
        self.prompt = [Message("system", SYSTEM), Message("user", "It was a rough week at work and I am tired.")]
        self.ids = self.template.encode(self.prompt, reply=True).ids
        self.rows: dict[str, list[float]] = {}
        self.result: dict[str, Any] = {"prompt": len(self.ids), "file_mb": round(self.path.stat().st_size / 1e6, 1)}

    def note(self, name: str, *values: float) -> None:
        """Wall time's value, and processor time's."""
        for unit, value in zip(("", "_cpu"), values, strict=False):
            self.rows.setdefault(name + unit, []).append(value)
        print(f"{self.size} {name:32}", *(f"{value:9.3f}" for value in values), flush=True)

    def engine(self, path: Path) -> LlamaCppEngine:
        return LlamaCppEngine.open(path, self.template, name="random", context=CONTEXT, threads=self.threads)

    def round(self, number: int) -> None:
        if "memory" in self.only and not number:
            for kind in ("direct", "engine", "full"):
                self.note(f"peak_mb_{kind}", alone(kind, self.path, self.folder, self.threads)["peak_mb"])
        if "transformers" in self.only and number < TRANSFORMERS_ROUNDS:
            for load in LOADS:
                told = alone(load, self.path, self.folder, self.threads)
                for name in ("first_cold", "first_cached", "decode"):
                    self.note(f"transformers_{load}_{name}", told[name], told[f"{name}_cpu"])
                self.note(f"peak_mb_transformers_{load}", told["peak_mb"])
        for quant, path in self.paths.items():
            if "decode" in self.only or "first" in self.only:
                self.replies(quant, path)
        if "start" in self.only:
            self.kept.unlink(missing_ok=True)
            for name in ("start_reading", "start_kept"):  # the first start keeps the prompt for the second
                self.note(name, *start(self.path, self.template, self.threads, self.kept))
        if "eight" in self.only:
            engine = self.engine(self.path)
            for name, shared, restless in (
                ("eight_own_prompt", False, False),
                ("eight_shared", True, False),
                ("eight_restless", True, True),
            ):
                forget(engine)
                if shared:
                    stream(engine, self.prompt, 1)
                self.note(name, *eight(engine, shared, 16, restless))
            engine.close()

    def replies(self, quant: str, path: Path) -> None:
        direct, engine = Direct(path, self.threads), self.engine(path)
        forget(engine)
        for _ in range(2):  # the first reads the prompt, the second has it
            first, *rates = direct.run(self.ids, self.tokens)
            self.note(f"{quant}_decode_direct", *rates)
            told = stream(engine, self.prompt, self.tokens)
            self.note(f"{quant}_decode_engine", told.rate, told.rate_cpu)
            self.note(f"{quant}_decode_chat", *through_chat(engine, self.tokens))
            if not told.usage.cached_tokens:
                self.note(f"{quant}_first_cold_direct", first)
                self.note(f"{quant}_first_cold", told.first, told.first_cpu)
                told = stream(engine, [self.prompt[0], Message("user", "Another person, tired.")], 2)
                self.note(f"{quant}_first_cached", told.first, told.first_cpu)
        direct.close()
        engine.close()

    def close(self, turns: int) -> dict[str, Any]:
        """Medians, and what follows from them."""
        result = self.result | {name: round(statistics.median(values), 3) for name, values in self.rows.items()}
        for quant, kind, unit in itertools.product(self.paths, ("engine", "chat"), ("", "_cpu")):
            if both := self.rows.get(f"{quant}_decode_direct{unit}"):
                # within each pair, so that a slow minute counts on both sides
                pairs = zip(self.rows[f"{quant}_decode_{kind}{unit}"], both, strict=True)
                result[f"{quant}_{kind}_of_direct{unit}"] = round(statistics.median(a / b for a, b in pairs), 3)
        if "memory" in self.only:
            result["peak_mb_allowed"] = result["peak_mb_direct"] + 150
        if "bandwidth" in self.only:
            # each token reads every weight once; the table of embeddings is one of them where it is tied
            result["bandwidth_gb_s"] = round((bytes_a_second := bandwidth(self.threads)) / 1e9, 1)
            for quant, path in self.paths.items():
                result[f"{quant}_bandwidth_limit"] = round(bytes_a_second / path.stat().st_size, 1)
        if "talk" in self.only:
            engine = self.engine(self.path)
            result["talk"] = long_talk(engine, turns)
            engine.close()
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, nargs="+", default=["135M", "490M"])
    parser.add_argument("--quant", nargs="+", default=["q4_k_m", "q4_0"], help="decode all, the rest with the first")
    parser.add_argument("--only", choices=ROWS, nargs="+", default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--plot", type=Path, help="draw the long conversation into this file")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "warmline-generate")
    parser.add_argument("--alone", choices=("direct", "engine", "full", *LOADS), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(stand_alone(args.alone, args.model, args.folder, args.threads)))
        return
    args.folder.mkdir(exist_ok=True)
    began = time.perf_counter()
    sizes = {size: Measured(size, args) for size in args.size}
    for number in range(args.rounds):
        for measured in sizes.values():
            measured.round(number)
    result = {size: measured.close(args.turns) for size, measured in sizes.items()}
    if args.plot:
        plot(result[args.size[0]]["talk"], args.plot)
    seconds = round(time.perf_counter() - began)
    print(json.dumps({"threads": args.threads, "rounds": args.rounds, "seconds": seconds} | result))


if __name__ == "__main__":
    main()
