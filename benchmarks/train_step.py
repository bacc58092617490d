"""What a training step costs: ours beside TRL's trainer, the same model, conversations, adapter and optimizer steps.

    python benchmarks/train_step.py [--vocab 32000 128000] [--data alone|grouped] [--rounds 5] [--only NAME ...]

Every contender is a process of its own and they take turns, one round each, so a busy or warming machine is the same
for all. A round is `--steps` optimizer steps of 16 conversations. Lengths are those of counsel-chat; `grouped` has a
system message and questions with eight answers each. Medians over the rounds; the last line is JSON.

    warmline          packed, lean, loss in pieces            warmline-shared   the same, common beginnings once
    warmline-plain    packed, but peft's layers, whole logits  matmul            the machine's bf16 product, flop/s
    trl-seeds         as the seeds' notebooks do it: padded 8 × 2, loss on all tokens, gradient checkpointing
    trl-best          the fastest found: loss on replies only, one conversation at a time, no checkpointing

TRL is no dependency of Warmline: pip install "trl==1.16.*". Useful arithmetic counts no padding, no recomputation and
no logits that carry no loss. `--clock cpu` takes a process's own CPU time, for a machine that others use too (one core
only: several cores wait for each other actively).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH, PACK, RANK, LAYERS, WIDTH, INNER, HEADS = 16, 2048, 16, 4, 1024, 2816, 16
NAMES = ("warmline", "warmline-shared", "warmline-plain", "trl-seeds", "trl-best", "matmul")


def conversations(options: argparse.Namespace) -> list[tuple[list[int], int]]:
    """Token ids and how many of them are the prompt; as many as a round takes."""
    dice = random.Random(5)

    def tokens(count: int) -> list[int]:
        return [dice.randrange(3, options.vocab) for _ in range(count)]

    def drawn(middle: float, spread: float, most: int) -> int:
        # Logarithms of 1.35 × counsel-chat's words: questions 4.2 ± 0.7, answers 5.3 ± 0.75.
        return min(most, max(12, round(dice.lognormvariate(middle, spread))))

    system = tokens(100) if options.data == "grouped" else []
    answers = 8 if options.data == "grouped" else 1
    rows = []
    while len(rows) < BATCH * options.steps:
        prompt = system + tokens(drawn(4.2, 0.7, 400))
        rows += [(prompt + tokens(drawn(5.3, 0.75, 900)), len(prompt)) for _ in range(answers)]
    return rows


def make_base(folder: Path, vocabulary: int) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    config = LlamaConfig(
        **shape, num_attention_heads=HEADS, num_key_value_heads=HEADS, vocab_size=vocabulary, pad_token_id=0
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "</s>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


def useful(rows: list[tuple[list[int], int]], vocabulary: int) -> float:
    """Operations a round cannot do without: products with frozen weights forward and back, LoRA, attention, head."""
    square, wide = WIDTH * WIDTH, WIDTH * INNER
    tokens = sum(len(ids) for ids, _ in rows)
    targets = sum(len(ids) - prompt for ids, prompt in rows)
    frozen = LAYERS * (4 * square + 3 * wide)
    body = 4 * frozen * tokens - 2 * 3 * square * tokens  # the first layer's input needs no gradient
    lora = 6 * RANK * LAYERS * (4 * 2 * WIDTH + 3 * (WIDTH + INNER)) * tokens
    attention = LAYERS * WIDTH * 3.5 * 2 * sum(len(ids) ** 2 for ids, _ in rows)
    return body + lora + attention + 4 * vocabulary * WIDTH * targets


# ------------------------------------------------------------------------------------------------- contenders
# Each yields once it is ready, and then after every round: (loss of the round's last step).


def warmline(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    import torch

    from warmline import recipe
    from warmline.model import adapter, load
    from warmline.model import pack as packing
    from warmline.model.template import Encoded
    from warmline.train import lean, loop

    if name == "warmline-plain":
        lean.install = lambda model: None
        loop.Loss = lambda model: lambda packed: packing.surprise(model, packed).sum()
    texts = [Encoded(ids, [place >= prompt for place in range(len(ids))]) for ids, prompt in conversations(options)]
    model = load.load_model(recipe.Base(model=str(folder), load=options.load))
    model = adapter.add_adapter(model, recipe.Adapter(rank=RANK, alpha=16, dropout=options.dropout), 1)
    train = recipe.Train(
        batch=BATCH, pack=PACK, steps=10_000, warmup=0, schedule="constant", share_prefixes=name == "warmline-shared"
    )
    loop.order = lambda step, batch, count, seed, groups=(): [
        i % count for i in range(step * batch, (step + 1) * batch)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trained = loop.Loop(model, texts, [], train, Path(scratch))
        model.train()
        torch.manual_seed(1)
        step, loss = 0, 0.0
        while True:
            yield loss
            for _ in range(options.steps):
                loss, _norm, _targets = trained._step(step)
                step += 1


def trl(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seeds = name == "trl-seeds"
    quantised = {
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "bf16": None,
    }[options.load]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=quantised)
    if seeds:
        model = prepare_model_for_kbit_training(model)
    config = LoraConfig(
        r=RANK,
        lora_alpha=16,
        lora_dropout=0.05 if seeds else options.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    rows = [
        {"input_ids": ids, "labels": ids if seeds else [-100] * prompt + ids[prompt:]}
        for ids, prompt in conversations(options)
    ]
    if seeds:  # 002 casts its norms to bf16 after peft made them fp32
        for module_name, module in model.named_modules():
            if "norm" in module_name:
                module.to(torch.bfloat16)
    size = 8 if seeds else 1
    settings = SFTConfig(
        output_dir=str(folder / name),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=BATCH // size,
        max_steps=10_000,
        learning_rate=2e-4,
        optim="adamw_torch_fused",
        max_grad_norm=0.3 if seeds else 1.0,
        bf16=True,
        gradient_checkpointing=seeds,
        max_length=PACK,
        loss_type="nll" if seeds else "chunked_nll",
        train_sampling_strategy="group_by_length" if seeds else "sequential",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=10_000,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )

    rounds: queue.Queue[float] = queue.Queue()
    go = threading.Semaphore(0)

    class Turns(TrainerCallback):
        """Wait for our turn before a round's first step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % options.steps == 0:
                rounds.put(0.0)
                go.acquire()

    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Turns()],
    )

    def train() -> None:
        try:
            trainer.train()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=train, daemon=True).start()
    while True:
        yield rounds.get()
        go.release()


def matmul(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    import torch

    one, other = (torch.randn(size).to(torch.bfloat16) for size in ((PACK, WIDTH), (INNER, WIDTH)))
    while True:
        yield 0.0
        for _ in range(64):
            torch.nn.functional.linear(one, other)


def contend(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Be one contender: take a turn for every line that comes in, answer with seconds and peak memory."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    turns = {"trl": trl, "war": warmline, "mat": matmul}[name[:3]](name, folder, options)
    next(turns)
    while True:
        out.write("ready\n")
        out.flush()
        if not sys.stdin.readline():
            os._exit(0)
        began = clock()
        loss = next(turns)
        seconds = clock() - began
        status = Path("/proc/self/status").read_text("ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
        out.write(json.dumps({"seconds": seconds, "loss": loss, "peak": peak}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000], help="one row each")
    parser.add_argument("--data", choices=("alone", "grouped"), default="alone")
    parser.add_argument("--load", choices=("nf4", "int8", "bf16"), default="nf4")
    parser.add_argument("--dropout", type=float, default=0.0, help="LoRA dropout of all but trl-seeds (0.05)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps in a round")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--contend", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for vocabulary in options.vocab:
        one = argparse.Namespace(**vars(options) | {"vocab": vocabulary})
        if one.contend:
            contend(one.contend[0], Path(one.contend[1]), one)
        compete(one)


def compete(options: argparse.Namespace) -> None:
    """Let the contenders take turns at one size of vocabulary, and say what came of it."""
    rows = conversations(options)
    tokens, targets = sum(len(ids) for ids, _ in rows), sum(len(ids) - prompt for ids, prompt in rows)
    print(f"{len(rows)} conversations a round: {tokens:,} tokens, {targets:,} of them carry the loss", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, "-c", f"import train_step; train_step.make_base({scratch!r}, {options.vocab})"],
            cwd=Path(__file__).parent,
            check=True,
            stderr=subprocess.DEVNULL,
        )
        times: dict[str, list[float]] = {name: [] for name in options.only}
        peaks: dict[str, float] = {}
        processes: dict[str, subprocess.Popen[str]] = {}
        for name in options.only:
            command = [sys.executable, __file__, *sys.argv[1:], "--vocab", str(options.vocab)]
            command += ["--contend", name, scratch]
            with open(f"{scratch}/{name}.log", "w") as log:
                processes[name] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
            if processes[name].stdout.readline() != "ready\n":
                print(f"{name} does not run here: " + Path(f"{scratch}/{name}.log").read_text()[-600:])
                del processes[name], times[name]
        for number in range(options.rounds + 1):  # the first one warms up
            for name in list(processes):
                process = processes[name]
                try:
                    process.stdin.write("go\n")
                    process.stdin.flush()
                    answer = json.loads(process.stdout.readline())
                    process.stdout.readline()
                except (OSError, json.JSONDecodeError):
                    print(f"{name} gave up: " + Path(f"{scratch}/{name}.log").read_text()[-600:])
                    del processes[name], times[name]
                    continue
                peaks[name] = answer["peak"]
                if number:
                    times[name].append(answer["seconds"])
                print(f"round {number} {name}: {answer['seconds']:.2f} s, loss {answer['loss']:.4f}", flush=True)
        for process in processes.values():
            process.stdin.close()
            process.wait()
    result: dict[str, Any] = {
        "data": options.data,
        "vocab": options.vocab,
        "load": options.load,
        "clock": options.clock,
    }
    rate = 0.0
    if times.get("matmul"):
        rate = 64 * 2 * PACK * WIDTH * INNER / statistics.median(times.pop("matmul"))
        result["matmul_gflops"] = round(rate / 1e9)
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        result[name] = {"targets_per_second": round(targets / middle, 1), "peak_gib": round(peaks[name], 2)}
        if rate:
            result[name]["share_of_matmul"] = round(useful(rows, options.vocab) / middle / rate, 3)
        print(f"{name:16} {json.dumps(result[name])}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
