"""A tokenizer.json as the vocabulary of a GGUF file: byte-level BPE and SentencePiece. Knows nothing of weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf

from warmline.errors import ModelError
from warmline.runs import read_json

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITTERS = {
    ("words",): "gpt-2",
    ("digit", "words"): "smollm",
    ("punctuation", "words", "digits", "[0-9][0-9][0-9]"): "falcon",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",): "qwen2",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",): "llama-bpe",
}
"""How a text is cut before merging, in order → llama.cpp's name for it."""


def add_vocabulary(writer: Any, folder: Path, size: int, template: Any) -> None:
    """Write the tokens of `folder`'s tokenizer, filled up to the model's `size`, and the chat format.

    Raises:
        ModelError: the tokenizer is of a kind that llama.cpp does not have.
    """
    state = read_json(folder / "tokenizer.json")
    model, tokenizer = state["model"], template.tokenizer
    if model["type"] != "BPE":
        raise _unknown(f"a `{model['type']}` vocabulary")
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
        if model["byte_fallback"] and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[i] = gguf.TokenType.BYTE
    for added in state["added_tokens"]:
        special = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.UNKNOWN if added["content"] == model.get("unk_token") else special
    merges = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]]
    if model["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # SentencePiece joins the best-scored pair first: the earlier the merge, the better. Letters alone come last.
        scores = dict.fromkeys(tokens, -1e6)
        for rank, merge in reversed(list(enumerate(merges))):
            scores["".join(merge)] = -float(rank)
        writer.add_token_list(tokens)
        writer.add_token_scores([scores[token] for token in tokens])
        writer.add_add_space_prefix(_adds_space(state))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitter(state["pre_tokenizer"]))
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_types(types)
    for i, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (template.end_id, writer.add_eot_token_id),
    ):
        if i is not None:
            add(i)
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_chat_template(plain_jinja(tokenizer.chat_template))


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its beginning-of-text token before a text unasked."""
    ids = tokenizer("a").input_ids
    return bool(ids and ids[0] == tokenizer.bos_token_id)


def _adds_space(state: dict[str, Any]) -> bool:
    """Whether SentencePiece puts a space before every text."""
    normalizer, pre = state.get("normalizer") or {}, state.get("pre_tokenizer") or {}
    prepends = any(step.get("type") == "Prepend" for step in normalizer.get("normalizers", [normalizer]))
    return prepends or pre.get("prepend_scheme", "never") != "never"


def splitter(pre: dict[str, Any] | None) -> str:
    """llama.cpp's name for the way a byte-level tokenizer cuts text before merging."""
    steps: list[str] = []
    for step in (pre or {}).get("pretokenizers", [pre or {}]):
        kind = step.get("type")
        if kind == "ByteLevel":
            steps += ["words"] if step.get("use_regex", True) else []
        elif kind == "Digits":
            steps.append("digit" if step["individual_digits"] else "digits")
        elif kind == "Split":
            steps.append(step["pattern"].get("Regex") or step["pattern"]["String"])
        else:
            steps.append(str(kind).lower())
    if tuple(steps) not in SPLITTERS:
        raise _unknown(f"a vocabulary that cuts text by {' then '.join(steps) or 'nothing'}")
    return SPLITTERS[tuple(steps)]


def plain_jinja(template: str) -> str:
    """A chat template without the tags that only transformers knows; it renders the same text."""
    tag = r"(\{%%[-+]?\s*)%s(\s*[-+]?%%\})"
    opened = re.sub(tag % "generation", r"\1if true\2", template)
    return re.sub(tag % "endgeneration", r"\1endif\2", opened)


def _unknown(what: str) -> ModelError:
    return ModelError(
        f"the base has {what}, which GGUF does not know",
        code="export-unsupported",
        hint="export it as `merged` or `adapter` instead",
    )
