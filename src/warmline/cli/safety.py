"""Commands of the safety floor: `screen`, `resources`, `claims`, `audit`, `protocol`. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from warmline import console
from warmline.errors import DataError, SafetyError

audit_app = typer.Typer(no_args_is_help=True, help="The audit chain.")
protocol_app = typer.Typer(no_args_is_help=True, help="Safety rules of your own.")


class Format(StrEnum):
    text = "text"
    jsonl = "jsonl"


_NOT_THE_PERSON = frozenset(
    "assistant system bot sys tool chatbot model provider ai agent therapist counselor counsellor supporter "
    "listener".split()
)


def _rows(file: Path, form: Format) -> Iterator[tuple[str, list[str]]]:
    """Ids and user turns: one for a text, several for a conversation."""
    from warmline.runs import read_jsonl

    if form is Format.text:
        with open(file, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield str(number), [line.rstrip("\n")]
        return
    for number, row in enumerate(read_jsonl(file), 1):
        turns = _turns(row)
        if turns is None:
            raise DataError(
                f"row {number} of {file.name} has neither `text` nor `messages`",
                code="data-row",
                where=f"{file}:{number}",
                hint='a row is {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
            )
        yield str(row.get("id", number)), turns


def _turns(row: Any) -> list[str] | None:
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("text"), str):
        return [row["text"]]
    messages = row.get("messages")
    if not isinstance(messages, list):
        return None
    turns = []
    for message in messages:
        if isinstance(message, str):
            turns.append(message)
        elif isinstance(message, dict):
            role = str(message.get("role", message.get("speaker", "user"))).lower()
            content = message.get("content", message.get("text", ""))
            if role not in _NOT_THE_PERSON:
                turns.append(str(content))
        else:
            return None
    return turns


def screen(
    file: Annotated[Path, typer.Argument(help="One message a line, or JSONL with `text` or `messages`.")],
    format: Annotated[Format | None, typer.Option(help="Empty: jsonl if the name ends so, else text.")] = None,
) -> None:
    """Print what the crisis screen makes of each message or conversation, one JSON object a line."""
    from warmline.safety import screen as screening
    from warmline.safety.state import State, follow

    if not file.is_file():
        raise DataError(f"{file} does not exist", code="data-missing", hint="give the path of a text or JSONL file")
    form = format or (Format.jsonl if file.suffix in (".jsonl", ".ndjson") else Format.text)
    now = datetime(2026, 1, 1, 12)
    for identifier, turns in _rows(file, form):
        if len(turns) == 1 and form is Format.text:
            finding = screening.screen(turns[0])
            console.json_line(_summary(identifier, finding.level, [finding]))
            continue
        played = list(follow(turns, now))
        findings, states = [finding for finding, _ in played], [state for _, state in played] or [State()]
        state, levels = states[-1], [state.level for _, state in played]
        row = _summary(identifier, state.level, findings)
        console.json_line(row | {"peak": state.peak, "turns": levels})


def _summary(identifier: str, level: int, findings: list[Any]) -> dict[str, Any]:
    return {
        "id": identifier,
        "level": level,
        "flags": sorted({flag for finding in findings for flag in finding.flags}),
        "score": max((finding.score for finding in findings), default=0.0),
        "rules": sorted({rule for finding in findings for rule in finding.rules}),
    }


def resources(
    country: Annotated[str | None, typer.Argument(help="ISO code, e.g. GB. Empty: all countries.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Show the crisis lines of a country, with their sources and expiry."""
    from warmline.safety import resources as table

    if country is None:
        for code, name in table.countries().items():
            found = table.resources_for(code)
            reach = "findahelpline.com (its lines are not confirmed)" if found.fallback else found.lines[0].spoken()
            console.out(f"{code}  {name}: {reach}")
        console.say("`warmline resources GB` shows all lines of one country with their sources")
        return
    found = table.resources_for(country)
    if found.expired:
        console.warn(f"rows of {found.name} have expired; check them with the operators of the lines and renew them")
    if json_:
        console.json_line(found.to_json())
        return
    console.out(f"{found.name}: in an emergency {found.emergency}")
    for line in found.lines:
        console.out(f"  {line.label}: {line.spoken()}" + (f"  {line.url}" if line.url and line.number else ""))
    for row in table.rows():
        if row.country == found.country:
            dates = f"checked {row.checked}, expires {row.expires}"
            console.say(f"{row.line.label}: {row.status}, {dates}; {'; '.join(row.sources)}")


def audit_verify(
    file: Annotated[Path, typer.Argument(help="The audit file (JSONL).")],
) -> None:
    """Follow the hash chain of an audit file from the first row to the last."""
    from warmline.safety.audit import verify

    if not file.is_file():
        raise SafetyError(f"{file} does not exist", code="audit-broken", hint="give the path of the audit file")
    count, last = verify(file)
    console.say(f"{count:,} rows, the chain is whole")
    console.out(json.dumps({"rows": count, "last": last}))


def audit_counters(
    files: Annotated[list[Path], typer.Argument(help="Audit files (JSONL), one per run.")],
    exact: Annotated[bool, typer.Option("--exact", help="Small counts too. Not for publication.")] = False,
) -> None:
    """Sum audit files up by year, without identifiers: conversations, turns, referrals, L3 and L4. One JSON object.

    Counts below 10 are given as "fewer than 10".

    \b
    Examples:
      warmline audit counters runs/first/audit.jsonl
      warmline audit counters runs/*/audit.jsonl --exact
    """
    from warmline.safety.counters import count, published

    for file in files:
        if not file.is_file():
            raise SafetyError(f"{file} does not exist", code="audit-broken", hint="give the paths of the audit files")
    console.json_line({year: sums if exact else published(sums) for year, sums in count(files).items()})


def claims(
    files: Annotated[list[Path], typer.Argument(help="Text, Markdown, HTML, YAML or JSON files to read.")],
) -> None:
    """Find words that make a program sound like a licensed professional, or promise what only one may.

    For the README, pages, personas and saved replies. Exit code 1 if anything was found.

    \b
    Examples:
      warmline claims README.md persona.txt
    """
    from warmline.safety.lint import claims as find

    found = 0
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} does not exist", code="data-missing", hint="give the path of a text file")
        text = file.read_text("utf-8", errors="replace")
        for rule, (start, _) in find(text):
            found += 1
            console.json_line({"file": str(file), "line": text.count("\n", 0, start) + 1, "rule": rule})
    console.say(f"{found} claim{'' if found == 1 else 's'} in {len(files)} file{'' if len(files) == 1 else 's'}")
    if found:
        raise typer.Exit(1)


def protocol_check(
    file: Annotated[Path, typer.Argument(help="A protocol.yaml of your own.")],
) -> None:
    """Check that rules of your own only make the shipped ones stricter and that each wording may be shown.

    Lay the file into a run's folder as `protocol.yaml`; `warmline chat` and `serve` then follow it.

    \b
    Examples:
      warmline protocol check runs/first/protocol.yaml
    """
    from warmline.safety.own import rules

    if not file.is_file():
        raise SafetyError(f"{file} does not exist", code="safety-data", hint="give the path of a protocol file")
    own = rules(file)
    console.say(f"{len(own.protocol.situations)} situations, none weaker than shipped")
    console.json_line({"version": own.protocol.version, "policy": own.policy, "refuse_minors": own.refuse_minors})


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("screen")(screen)
    app.command("resources")(resources)
    audit_app.command("verify")(audit_verify)
    audit_app.command("counters")(audit_counters)
    app.command("claims")(claims)
    protocol_app.command("check")(protocol_check)
    app.add_typer(audit_app, name="audit")
    app.add_typer(protocol_app, name="protocol")
