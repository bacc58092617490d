"""The full-size benchmark, made tiny: its bases load as real ones do, and every contender really trains on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
full_size = pytest.importorskip("full_size")

from warmline.model import load
from warmline.model.outline import outline
from warmline.train import loop
from warmline.train.plan import GPUS


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, full_size.Job]:
    made = {}
    for model in full_size.SEEDS:
        folder = tmp_path_factory.mktemp(model)
        made[model] = full_size.Job(model, str(folder), small=True, limit=None)
        full_size.make(made[model], "sample")
    return made


@pytest.fixture(autouse=True)
def our_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender changes the loop's order in its process; here it is put back."""
    monkeypatch.setattr(loop, "order", loop.order)


@pytest.mark.parametrize("model", full_size.SEEDS)
def test_a_shape_is_the_bases_own(model: str) -> None:
    published = full_size.recipe_of(model)
    job = full_size.Job(model, "nowhere", small=False, limit=None)
    assert job.settings() == published.model_copy(update={"base": job.settings().base})  # only where the base lies
    config = full_size.configuration(model, small=False)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    total = sum(weight.numel() for weight in whole.parameters())
    assert total == outline(published.base, published.adapter).total > 2.5e9


@pytest.mark.parametrize("model", full_size.SEEDS)
def test_a_base_made_by_tensors_is_whole(jobs: dict[str, full_size.Job], model: str, tmp_path: Path) -> None:
    """In shards, in bf16, begun as its architecture begins, head and words tied where it ties them."""
    config = full_size.configuration(model, small=True)
    full_size.write_base(config, tmp_path, shard=100_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    names, sizes = [], []
    for file in files:
        with safe_open(file, "pt") as held:
            names += held.keys()
            tensors = [held.get_tensor(name) for name in held.keys()]  # noqa: SIM118
        assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
        sizes.append(sum(tensor.nbytes for tensor in tensors))
        assert sizes[-1] <= 100_000 or len(tensors) == 1
    assert len(names) == len(set(names))
    loaded, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert sum(weight.numel() for weight in loaded.parameters()) * 2 == sum(sizes)
    norms = [weight for name, weight in loaded.named_parameters() if "norm" in name and name.endswith("weight")]
    assert norms
    begun = 0.0 if model == "gemma-2b" else 1.0  # Gemma's norms multiply by one more than their weight
    assert all(bool((weight == begun).all()) for weight in norms)
    wide = [weight.detach() for weight in loaded.parameters() if weight.dim() == 2]
    assert all(0.015 < float(weight.float().std()) < 0.025 for weight in wide)
    assert not any(torch.equal(a, b) for a, b in pairwise(wide[2:]) if a.shape == b.shape)


@pytest.mark.parametrize("model", full_size.SEEDS)
def test_both_forms_are_of_the_same_conversations(jobs: dict[str, full_size.Job], model: str) -> None:
    job = jobs[model]
    texts, settings = job.texts(), job.settings()
    assert len(texts["mended"]) == len(texts["seed"]) >= settings.train.batch
    tokenizer = load.load_tokenizer(settings.base)
    assert len(tokenizer) <= full_size.SMALL["vocab_size"]
    for (ids, marks), (other, others) in list(zip(texts["mended"], texts["seed"], strict=True))[:20]:
        assert len(ids) == len(marks)
        assert len(other) == len(others)
        assert max(len(ids), len(other)) <= settings.prompt.context
        assert 0 < sum(marks) < len(marks)
        assert ids[-1] == tokenizer.eos_token_id
        assert marks[-1]
        words, same = (
            "".join(tokenizer.decode([i for i, mark in zip(row, on, strict=True) if mark]).split())
            for row, on in ((ids, marks), (other, others))
        )
        for ending in (tokenizer.eos_token, "<eos>", "</s>", "<end_of_turn>"):  # spelt or meant
            words, same = words.replace(ending, ""), same.replace(ending, "")
        assert same
        assert words.startswith(same)
        assert len(other) == settings.prompt.context or same == words


@pytest.mark.parametrize(
    ("model", "name"),
    [
        # 64 conversations a step take their time.
        pytest.param(model, name, marks=[pytest.mark.slow] if model == "falcon-7b" else [])
        for name in ("warmline", "warmline-unpacked", "peft")
        for model in full_size.SEEDS
    ],
)
def test_a_contender_takes_the_same_steps(jobs: dict[str, full_size.Job], model: str, name: str) -> None:
    """The same conversations, tokens and loss, whatever is packed or padded; only what is computed differs."""
    job = jobs[model]
    ready, first, second = islice(full_size.CONTENDERS[name](name, job), 3)
    assert asdict(ready) == asdict(full_size.Step())
    rows, batch = job.texts()["mended"], job.settings().train.batch
    for number, step in enumerate((first, second)):
        some = [rows[i % len(rows)] for i in range(number * batch, (number + 1) * batch)]
        assert step.tokens == sum(len(ids) for ids, _ in some)
        assert step.targets == sum(sum(marks[1:]) for _, marks in some)
        assert step.computed == step.tokens or (name == "warmline" and step.computed < step.tokens)
        assert step.pairs == full_size.causal([len(ids) for ids, _ in some]) or name == "warmline"
        assert abs(step.loss - 7.62) < 0.1  # ln 2048: nothing is known yet
    if name != "peft":
        assert json.loads(job.plan_of(name).read_text())["optimizer"] == "adamw"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed", "trl-best"])
@pytest.mark.parametrize("model", full_size.SEEDS)
def test_trl_takes_part(jobs: dict[str, full_size.Job], model: str, name: str) -> None:
    """In a process of its own: its trainer runs in a thread that ends with the process."""
    command = [sys.executable, full_size.__file__, "--contend", name, json.dumps(asdict(jobs[model]))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as p:
        out, said = p.communicate("1\n")
    ready, line = out.splitlines() or [said[-2000:], ""]
    assert ready == "ready"
    [step] = json.loads(line)["steps"]
    settings = jobs[model].settings()
    assert 0 < step["targets"] < step["tokens"] == step["computed"]
    assert abs(step["loss"] - 7.62) < 0.2
    rows = jobs[model].texts()["seed" if name == "seed" else "mended"]
    mean = sum(len(ids) for ids, _ in rows) / len(rows)
    assert 0.4 < step["tokens"] / mean / settings.train.batch < 2.5  # about as many conversations as a step of ours


def test_counts_are_of_texts_not_of_rows() -> None:
    plain = {"input_ids": [1] * 6, "replies": [0, 0, 1, 1, 1, 1]}
    packed = {"input_ids": [1] * 6, "replies": [0, 0, 1, 0, 1, 1], "seq_lengths": [3, 3]}
    assert full_size.counts([plain]) == (6, 4, 21.0)
    assert full_size.counts([packed]) == (6, 3, 12.0)
    assert full_size.counts([plain, packed]) == (12, 7, 33.0)


def test_operations_are_those_of_the_matrices(jobs: dict[str, full_size.Job]) -> None:
    """Counted by hand for the small Llama: four matrices of attention, three of the block, two layers."""
    width, inner, words, rank = 64, 160, 2048, 64
    frozen = 2 * (4 * width * width + 3 * width * inner)
    adapter = 2 * 2 * 2 * width * rank  # q and v
    steps = [{"computed": 10, "targets": 3, "pairs": 55.0}, {"computed": 1, "targets": 0, "pairs": 1.0}]
    expected = 11 * (4 * frozen + 6 * adapter) + 56 * 12 * 2 * 64 + 3 * 4 * width * words
    assert full_size.operations(jobs["llama-2-7b"], steps) == expected


@pytest.mark.slow
def test_the_whole_run_ends_with_json(tmp_path: Path) -> None:
    command = [sys.executable, full_size.__file__, "--small", "--model", "gemma-2b", "--data", "sample"]
    command += ["--rounds", "1", "--steps", "1", "--only", "peft", "unsloth", "matmul", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    [model] = result["models"]
    assert model["contenders"]["peft"]["tokens_per_second"] > 0
    assert 0 < model["contenders"]["peft"]["mfu"] < 1
    assert model["contenders"]["unsloth"] == {"gave_up": "unsloth needs a GPU"}
    assert "matmul" not in model["contenders"]
    assert not list(tmp_path.iterdir())  # the base is gone


def test_a_contender_that_gives_up_says_why(jobs: dict[str, full_size.Job], tmp_path: Path) -> None:
    broken = full_size.Job("gemma-2b", str(tmp_path), small=True, limit=None)  # an empty folder
    contestant = full_size.Contestant("peft", broken, tmp_path, stays=True)
    assert contestant.turn(1) is None
    assert "texts.json" in contestant.why or "config.json" in contestant.why
    contestant.log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate")
    assert contestant.why == "no memory"


@pytest.mark.parametrize(("memory", "stays"), [(16e9, False), (141e9, True)])
def test_what_fits_is_what_ran_under_the_limit(
    jobs: dict[str, full_size.Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: float, stays: bool
) -> None:
    """As on a GPU, its processes played: one does not fit, one breaks, on a small one each ends after its turn."""
    played: list[tuple[str, bool, float | None]] = []

    class Played:
        why = "something broke"

        def __init__(self, name: str, job: full_size.Job, scratch: Path, stays: bool) -> None:
            self.name, self.job = name, job
            played.append((name, stays, job.limit))

        def turn(self, steps: int) -> dict[str, object] | None:
            if self.name == "trl-best" or (self.name == "seed" and self.job.limit):
                self.why = "no memory" if self.name == "seed" else self.why
                return None
            step = {"loss": 2.0, "tokens": 100, "computed": 80, "targets": 40, "pairs": 900.0}
            taken = {"seconds": steps * 0.5, "steps": [step] * steps}
            return taken | {"allocated": 4e9, "reserved": 5e9, "device": 6e9}

        def stop(self) -> None: ...

    job = jobs["gemma-2b"]
    machine = {"device": "Tesla T4" if memory == 16e9 else "NVIDIA H200", "memory": memory}
    before = Path(job.folder, "machine.json").read_text()
    monkeypatch.setattr(full_size, "Contestant", Played)
    names = ["warmline", "seed", "trl-best", "matmul"]
    options = Namespace(only=names, rounds=3, steps=2)
    try:
        Path(job.folder, "machine.json").write_text(json.dumps(machine))
        result = full_size.contest(job, options, tmp_path)
    finally:
        Path(job.folder, "machine.json").write_text(before)
    assert [kept for _, kept, limit in played if limit is None] == [stays] * 4
    limit = GPUS["t4"].memory - full_size.PROGRAM
    assert [row for row in played if row[2]] == [(name, False, limit) for name in names[:3]]
    assert result["makers_tflops"] == (65 if memory == 16e9 else 989)
    found = result["contenders"]
    assert (found["warmline"]["fits"], found["seed"]["fits"], found["trl-best"]["fits"]) == (True, False, None)
    assert found["trl-best"]["gave_up"] == "something broke"
    assert found["warmline"]["tokens_per_second"] == 200
    assert found["warmline"]["supervised_per_second"] == 80
    assert found["warmline"]["seconds_per_step"] == 0.5
    useful = full_size.operations(job, [{"computed": 80, "targets": 40, "pairs": 900.0}]) / 0.5
    assert found["warmline"]["mfu"] == round(useful / (2 * 8 * 2 * 512**3), 3)  # eight products of 512 in half a second
    text = "\n".join(full_size.table(result))
    assert [line.split()[-1] for line in text.splitlines()[2:4]] == ["yes", "no"]


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, full_size.__file__], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "--small" in done.stderr
