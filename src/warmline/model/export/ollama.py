"""A Modelfile: how Ollama is to run a GGUF, with the run's chat format and a safety prompt. Knows no Ollama.

Ollama runs the bare model. Screening, vetted replies and crisis lines are Warmline's own and do not come along; the
prompt asks for what they would have done, and a model may not do it.
"""

from __future__ import annotations

from typing import Any

from warmline import recipe
from warmline.errors import ModelError
from warmline.model.export.vocabulary import adds_bos
from warmline.model.template import Template

SAFETY_PROMPT = """\
You are a listening companion, an AI and not a person, a therapist or a doctor. Listen, say back what you heard, and \
ask one open question at a time. Keep it short, plain and warm. Never diagnose, never advise on medication, never \
name or hint at a way to hurt oneself or others, never agree that someone is worthless or a burden.
If someone may be thinking of suicide or self-harm, or is in danger: say kindly that you heard it, ask directly \
whether they are safe now, and tell them that they can reach a person at once, at their local emergency number or \
through findahelpline.com. If it is happening now, the emergency number comes first, and somebody staying with them. \
Encourage them to tell one person they trust. Do not end the conversation and do not only refuse."""


def system_prompt(settings: recipe.Recipe) -> str:
    """The run's own system message, if it has one, and the safety prompt after it."""
    return f"{settings.prompt.system}\n\n{SAFETY_PROMPT}".strip()


def go_template(template: Template) -> str:
    """The run's chat format in the template language of Ollama."""
    parts, tokenizer = template.parts, template.tokenizer
    bos = tokenizer.bos_token or ""
    # Where the file says that llama.cpp puts the beginning-of-text token, the format must not bring a second one.
    start = bos if bos and adds_bos(tokenizer) else ""
    prompt = parts.to_reply.removesuffix(" ")  # a space before the reply is the reply's own
    return (
        "{{ $first := true }}"
        "{{ if .System }}" + parts.begin_system.removeprefix(start) + "{{ .System }}" + parts.system_to_user
        + "{{ else }}" + parts.begin_user.removeprefix(start)
        + "{{ end }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}{{ if not $first }}' + parts.reply_to_user + "{{ end }}{{ $first = false }}"
        "{{ .Content }}" + prompt + '{{ else if eq .Role "assistant" }}' + parts.to_reply[len(prompt) :]
        + "{{ .Content }}{{ end }}{{ end }}"
    )  # fmt: skip


def modelfile(file: str, settings: recipe.Recipe, template: Template, licence: str) -> str:
    """The Modelfile for the GGUF named `file`, which lies beside it.

    Raises:
        ModelError: a text has three quotes in a row, which end a text there and have no other spelling.
    """
    asked = settings.evaluate
    stops = [template.tokenizer.convert_ids_to_tokens(i) for i in template.end_ids]
    values: list[tuple[str, Any]] = [
        ("num_ctx", settings.prompt.context),
        ("temperature", asked.temperature),
        ("top_p", asked.top_p),
        ("repeat_penalty", asked.repetition_penalty),
        *(("stop", f'"{stop}"') for stop in stops),
    ]
    quotes = '"""'
    if any(quotes in text for text in (settings.prompt.system, licence)):
        raise ModelError(
            "a Modelfile cannot hold three double quotes in a row",
            code="export-unsupported",
            hint="take them out of prompt.system or of the licence, or leave out --ollama",
        )
    return "\n".join(
        [
            "# ollama create NAME -f Modelfile",
            "# Ollama runs the model alone, without Warmline's screening and vetted replies: not for people in need.",
            f"FROM ./{file}",
            f"TEMPLATE {quotes}{go_template(template)}{quotes}",
            f"SYSTEM {quotes}{system_prompt(settings)}{quotes}",
            *(f"PARAMETER {name} {value}" for name, value in values),
            f"LICENSE {quotes}{licence}{quotes}",
            "",
        ]
    )
