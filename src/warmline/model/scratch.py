"""A base from nothing: learn a byte-level BPE tokenizer from text, start a small Llama. Used for the embedded base."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from warmline import recipe
from warmline.model.load import quiet

CONTROL = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|reply|>")

CHAT_TEMPLATE = (
    "<|begin|>"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}<|system|>{{ message.content }}<|end|>"
    "{%- elif message.role == 'user' -%}<|user|>{{ message.content }}<|end|>"
    "{%- else -%}<|reply|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|reply|>{%- endif -%}"
)
"""The generation marks show trainers that read them which tokens are the model's own."""


def make_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary of `vocabulary` entries, control tokens included. Any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=CONTROL[0],
        eos_token=CONTROL[1],
        additional_special_tokens=list(CONTROL[2:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def configuration(shape: recipe.NewBase, vocabulary: int) -> LlamaConfig:
    """The small Llama of this shape, without its control tokens' ids."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.inner,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        dtype="float32",
    )


def make_base(shape: recipe.NewBase, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> None:
    """Write an untrained Llama of this shape and its tokenizer to `folder`, in fp32."""
    config = configuration(shape, len(tokenizer))
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(seed)
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
