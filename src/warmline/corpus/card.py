"""The data card, in the hub's format: what the splits hold, where it comes from, what may be done with it."""

from __future__ import annotations

from typing import Any

import yaml


def _size(count: int) -> str:
    """The hub's size category."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < limit:
            return name
    return "n>1M"


def _spdx(licences: list[str]) -> str:
    """The hub knows a list of lower-case names; a mixture or an unknown one is `other`."""
    return (
        licences[0].lower() if len(licences) == 1 and " " not in licences[0] and licences[0] != "unknown" else "other"
    )


def render(summary: dict[str, Any]) -> str:
    """The card of a finished preparation, as Markdown with the hub's YAML head."""
    counts, splits, licences = summary["counts"], summary["splits"], summary["licences"]
    total = sum(counts[part] for part in ("train", "val", "test"))
    data = summary["settings"]["data"]
    head = {
        "license": _spdx(licences),
        **({"license_name": " AND ".join(licences)} if _spdx(licences) == "other" else {}),
        **({"language": [data["language"]]} if data["language"] != "any" else {}),
        "task_categories": ["text-generation"],
        "tags": ["counselling", "mental-health", "warmline"],
        "size_categories": [_size(total)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"{part}.jsonl"}
                    for split, part in (("train", "train"), ("validation", "val"), ("test", "test"))
                    if counts[part]
                ],
            }
        ],
    }
    lines = ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    lines += [
        "# Data card",
        "",
        f"{total:,} conversations for tuning a listening chatbot, prepared with Warmline.",
        "",
        "| split | conversations | messages | words | of which synthetic |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for part in ("train", "val", "test"):
        row = splits[part]
        lines.append(
            f"| {part} | {row['conversations']:,} | {row['messages']:,} | {row['words']:,} | {row['synthetic']:,} |"
        )
    lines += [
        "",
        "## Licence ledger",
        "",
        "| source | read as | licence | known from | consent | sha256 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary["sources"]:
        short = (row["sha256"] or "")[:16]
        lines.append(
            f"| {row['source']} | {row['format']} | {row['licence']} | {row['licence_from'] or 'not stated'} | "
            f"{row['consent']} | {short} |"
        )
    lines += ["", *_cautions(licences), "## What was done", ""]
    lines += [
        f"- Read: {counts['read']:,} conversations; {summary['unreadable']:,} records could not be read.",
        f"- Cleaned: {counts['clean']:,} left. Mended: {_listed(summary['repairs'])}.",
        f"- Anonymised: {'yes' if data['anonymise'] else 'no'}. Masked: {_listed(summary['pii'])}. "
        "No method finds everything: read samples before you publish.",
        f"- Linted (`{summary['settings']['lint']}`): {counts['lint']:,} left. Found: {_listed(summary['lint'])}.",
        f"- Copies dropped: {_listed(summary['rejects'].get('dedupe', {}))}; "
        f"{counts['dedupe']:,} left in {summary['groups']:,} groups.",
        f"- Divided by group, stratified by theme, seed {data['seed']}; leaks found "
        f"afterwards: {_leaks(summary['leaks'])}.",
        "",
        "## What it is for, and what not",
        "",
        "For tuning and measuring a chatbot that listens. It is not therapy data to treat or "
        "diagnose with, and a model tuned",
        "on it is no substitute for a person. Do not try to find out who wrote something.",
        "",
    ]
    return "\n".join(lines)


def _cautions(licences: list[str]) -> list[str]:
    cautions = []
    if any("NC" in licence.upper().split("-") for licence in licences):
        cautions.append(
            "**A source is non-commercial**: neither this data nor weights tuned on it may be used commercially."
        )
    if "unknown" in licences:
        cautions.append("**A source's licence is unknown**: keep the result to yourself until it is cleared.")
    return [line for caution in cautions for line in (caution, "")]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "nothing"


def _leaks(leaks: dict[str, Any]) -> str:
    found = sum(leaks[part][kind] for part in leaks for kind in leaks[part] if kind.startswith("same"))
    return "none" if not found else f"{found:,}"
