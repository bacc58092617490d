"""The card beside every exported form: what it is, where from, what it may be used for, how it was checked.

Made from the run's files only, in the hub's format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from warmline import __version__, recipe
from warmline.model import load

LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the cards of one export say."""

    name: str
    base: str
    base_on_hub: bool
    base_licence: str
    data_licences: list[str]
    language: str
    conversations: int | None
    safety: dict[str, Any]
    trained: dict[str, Any]
    measured: dict[str, Any] | None
    load: str
    system: str
    verified: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def licences(self) -> list[str]:
        """Of base and data together, each once."""
        return list(dict.fromkeys([self.base_licence, *self.data_licences]))


def licence_of_base(base: recipe.Base) -> str:
    """What the base's own card states, or `unknown`. Asks no network."""
    where = load.locate(base.model)
    card: Path | None = where / "README.md" if isinstance(where, Path) else None
    if card is None:
        cached = try_to_load_from_cache(str(where), "README.md", revision=base.revision)
        card = Path(cached) if isinstance(cached, str) else None
    if card is None or not card.is_file():
        return "unknown"
    _, opening, rest = card.read_text("utf-8", "replace").partition("---\n")
    head, closing, _ = rest.partition("\n---")
    try:
        found = yaml.safe_load(head) if opening and closing else None
    except yaml.YAMLError:
        return "unknown"
    stated = found.get("license") if isinstance(found, dict) else None
    if stated == "other" and isinstance(found, dict):
        stated = found.get("license_name") or stated
    return str(stated or "unknown")


def head(form: str, facts: Facts) -> dict[str, Any]:
    """The card's metadata. The hub knows a list of lower-case licences; a mixture is `other`, with its name."""
    names = list(dict.fromkeys(name.lower() for name in facts.licences))
    single = len(names) == 1 and " " not in names[0] and names[0] != "unknown"
    return {
        "license": names[0] if single else "other",
        **({} if single else {"license_name": " AND ".join(facts.licences)}),
        **({"language": [facts.language]} if facts.language != "any" else {}),
        "library_name": LIBRARY[form],
        "pipeline_tag": "text-generation",
        **({"base_model": facts.base} if facts.base_on_hub else {}),
        "tags": ["counselling", "mental-health", "warmline", *(["lora"] if form == "adapter" else [])],
    }


def safety_lines(safety: dict[str, Any]) -> list[str]:
    """What the evaluation found, and who went on in spite of it."""
    if safety["state"] == "not evaluated":
        return ["**Not evaluated**: whether this model is less safe than its base was not measured."]
    lines = ["Warmline's evaluation found no significant loss of safety against the base."]
    if safety["state"] == "refused":
        lines = [
            "**Warmline's evaluation found this model less safe than its base.** "
            + (f"Exported all the same by decision of {safety['override']}. " if safety["override"] else "")
            + "What was found:",
            "",
            *(f"- {reason}" for reason in safety["reasons"]),
        ]
    if lost := safety.get("forms"):
        signed = f"; exported all the same by decision of {safety['override']}" if safety.get("override") else ""
        lines += ["", f"Forms that became less safe than the tuned model, not to be used{signed}:", ""]
        lines += [f"- {form}: {'; '.join(reasons)}" for form, reasons in lost.items()]
    measured = ", ".join(safety.get("measured", ())) or "none"
    return [*lines, "", f"Quantised forms whose safety was measured by themselves: {measured}."]


def render(form: str, facts: Facts) -> str:
    """The card of one form, as Markdown with the hub's YAML head."""
    lines = ["---", yaml.safe_dump(head(form, facts), sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    kind = {"adapter": "an adapter (peft)", "merged": "merged weights (safetensors)", "gguf": "GGUF files"}[form]
    lines += [f"# {facts.name}", "", f"A listening chatbot tuned with Warmline {__version__}, as {kind}.", ""]
    lines += ["## Safety", "", *safety_lines(facts.safety), ""]
    lines += [
        "A language model alone is not safe for people in distress. It was tuned to run behind Warmline, which screens",
        "what a person writes, answers a crisis itself with vetted words and lines to people, and screens every reply.",
        "None of that is in these files. It is not therapy, it does not diagnose, and it can be wrong about anything.",
        "",
        "## Where it comes from",
        "",
        "| what | which | licence |",
        "| --- | --- | --- |",
        f"| base | {facts.base} | {facts.base_licence} |",
        f"| data | {facts.conversations if facts.conversations is not None else 'unknown number of'} conversations | "
        f"{', '.join(facts.data_licences)} |",
        "",
    ]
    if any("NC" in name.upper().replace("_", "-").split("-") for name in facts.licences):
        lines += ["**Non-commercial**: a licence above forbids commercial use of this model.", ""]
    if "unknown" in facts.licences:
        lines += ["**A licence above is unknown**: keep this model to yourself until it is cleared.", ""]
    lines += [
        f"Trained for {facts.trained.get('steps', '?')} steps ({facts.trained.get('epochs', '?')} passes over the "
        f"data); the base was in memory as {facts.load}.",
    ]
    if form != "adapter" and facts.load in ("nf4", "int8"):
        lines += ["The adapter was added to the base's original weights, not to that quantised copy."]
    lines += [""]
    if facts.measured:
        lines += ["| held-out perplexity | value | 95 % interval |", "| --- | ---: | --- |"]
        for name, found in facts.measured.items():
            lines.append(f"| {name} | {found['value']:.2f} | {found['low']:.2f} to {found['high']:.2f} |")
        lines += [""]
    if facts.system:
        lines += ["It was trained with this system message before every conversation:", "", f"> {facts.system}", ""]
    return "\n".join([*lines, *_checks(form, facts.verified), *_use(form, facts)]) + "\n"


def _checks(form: str, verified: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Checked", ""]
    if form == "adapter":
        return [*lines, f"Weights: {verified['adapter']['weights']}.", ""]
    lines += [
        "Fixed prompts through the trained model in transformers and through these files. `same choice`: share of",
        "positions at which both choose the same next token. `distance`: root mean square of the difference of the",
        "logits, in their standard deviations, with the limit it was held to.",
        "",
        "| file | positions | same choice | distance | limit |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    mine = {k: v for k, v in verified.items() if k == form or k.startswith(f"{form}:")}
    for row in mine.values():
        lines.append(
            f"| {row['file']} | {row['positions']} | {row['same_choice']:.1%} | {row['distance']:.4f} | "
            f"{row['tolerance']:g} |"
        )
    tokens = next((row["tokens"] for row in mine.values() if "tokens" in row), None)
    if tokens:
        lines += [
            "",
            f"Tokenizer: {tokens['round_trip']} of {tokens['texts']} ordinary and hostile texts come back as they "
            f"were, {tokens['same_tokens']} with the very tokens of transformers; no spelt-out control token becomes "
            "a real one.",
        ]
    return [*lines, ""]


def _use(form: str, facts: Facts) -> list[str]:
    lines = ["## Use", ""]
    if form == "adapter":
        lines += ["```python", "from peft import AutoPeftModelForCausalLM", ""]
        if not facts.base_on_hub:
            lines += ["# first set base_model_name_or_path in adapter_config.json to where your base lies"]
        return [*lines, 'model = AutoPeftModelForCausalLM.from_pretrained("THIS")', "```"]
    if form == "merged":
        lines += ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        return [
            *lines,
            'model = AutoModelForCausalLM.from_pretrained("THIS")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS")  # brings the chat template',
            "```",
        ]
    lines += ["Any program on llama.cpp opens these files; the chat template is inside.", ""]
    if "ollama" in facts.verified:
        lines += ["    ollama create NAME -f Modelfile", ""]
    if "gguf:lora" in facts.verified:
        row = facts.verified["gguf:lora"]
        lines += [f"    llama-server -m {row['base']} --lora {row['file']}", ""]
    return lines[:-1]
