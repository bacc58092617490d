"""What a training step costs: ours beside other trainers, the same base, conversations, adapter and optimizer steps.

    python benchmarks/train_step.py [--vocab 32000 128000] [--data alone|grouped] [--rounds 3] [--only NAME ...]

Every contender is a process of its own and they take turns, so a busy or warming machine is the same for all. A turn is
`--steps` optimizer steps of 16 conversations to warm up, and as many that are timed. Lengths are those of counsel-chat;
`grouped` has a system message and questions with eight answers each. Medians over the rounds; the last line is JSON.

    warmline          packed, lean, loss in pieces            warmline-shared   the same, common beginnings once
    warmline-plain    packed, but peft's layers, whole logits  matmul            the machine's bf16 product, flop/s
    trl-seeds         as the seeds' notebooks do it: padded 8 × 2, loss on all tokens, gradient checkpointing
    trl-best          the fastest found: loss on replies only, one conversation at a time, no checkpointing
    llamafactory      packed by its own packer (neat_packing), no checkpointing
    torchtune         its recipe for one device, packed by its own packer, no checkpointing
    litgpt            its own loop, weights in bf16, one conversation at a time

TRL is no dependency of Warmline: pip install "trl==1.16.*". The last three need packages of other versions than ours:
benchmarks/peers.sh puts each into an environment of its own. Useful arithmetic counts no padding, no recomputation and
no logits that carry no loss. `--clock cpu` takes a process's own CPU time, for a machine that others use too (one core
only: several cores wait for each other actively).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import queue
import random
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, PACK, RANK, LAYERS, WIDTH, INNER, HEADS = 16, 2048, 16, 4, 1024, 2816, 16


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


def make_base(folder: Path | str, vocabulary: int) -> None:
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
# Each yields once it is ready, and then after every round: the mean loss of its steps.


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
            loss = 0.0
            for _ in range(options.steps):
                loss += trained._step(step)[0] / options.steps
                step += 1


def trl(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
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
        logging_steps=options.steps,
        lr_scheduler_type="constant",
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )

    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[(turns := Turns()).callback()],
    )
    yield from turns.take(trainer.train)


class Turns:
    """Another's training in a thread of its own, which stops after every round until it is our turn again."""

    def __init__(self) -> None:
        self.losses: queue.Queue[float] = queue.Queue()
        self.go = threading.Semaphore(0)

    def over(self, loss: float) -> None:
        """A round is over: called from within the training."""
        self.losses.put(loss)
        self.go.acquire()

    def take(self, train: Callable[[], Any]) -> Iterator[float]:
        def run() -> None:
            self.go.acquire()
            try:
                train()
            except BaseException:
                traceback.print_exc()
            os._exit(1)

        threading.Thread(target=run, daemon=True).start()
        yield 0.0
        while True:
            self.go.release()
            yield self.losses.get()

    def callback(self) -> Any:
        """For trainers made of transformers' own: they log once a round."""
        from transformers import TrainerCallback

        class Log(TrainerCallback):
            def on_log(callback, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
                self.over(float(logs["loss"]))

        return Log()


def llamafactory(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    """Its fastest setting: packed by its own packer, told apart by attention, no checkpointing."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    import transformers.utils
    from datasets import Dataset, DatasetDict

    transformers.utils.is_torchaudio_available()  # remembers that it is not; then a stand-in, for an import without use
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer

    packer = PackedSupervisedDatasetProcessor(
        template=None,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        processor=None,
        data_args=types.SimpleNamespace(cutoff_len=PACK - 1, neat_packing=True),  # it adds one
    )
    packer._encode_data_example = lambda prompt, **more: (prompt[0][0], prompt[0][1])
    rows = [(ids, [-100] * prompt + ids[prompt:]) for ids, prompt in conversations(options)]
    nothing = [None] * len(rows)
    columns = {"_system": nothing, "_tools": nothing, "_images": nothing, "_videos": nothing, "_audios": nothing}
    packs = packer.preprocess_dataset({"_prompt": [[row] for row in rows], "_response": [[0]] * len(rows), **columns})
    packs = {key: packs[key] for key in ("input_ids", "attention_mask", "position_ids", "labels")}
    DatasetDict({"train": Dataset.from_dict(packs)}).save_to_disk(str(folder / "llamafactory-data"))
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(folder),
        "dataset": "packed",
        "tokenized_path": str(folder / "llamafactory-data"),
        "template": "empty",
        "packing": True,
        "neat_packing": True,
        "cutoff_len": PACK,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": 16,
        "lora_dropout": options.dropout,
        "lora_target": "all",
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
        "bf16": True,
        "use_cpu": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": -(-len(packs["labels"]) // options.steps),
        "max_steps": 10_000,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "disable_shuffling": True,
        "logging_steps": options.steps,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": str(folder / name),
    }
    if options.load == "nf4":
        settings |= {"quantization_bit": 4, "quantization_method": "bnb", "double_quantization": True}
    turns = Turns()
    yield from turns.take(lambda: run_exp(settings, [turns.callback()]))


def torchtune(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    """Its recipe for LoRA on one device, packed by its own packer, without checkpointing."""
    from omegaconf import OmegaConf
    from torchtune.datasets import PackedDataset

    [file] = [f for f in importlib.metadata.files("torchtune") if f.name == "lora_finetune_single_device.py"]
    published = runpy.run_path(str(file.locate()))["LoRAFinetuneRecipeSingleDevice"]

    class Recipe(published):
        def save_checkpoint(self, epoch: int) -> None:
            """An epoch is a round here, and rounds are timed."""

    turns = Turns()
    rows = [{"tokens": ids, "labels": [-100] * prompt + ids[prompt:]} for ids, prompt in conversations(options)]
    packs = PackedDataset(rows, max_seq_len=PACK)
    # It does not step at an epoch's end: where packs cannot be shared out evenly, a round is one step.
    steps = 1 if len(packs) % options.steps else options.steps
    losses: list[float] = []

    def log_dict(values: dict[str, Any], step: int) -> None:
        losses.append(float(values["loss"]))
        if len(losses) % steps == 0:
            turns.over(sum(losses[-steps:]) / steps)

    # Its settings name what they use; these are ours.
    here = types.ModuleType("here")
    here.tokenizer = lambda: types.SimpleNamespace(pad_id=0, max_seq_len=PACK)
    here.packs = lambda tokenizer, packed: packs
    here.logger = lambda: types.SimpleNamespace(log_config=lambda cfg: None, log_dict=log_dict, close=lambda: None)
    sys.modules["here"] = here
    settings = {
        "output_dir": str(folder.parent / name),
        "device": "cpu",
        "dtype": "bf16",
        "seed": 1,
        "shuffle": False,
        "batch_size": 1,
        "epochs": 10_000,
        "max_steps_per_epoch": None,
        "gradient_accumulation_steps": len(packs) // steps,
        "clip_grad_norm": 1.0,
        "compile": False,
        "resume_from_checkpoint": False,
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "tokenizer": {"_component_": "here.tokenizer"},
        "dataset": {"_component_": "here.packs", "packed": True},
        "metric_logger": {"_component_": "here.logger"},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "lr": 2e-4, "weight_decay": 0.0},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 0,
        },
        "model": {
            "_component_": "torchtune.models.llama2.lora_llama2",
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "apply_lora_to_output": False,
            "vocab_size": options.vocab,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "num_kv_heads": HEADS,
            "embed_dim": WIDTH,
            "intermediate_dim": INNER,
            "max_seq_len": PACK,
            "norm_eps": 1e-6,
            "lora_rank": RANK,
            "lora_alpha": 16,
            "lora_dropout": options.dropout,
            "quantize_base": options.load == "nf4",
        },
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder),
            "checkpoint_files": ["model.safetensors"],
            "output_dir": str(folder.parent / name),
            "model_type": "LLAMA2",
        },
    }
    recipe = Recipe(OmegaConf.create(settings))
    recipe.setup(OmegaConf.create(settings))
    yield from turns.take(recipe.train)


def litgpt(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    """Its own loop, one conversation at a time, which is faster here than padded. Weights in bf16, whatever --load."""
    import lightning
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.finetune import lora
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    config = Config(
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        intermediate_size=INNER,
        vocab_size=options.vocab,
        padded_vocab_size=options.vocab,
        block_size=PACK,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
        lora_r=RANK,
        lora_alpha=16,
        lora_dropout=options.dropout,
        lora_query=True,
        lora_key=True,
        lora_value=True,
        lora_projection=True,
        lora_mlp=True,
    )
    turns = Turns()
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    fabric.log_dict = lambda metrics, step: turns.over(metrics["loss"]) if "loss" in metrics else None
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(folder / "model.safetensors"))
    with fabric.init_module():
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    model.load_state_dict(weights, strict=False)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0, fused=True))

    def loader(rows: list[tuple[list[int], int]]) -> Any:
        count = torch.ones(1, dtype=torch.long)
        counts = {"raw": count, "raw_plus_prompt_template": count}
        made = [
            {
                "input_ids": torch.tensor(ids),
                "labels": torch.tensor([-100] * prompt + ids[prompt:]),
                "token_counts": counts,
            }
            for ids, prompt in rows
        ]
        return torch.utils.data.DataLoader(made, batch_size=1)

    rows = conversations(options)
    lora.Tokenizer = lambda place: None
    train = TrainArgs(
        global_batch_size=BATCH,
        micro_batch_size=1,
        epochs=10_000,
        log_interval=BATCH * options.steps,
        max_seq_length=PACK,
    )
    yield from turns.take(
        lambda: lora.fit(
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            train_dataloader=loader(rows),
            val_dataloader=loader([(rows[0][0][:16], 8)]),
            devices=1,
            checkpoint_dir=folder,
            out_dir=folder.parent / name,
            train=train,
            eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False),
            data=None,
        )
    )


def matmul(name: str, folder: Path, options: argparse.Namespace) -> Iterator[float]:
    import torch

    one, other = (torch.randn(size).to(torch.bfloat16) for size in ((PACK, WIDTH), (INNER, WIDTH)))
    while True:
        yield 0.0
        for _ in range(64):
            torch.nn.functional.linear(one, other)


CONTENDERS = {
    "warmline": warmline,
    "warmline-shared": warmline,
    "warmline-plain": warmline,
    "trl-seeds": trl,
    "trl-best": trl,
    "llamafactory": llamafactory,
    "torchtune": torchtune,
    "litgpt": litgpt,
    "matmul": matmul,
}
PEERS = Path(__file__).parents[1] / "build" / "peers"
"""Where peers.sh puts those that want packages of other versions than ours."""
APART = ("llamafactory", "torchtune", "litgpt")


def contend(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Be one contender: take a turn for every line that comes in, answer with seconds and peak memory."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    turns = CONTENDERS[name](name, folder, options)
    next(turns)
    while True:
        out.write("ready\n")
        out.flush()
        if not sys.stdin.readline():
            os._exit(0)
        next(turns)  # warms up: while others had their turns, its code and data left the caches and partly the memory
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps in a turn, timed")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
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
        base = f"{scratch}/base"
        subprocess.run(
            [sys.executable, "-c", f"import train_step; train_step.make_base({base!r}, {options.vocab})"],
            cwd=Path(__file__).parent,
            check=True,
            stderr=subprocess.DEVNULL,
        )
        times: dict[str, list[float]] = {name: [] for name in options.only}
        peaks: dict[str, float] = {}
        processes: dict[str, subprocess.Popen[str]] = {}
        for name in options.only:
            python = sys.executable
            if name in APART:
                python = str(PEERS / name / "bin" / "python")
                if not Path(python).exists():
                    print(f"{name} is not here: benchmarks/peers.sh {name}")
                    del times[name]
                    continue
            command = [python, __file__, *sys.argv[1:], "--vocab", str(options.vocab)]
            command += ["--contend", name, base]
            with open(f"{scratch}/{name}.log", "w") as log:
                processes[name] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
            if processes[name].stdout.readline() != "ready\n":
                print(f"{name} does not run here: " + Path(f"{scratch}/{name}.log").read_text()[-600:])
                del processes[name], times[name]
        for number in range(options.rounds):
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
                times[name].append(answer["seconds"])
                print(f"round {number + 1} {name}: {answer['seconds']:.2f} s, loss {answer['loss']:.4f}", flush=True)
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
