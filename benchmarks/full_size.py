"""The seeds' four bases at full size on a GPU: speed, memory and share of the chip's rate, beside other trainers.

    python benchmarks/full_size.py [--model falcon-7b|llama-2-7b|gemma-2b|open-llama-3b|all] [--rounds 3] [--steps 3]
                                   [--only NAME ...] [--data FILE] [--write]
    python benchmarks/full_size.py --small            the same path on a CPU, models of the same kinds made tiny

Weights are random, made a tensor at a time and written to --folder as a bf16 base in shards of 2 GB (15 GB of disk for
one model at a time; neither this machine nor the GPU ever holds more than one tensor and one shard). Each contender
loads that folder as it would load the real base. Settings are those of the shipped recipe of the seed; texts are those
of --data (counsel-chat if it is here, else the sample corpus), cut into tokens by a tokenizer learnt from them.

    warmline            the corrected recipe as `warmline train` runs it: the plan chooses packs, optimizer, recomputing
    warmline-unpacked   the same, one conversation at a time
    seed                the seed's own way in today's TRL: its text, loss on all tokens, its batches, padded or chunked
    trl-best            TRL packed without padding, loss on replies only, flash attention where installed, fused AdamW
    peft                transformers and peft in a plain loop: padded, loss on replies only
    unsloth             packed; `benchmarks/peers.sh unsloth` installs it; knows no Falcon
    matmul              a bf16 product of the same GPU in the same run: what the share of the rate is measured against

Each contender is a process of its own. They take turns; a turn is one step to warm up and --steps that are timed. On a
GPU under 80 GB a process ends after its turn, since they would not fit beside each other. Then each contender runs once
more, alone, under the limit: torch may take no more than a T4 (open-llama-3b: a 6 GB card) has, less 0.7 GB for the
program. What runs there fits; all but `warmline` recompute activations there, `warmline` does what its plan says.

tokens/s counts conversations' tokens and no padding, supervised tokens/s those of the replies, whatever a contender
puts into its loss. MFU is useful operations / seconds / the measured bf16 rate (and / the maker's rate):

    tokens × (4 × frozen matrices + 6 × adapter) + pairs × 12 × layers × heads × head width + replies × 4 × head matrix

where tokens are those computed (shared beginnings once, no padding, nothing twice), pairs are a token and one it sees,
and replies are supervised tokens. Medians over rounds; the last line is JSON; --write keeps it in benchmarks/results.
Without a GPU and without --small: one line, exit 2.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from train_step import PEERS, Turns

SHARD = 2 * 10**9
RESIDENT = 80e9
"""Bytes of a GPU from which on all contenders stay loaded; on a smaller one each is loaded anew for its turn."""
PROGRAM = 0.7e9
"""Bytes that a program takes on a GPU beside torch's own memory: context and kernels."""
RESULTS = Path(__file__).parent / "results" / "full_size.json"


@dataclass(frozen=True)
class Seed:
    """A base, its recipe, and how its seed trained it. What a seed did not publish is marked."""

    recipe: str
    card: str
    rows: int
    accumulate: int
    optimizer: str
    chunks: bool = False
    """Conversations strung together and cut every `context` tokens (TRL's old packing), instead of padded."""
    by_length: bool = False
    plain_norms: bool = False
    """Norms cast to bf16 by hand."""
    unsloth: bool = True


SEEDS = {
    "falcon-7b": Seed(
        "falcon-7b-qlora", "t4", 16, 4, "paged_adamw_32bit", by_length=True, plain_norms=True, unsloth=False
    ),
    "llama-2-7b": Seed("llama-2-7b-chat-qlora", "t4", 4, 1, "paged_adamw_8bit", chunks=True),
    "gemma-2b": Seed("gemma-2b-qlora", "t4", 2, 4, "adamw_8bit"),
    "open-llama-3b": Seed(
        "open-llama-3b-int8-lora", "rtx2060", 4, 4, "adamw_torch"
    ),  # rows and optimizer not published
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 2048,
}
"""What --small puts in place of a base's sizes; its kind, and all else that makes it, stays."""


@dataclass(frozen=True)
class Job:
    """What a contender is told: one model, where its base and its texts lie."""

    model: str
    folder: str
    small: bool
    limit: float | None
    """Bytes that torch may take."""

    @property
    def seed(self) -> Seed:
        return SEEDS[self.model]

    def texts(self) -> dict[str, list[tuple[list[int], list[int]]]]:
        """`mended` and `seed`: token ids, and a 1 for each that is the reply's; the same conversations in order."""
        found: dict[str, list[tuple[list[int], list[int]]]] = json.loads(Path(self.folder, "texts.json").read_text())
        return found

    def plan_of(self, name: str) -> Path:
        """Where a contender that plans writes what it chose."""
        return Path(self.folder, f"{name}{'-limited' if self.limit else ''}.plan.json")

    def settings(self, *more: str) -> Any:
        return recipe_of(self.model, f"base.model={self.folder}", *more)


def recipe_of(model: str, *more: str) -> Any:
    """The shipped recipe of the seed, with these settings laid over it."""
    from warmline import recipe

    return recipe.load(SEEDS[model].recipe, more)


@dataclass
class Step:
    """What an optimizer step took in. `tokens` of whole conversations, `computed` without what they share."""

    loss: float = 0.0
    tokens: int = 0
    computed: int = 0
    targets: int = 0
    pairs: float = 0.0


def cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def half() -> Any:
    """bf16, or fp16 on a GPU that has no bf16."""
    import torch

    return torch.float16 if cuda() and not torch.cuda.is_bf16_supported(including_emulation=False) else torch.bfloat16


# ------------------------------------------------------------------------------------------------- what is trained


def configuration(model: str, small: bool) -> Any:
    """The base's published shape, or the same kind of model made tiny."""
    from importlib import resources

    import yaml
    from transformers import AutoConfig

    shapes = yaml.safe_load((resources.files("warmline") / "model" / "shapes.yaml").read_text("utf-8"))
    shape = dict(shapes[recipe_of(model).base.model])
    if small:
        shape |= {name: size for name, size in SMALL.items() if name in shape}
        if shape.get("num_key_value_heads", 1) > 1:
            shape["num_key_value_heads"] = shape["num_attention_heads"]
        if "head_dim" in shape:
            shape["head_dim"] = 16
    return AutoConfig.for_model(**shape)


def write_base(config: Any, folder: Path, shard: int = SHARD) -> None:
    """A base with random weights, made one tensor at a time on the GPU if there is one, in bf16."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    device = "cuda" if cuda() else "cpu"
    config.dtype = "bfloat16"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    torch.manual_seed(0)
    written: dict[str, str] = {}
    held: dict[str, Any] = {}
    size = total = number = 0
    tied = set(model.all_tied_weights_keys)

    def flush() -> None:
        nonlocal held, size, number
        number += 1
        name = f"model-{number:05}.safetensors"
        save_file(held, folder / name, metadata={"format": "pt"})
        written.update(dict.fromkeys(held, name))
        held, size = {}, 0

    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        own = {name: weight for name, weight in own.items() if f"{path}.{name}" not in tied}
        if not own:
            continue
        for name, weight in own.items():
            setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device=device)))
        with torch.no_grad():
            model._init_weights(module)  # as the architecture begins its own training
        for name, weight in own.items():
            made = getattr(module, name).detach().to("cpu")
            setattr(module, name, torch.nn.Parameter(weight))  # back to nothing
            if size and size + made.nbytes > shard:
                flush()
            held[f"{path}.{name}"] = made
            size += made.nbytes
            total += made.nbytes
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": written}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def make(job: Job, data: str) -> None:
    """Write base, tokenizer and texts to the job's folder, and what machine this is."""
    import torch

    from warmline.corpus import read
    from warmline.model import scratch
    from warmline.model.template import Template
    from warmline.train.tune import words

    folder = Path(job.folder)
    config = configuration(job.model, job.small)
    talks = list(read.read(data, on_reject=lambda reject: None))
    random.Random(5).shuffle(talks)
    settings = job.settings()
    # As many words as the smallest real vocabulary has: more are not learnt from so little text.
    tokenizer = scratch.make_tokenizer(words(talks), min(32_000, config.vocab_size), settings.prompt.context)
    tokenizer.pad_token = tokenizer.eos_token
    if settings.prompt.template != "chat":
        tokenizer.chat_template = None
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    mended = Template.of(tokenizer, settings.prompt)
    published = Template.of(tokenizer, settings.prompt.model_copy(update={"template": "seed"}))
    rows: dict[str, list[tuple[list[int], list[bool]]]] = {"mended": [], "seed": []}
    for talk in talks:
        found, left_out = mended.fit(talk, settings.prompt.context)
        if len(found) == 1 and not left_out and found[0].targets:
            other = published.encode(talk.messages)
            end = settings.prompt.context  # the seeds cut what is longer
            rows["mended"].append((found[0].ids, found[0].supervised))
            rows["seed"].append((other.ids[:end], other.supervised[:end]))
    if len(rows["mended"]) < settings.train.batch:
        raise SystemExit(
            f"{data} has {len(rows['mended'])} conversations that fit, a step takes {settings.train.batch}"
        )
    numbers = {form: [(ids, [int(s) for s in marks]) for ids, marks in found] for form, found in rows.items()}
    (folder / "texts.json").write_text(json.dumps(numbers))
    tokenizer.save_pretrained(folder)
    write_base(config, folder)
    machine = {"device": "CPU", "memory": None}
    if cuda():  # asked here, so that the process that keeps the score takes no memory of the GPU
        machine = {"device": torch.cuda.get_device_name(), "memory": torch.cuda.mem_get_info()[1]}
    (folder / "machine.json").write_text(json.dumps(machine))


def adapter_of(job: Job, model: Any) -> Any:
    """The recipe's adapter, put on by peft itself."""
    from peft import LoraConfig, get_peft_model

    chosen = job.settings().adapter
    targets = chosen.targets if isinstance(chosen.targets, str) else list(chosen.targets)
    config = LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def quantised(job: Job) -> Any:
    from transformers import BitsAndBytesConfig

    if job.settings().base.load == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half()
    )


def stock_model(job: Job, attention: str, recompute: bool) -> Any:
    """Base and adapter as peft's documentation loads them."""
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job.folder,
        dtype=half(),
        quantization_config=quantised(job),
        device_map={"": "cuda" if cuda() else "cpu"},
        attn_implementation=attention,
    )
    for module in model.modules():
        # bitsandbytes' fast NF4 kernel for CPUs has no backward.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=recompute, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    return adapter_of(job, model)


def causal(lengths: Sequence[int]) -> float:
    """Pairs of a token and one it sees, in texts of these lengths."""
    return sum(length * (length + 1) / 2 for length in lengths)


# ------------------------------------------------------------------------------------------------- contenders
# Each yields an empty Step once it is ready, and then one for every optimizer step.


def warmline(name: str, job: Job) -> Iterator[Step]:
    from warmline.model.template import Encoded
    from warmline.model.texts import Texts
    from warmline.train import loop
    from warmline.train.plan import make_plan, this_machine
    from warmline.train.tune import model_to_train

    alone = ("train.pack=64", "train.share_prefixes=false") if name == "warmline-unpacked" else ()
    settings = job.settings("train.steps=100000", *alone)
    texts = [Encoded(ids, [bool(mark) for mark in marks]) for ids, marks in job.texts()["mended"]]
    machine = this_machine()
    if job.limit:
        machine = replace(machine, memory=job.limit + PROGRAM)
    plan = make_plan(settings, machine, Texts(texts, len(texts), 0, 0))
    chosen = {"pack": plan.pack, "optimizer": plan.optimizer, "recompute": plan.recompute}
    job.plan_of(name).write_text(json.dumps(chosen | {"planned_gb": round(plan.needed / 1e9, 2)}))
    loop.order = lambda step, batch, count, seed, groups=(): [
        i % count for i in range(step * batch, (step + 1) * batch)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trained = loop.Loop(
            model_to_train(settings),
            texts,
            [],
            settings.train.model_copy(update={"pack": plan.pack, "optimizer": plan.optimizer}),
            Path(scratch),
            recompute=plan.recompute,
        )
        trained.model.train()
        one_pack = trained._one_pack
        step = Step()

        def counted(packed: Any, real: bool = True) -> float:
            lengths, paths = packed.layout.lengths, packed.layout.paths
            step.computed += sum(lengths)
            seen = [sum(lengths[part] for part in path) for path in paths]
            step.pairs += sum(own * (all - own / 2 + 0.5) for own, all in zip(lengths, seen, strict=True))
            return one_pack(packed, real)

        trained._one_pack = counted
        number = 0
        while True:
            yield step
            step = Step()
            step.loss, _, step.targets = trained._step(number)
            step.tokens = sum(len(text) for text in trained._chosen(number))
            number += 1


def counts(rows: Sequence[dict[str, Any]]) -> tuple[int, int, float]:
    """Tokens, supervised tokens and pairs of rows before they are padded."""
    lengths = [length for row in rows for length in row.get("seq_lengths") or [len(row["input_ids"])]]
    return sum(lengths), sum(sum(row["replies"]) for row in rows), causal(lengths)


def trl(name: str, job: Job) -> Iterator[Step]:
    """The seed's trainer with its settings, or the best TRL can do; with unsloth's model where that is asked for."""
    if name == "unsloth":
        from unsloth import FastLanguageModel  # first: it changes the others as they are imported
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.utils import is_flash_attn_2_available
    from trl import SFTConfig, SFTTrainer, pack_dataset

    settings, how, own = job.settings(), job.seed, name == "seed"
    context, batch = settings.prompt.context, settings.train.batch
    rows = job.texts()["seed" if own else "mended"]
    data = Dataset.from_list(
        [
            {
                "input_ids": ids,
                "labels": ids if own else [i if mark else -100 for i, mark in zip(ids, marks, strict=True)],
                "replies": [0, *marks[1:]],
            }
            for ids, marks in rows
        ]
    )
    flash = cuda() and is_flash_attn_2_available()
    free = not own and (flash or "falcon" not in job.model)
    size, accumulate = how.rows, how.accumulate
    if own and how.chunks:
        data = pack_dataset(data, context, "wrapped")
    elif free:  # Falcon's attention can be told of packs by flash attention only
        data = pack_dataset(data, max(context, 2048), "bfd")
        size, accumulate = 1, max(1, round(batch * len(data) / len(rows)))
    recompute = own or bool(job.limit)  # seeds' checkpointing: as peft's preparation for 4 and 8 bits sets it
    attention = "flash_attention_2" if flash and (free or how.chunks) else "sdpa"
    if name == "unsloth":
        model, _ = FastLanguageModel.from_pretrained(
            job.folder,
            max_seq_length=max(context, 2048),
            load_in_4bit=settings.base.load == "nf4",
            load_in_8bit=settings.base.load == "int8",
        )
        chosen = settings.adapter
        every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = FastLanguageModel.get_peft_model(
            model,
            r=chosen.rank,
            lora_alpha=chosen.alpha,
            lora_dropout=chosen.dropout,
            target_modules=every if isinstance(chosen.targets, str) else list(chosen.targets),
            use_gradient_checkpointing="unsloth" if recompute else False,
        )
    else:
        model = stock_model(job, attention, recompute)
    if own and how.plain_norms and cuda():  # a CPU does not multiply a norm of one precision with input of another
        for label, module in model.named_modules():
            if "norm" in label:
                module.to(half())
    arguments = SFTConfig(
        output_dir=str(Path(job.folder, "trainer", name)),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        max_steps=100_000,
        learning_rate=settings.train.learning_rate,
        lr_scheduler_type="constant",
        optim=how.optimizer if own and cuda() else "adamw_torch_fused",
        max_grad_norm=settings.train.clip,
        bf16=str(half()) == "torch.bfloat16",
        fp16=str(half()) == "torch.float16",
        gradient_checkpointing=recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_length=None,
        padding_free=free,
        train_sampling_strategy="group_by_length" if own and how.by_length else "sequential",
        use_cpu=not cuda(),
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    turns, step = Turns(), Step()

    class Counted(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            tokens, targets, pairs = inputs.pop("counts")
            step.tokens, step.targets, step.pairs = step.tokens + tokens, step.targets + targets, step.pairs + pairs
            return super().training_step(model, inputs, *more, **named)

    class Log(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            nonlocal step
            done, step = step, Step()
            turns.over(replace(done, loss=float(logs["loss"]), computed=done.tokens))  # type: ignore[arg-type]

    trainer = Counted(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(job.folder),
        callbacks=[Log()],
    )
    collate = trainer.data_collator

    def counting(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**collate(rows), "counts": counts(rows)}

    trainer.data_collator = counting
    yield Step()
    turn = turns.take(trainer.train)
    next(turn)
    yield from turn  # type: ignore[misc]


def peft(name: str, job: Job) -> Iterator[Step]:
    """A plain loop over what transformers and peft give: padded batches, the model's own loss, fused AdamW."""
    import torch

    settings, how = job.settings(), job.seed
    model = stock_model(job, "sdpa", recompute=bool(job.limit))
    device = next(model.parameters()).device
    rows = job.texts()["mended"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=settings.train.learning_rate, fused=True, weight_decay=0.0)
    model.train()
    size, place, step = how.rows, 0, Step()
    while True:
        yield step
        step = Step()
        some = [rows[(place + i) % len(rows)] for i in range(settings.train.batch)]
        place += len(some)
        parts = [some[i : i + size] for i in range(0, len(some), size)]
        for part in parts:
            longest = max(len(ids) for ids, _ in part)
            ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in part])
            seen = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in part])
            marks = torch.tensor([[0, *marks[1:]] + [0] * (longest - len(marks)) for _, marks in part])
            labels = ids.masked_fill(marks == 0, -100)
            with torch.autocast(device.type, dtype=half()):
                loss = model(
                    input_ids=ids.to(device), attention_mask=seen.to(device), labels=labels.to(device), use_cache=False
                ).loss / len(parts)
            loss.backward()
            step.loss += float(loss.detach())
            lengths = [len(ids) for ids, _ in part]
            step.tokens += sum(lengths)
            step.targets += int(marks.sum())
            step.pairs += causal(lengths)
        step.computed = step.tokens
        torch.nn.utils.clip_grad_norm_(trained, settings.train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def product(small: bool) -> tuple[int, int]:
    """Rows and columns of the square product that is timed, and how many make a step."""
    return (512, 8) if small else (8192, 20)


def matmul(name: str, job: Job) -> Iterator[Step]:
    import torch

    size, times = product(job.small)
    one, other = (torch.randn(size, size, device="cuda" if cuda() else "cpu").to(half()) for _ in range(2))
    while True:
        yield Step()
        for _ in range(times):
            one @ other


CONTENDERS = {
    "warmline": warmline,
    "warmline-unpacked": warmline,
    "seed": trl,
    "trl-best": trl,
    "peft": peft,
    "unsloth": trl,
    "matmul": matmul,
}


def contend(name: str, job: Job) -> None:
    """Be one contender: for every number that comes in take as many timed steps, answer with what they came to."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    gpu = cuda()
    if gpu and job.limit:
        share = job.limit / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    steps = CONTENDERS[name](name, job)
    next(steps)
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        next(steps)
        if gpu:
            torch.cuda.synchronize()
        began, taken = time.perf_counter(), []
        for _ in range(int(line)):
            taken.append(next(steps))
        if gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        answer: dict[str, Any] = {"seconds": seconds, "steps": [asdict(step) for step in taken]}
        if gpu:
            free, total = torch.cuda.mem_get_info()
            answer |= {
                "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
                "device": total - free,
            }
            torch.cuda.empty_cache()  # room for the others' turns
        else:
            status = Path("/proc/self/status").read_text("ascii")
            answer["allocated"] = answer["reserved"] = int(status.split("VmHWM:")[1].split()[0]) * 1024
        out.write(json.dumps(answer) + "\n")
        out.flush()
    os._exit(0)


# ------------------------------------------------------------------------------------------------- the contest


class Contestant:
    """One contender's process, started when it is needed."""

    def __init__(self, name: str, job: Job, scratch: Path, stays: bool) -> None:
        self.name, self.job, self.stays = name, job, stays
        self.log = scratch / f"{name}{'-limited' if job.limit else ''}.log"
        self.process: subprocess.Popen[str] | None = None

    def turn(self, steps: int) -> dict[str, Any] | None:
        """Take a turn; None if it gave up, and then `why` says what it said last."""
        try:
            if self.process is None:
                self.start()
            assert self.process
            assert self.process.stdin
            assert self.process.stdout
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except (OSError, json.JSONDecodeError):
            self.stop()
            return None
        if not self.stays:
            self.stop()
        return answer

    def start(self) -> None:
        python = sys.executable
        if self.name == "unsloth":
            python = str(PEERS / "unsloth" / "bin" / "python")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [python, __file__, "--contend", self.name, json.dumps(asdict(self.job))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Its own packages and this Warmline's recipes: in another environment Warmline is not installed.
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "HF_HUB_OFFLINE": "1"},
            )
        assert self.process.stdout
        self.process.stdout.readline()

    def stop(self) -> None:
        if self.process and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()
        self.process = None

    @property
    def why(self) -> str:
        """The last words of a contender that gave up; `no memory` if that was it."""
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        if any(sign in said for sign in ("OutOfMemoryError", "out of memory", "[fit-memory]")):
            return "no memory"
        return " ".join(said.split())[-300:]


def unable(name: str, seed: Seed) -> str | None:
    """Why a contender cannot take part at all."""
    if name != "unsloth":
        return None
    if not seed.unsloth:
        return "unsloth knows no such architecture"
    if not cuda():
        return "unsloth needs a GPU"
    return None if (PEERS / "unsloth" / "bin" / "python").exists() else "not installed: benchmarks/peers.sh unsloth"


def operations(job: Job, steps: Sequence[dict[str, Any]]) -> float:
    """Useful operations of these steps, by the formula above."""
    from transformers import AutoConfig

    from warmline.model.outline import outline

    settings = job.settings()
    sizes = outline(settings.base, settings.adapter)
    config = AutoConfig.from_pretrained(job.folder)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attended = 12 * config.num_hidden_layers * config.num_attention_heads * width
    head = 4 * sizes.width * sizes.vocabulary
    each = 4 * sizes.matrices + 6 * sizes.trained
    return float(sum(s["computed"] * each + s["pairs"] * attended + s["targets"] * head for s in steps))


def rated(
    job: Job, name: str, turns: Sequence[dict[str, Any]], rate: float | None = None, maker: float | None = None
) -> dict[str, Any]:
    """What a contender's turns came to: medians of rates, the highest memory, and what it had planned."""

    def middle(key: str) -> float:
        return statistics.median(sum(step[key] for step in turn["steps"]) / turn["seconds"] for turn in turns)

    speed = statistics.median(operations(job, turn["steps"]) / turn["seconds"] for turn in turns)
    found: dict[str, Any] = {
        "tokens_per_second": round(middle("tokens"), 1),
        "supervised_per_second": round(middle("targets"), 1),
        "seconds_per_step": round(statistics.median(turn["seconds"] / len(turn["steps"]) for turn in turns), 3),
        "allocated_gb": round(max(turn["allocated"] for turn in turns) / 1e9, 2),
        "reserved_gb": round(max(turn["reserved"] for turn in turns) / 1e9, 2),
        "loss": round(turns[-1]["steps"][-1]["loss"], 4),
    }
    if rate:
        found["mfu"] = round(speed / rate, 3)
    if maker:
        found["mfu_of_makers_rate"] = round(speed / maker, 3)
    if (plan := job.plan_of(name)).exists():
        found["plan"] = json.loads(plan.read_text())
    return found


def makers_rate(device: str) -> float | None:
    """The dense 16-bit rate its maker names, if the plan knows the GPU."""
    from warmline.train.plan import known_gpu

    gpu = known_gpu(device)
    return gpu.rate if gpu else None


def compete(model: str, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """One model: make it, let the contenders take turns, then each alone under the limit."""
    folder = root / model
    folder.mkdir(parents=True)
    job = Job(model, str(folder), options.small, None)
    try:
        print(f"{model}: making the base", flush=True)
        command = [sys.executable, __file__, "--make", json.dumps(asdict(job)), "--data", options.data]
        subprocess.run(command, check=True)
        return contest(job, options, root)
    finally:
        shutil.rmtree(folder)


def contest(job: Job, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    machine = json.loads(Path(job.folder, "machine.json").read_text())
    stays = machine["memory"] is None or machine["memory"] >= RESIDENT
    result: dict[str, Any] = {"model": job.model, "device": machine["device"], "contenders": {}}
    reasons = {name: unable(name, job.seed) for name in options.only}
    contestants = {name: Contestant(name, job, root, stays) for name, reason in reasons.items() if not reason}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for number in range(1, options.rounds + 1):
        for name, contestant in contestants.items():
            if reasons[name]:
                continue
            answer = contestant.turn(options.steps)
            if answer is None:
                reasons[name] = contestant.why
                continue
            turns[name].append(answer)
            print(f"{job.model} round {number} {name}: {answer['seconds']:.2f} s", flush=True)
    for contestant in contestants.values():
        contestant.stop()
    rate = None
    if products := turns.pop("matmul", []):
        size, times = product(job.small)
        rate = statistics.median(len(turn["steps"]) * times * 2 * size**3 / turn["seconds"] for turn in products)
        result["bf16_tflops"] = round(rate / 1e12, 3)
    maker = makers_rate(machine["device"])
    result["makers_tflops"] = maker and maker / 1e12
    for name, taken in turns.items():
        if taken:
            result["contenders"][name] = rated(job, name, taken, rate, maker)
    for name, reason in reasons.items():
        if reason:
            result["contenders"].setdefault(name, {})["gave_up"] = reason
    if machine["memory"]:
        limits(job, options, root, machine["memory"], result)
    return result


def limits(job: Job, options: argparse.Namespace, root: Path, memory: float, result: dict[str, Any]) -> None:
    """Each contender once more, alone, with as much memory as the small card has."""
    from warmline.train.plan import GPUS

    card = GPUS[job.seed.card]
    limit = min(card.memory, memory) - PROGRAM
    result["card"], result["limit_gb"] = card.name, round(limit / 1e9, 2)
    for name in options.only:
        if name == "matmul" or unable(name, job.seed):
            continue
        limited = replace(job, limit=limit)
        contestant = Contestant(name, limited, root, stays=False)
        answer = contestant.turn(options.steps)
        found = result["contenders"].setdefault(name, {})
        if answer is None:
            found["fits"] = False if contestant.why == "no memory" else None
            found["limited"] = {"gave_up": contestant.why}
        else:
            found["fits"] = True
            found["limited"] = rated(limited, name, [answer]) | {"device_gb": round(answer["device"] / 1e9, 2)}
        print(f"{job.model} within {limit / 1e9:.1f} GB, {name}: {found['fits']}", flush=True)


def table(result: dict[str, Any]) -> Iterator[str]:
    """One model's result as a person reads it."""
    rate = f", bf16 product {result['bf16_tflops']:g} TFLOP/s" if "bf16_tflops" in result else ""
    maker = f" (maker: {result['makers_tflops']:g})" if result.get("makers_tflops") else ""
    card = f"; fits: {result['card']}" if "card" in result else ""
    yield f"{result['model']} on {result['device']}{rate}{maker}{card}"
    yield f"{'':18}{'tokens/s':>10}{'supervised/s':>14}{'s/step':>9}{'peak GB':>9}{'reserved':>9}{'MFU':>7}  fits"
    for name, row in result["contenders"].items():
        if "tokens_per_second" in row:
            fits = {True: "yes", False: "no", None: "?"}[row["fits"]] if "fits" in row else "-"
            share = f"{row['mfu']:.3f}" if "mfu" in row else "-"
            speeds = f"{row['tokens_per_second']:>10,.0f}{row['supervised_per_second']:>14,.0f}"
            memory = f"{row['allocated_gb']:>9.2f}{row['reserved_gb']:>9.2f}"
            yield f"{name:18}{speeds}{row['seconds_per_step']:>9.2f}{memory}{share:>7}  {fits}"
        if "gave_up" in row:
            yield f"{name:18}{row['gave_up']}"


def default_data() -> str:
    near = Path(os.environ.get("WARMLINE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    file = near / "counsel_chat" / "20200325_counsel_chat.csv"
    return str(file) if file.exists() else "sample"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SEEDS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed optimizer steps in a turn")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--data", default=default_data(), help="conversations: what `warmline data` reads")
    parser.add_argument("--folder", type=Path, default=Path("build/full_size"), help="15 GB of it are used for a while")
    parser.add_argument("--small", action="store_true", help="tiny models of the same kinds, also without a GPU")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULTS.name}")
    parser.add_argument("--contend", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        contend(options.contend[0], Job(**json.loads(options.contend[1])))
    if options.make:
        make(Job(**json.loads(options.make)), options.data)
        return
    if options.small and options.write:
        parser.error("--write keeps full-size results only")
    if not (options.small or cuda()):
        print("no GPU here: full-size models need one (--small runs the same path on a CPU)", file=sys.stderr)
        raise SystemExit(2)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for model in SEEDS if options.model == "all" else [options.model]:
            results.append(compete(model, options, Path(scratch)))
            print("\n".join(table(results[-1])), flush=True)
    whole = {"data": Path(options.data).name, "small": options.small, "rounds": options.rounds, "steps": options.steps}
    text = json.dumps(whole | {"models": results})
    if options.write:
        RESULTS.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
