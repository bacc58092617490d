"""Every form that leaves can be talked to, and says what the trained model says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import ARCHITECTURES
from tests.export.conftest import make_run, needs_llama_cpp
from warmline import recipe
from warmline.chat import Chat, Done, Thread
from warmline.cli.main import app
from warmline.engine.base import Call, Options
from warmline.engine.choice import Choice, Files
from warmline.engine.local import LocalEngine
from warmline.errors import ModelError
from warmline.messages import Message
from warmline.model import load
from warmline.model.export import make, ollama
from warmline.model.template import Template
from warmline.opening import open_chat, open_engine
from warmline.runs import Run, read_json

Make = Callable[..., tuple[Run, recipe.Recipe]]

SYSTEM = "Listen with care, and ask one thing at a time."
TEXTS = ("I cannot sleep at night.", "My mother says I think too much about work.")
GREEDY = Options(max_tokens=10, temperature=0.0, repetition_penalty=1.0)


def forms(run: Run, chosen: recipe.Recipe, formats: tuple[str, ...]) -> dict[str, Any]:
    """An engine for each exported form, loaded as a stranger would: by what lies in the export and the base alone."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export, base = run.folder / "export", chosen.base.model

    def of(model: Any, folder: Path) -> LocalEngine:
        template = Template.of(AutoTokenizer.from_pretrained(folder), chosen.prompt)
        return LocalEngine(model.eval(), template, "x", chosen.prompt.context)

    def gguf(files: Files) -> Any:
        return open_engine(run, chosen, Choice("llamacpp", "test", files))

    plain = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    verified, folder = read_json(export / "verified.json"), export / "gguf"
    lora = verified["gguf:lora"]
    return {
        "trained": LocalEngine.open(chosen, run.folder / "train", "x"),
        "adapter": of(peft.PeftModel.from_pretrained(plain, export / "adapter"), export / "adapter"),
        "merged": of(AutoModelForCausalLM.from_pretrained(export / "merged", dtype="auto"), export / "merged"),
        "gguf:lora": gguf(Files(folder / lora["base"], folder / lora["file"])),
        **{f: gguf(Files(folder / verified[f]["file"], merged=True)) for f in formats},
    }


@needs_llama_cpp
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_from_export_to_talk_in_every_form(run_of: Make, name: str) -> None:
    run, chosen = run_of(name, prompt={"system": SYSTEM, "context": 400})
    quants = ("gguf:f32", "gguf:q8_0", "gguf:q4_k_m")
    make.export(run, chosen, ["adapter", "merged", *quants, "gguf:lora"])
    said: dict[str, list[str]] = {}
    untuned = LocalEngine.open(chosen, None, "x")
    drawn: dict[str, str] = {}
    for form, engine in (forms(run, chosen, quants) | {"untuned": untuned}).items():
        rows: list[dict[str, Any]] = []
        log = type("Log", (), {"append": lambda self, row, rows=rows: rows.append(row) or True})()
        door = Chat(engine, system=SYSTEM, options=GREEDY, audit=log, fits=lambda m, e=engine: e.fits(m, 10))
        thread = Thread()
        for text in TEXTS:
            done = list(door.turn(thread, text))[-1]
            assert isinstance(done, Done)
            assert done.usage.prompt_tokens > 0, form
            assert done.usage.completion_tokens > 0, form
        assert [row["engine"] for row in rows] == [engine.name] * 2
        assert {row["fault"] for row in rows} <= {"", "garbage", "empty"}, "what random weights write may be cut"
        door.close()
        said[form] = ["".join(engine.reply(Call([Message("user", text)], GREEDY))).lstrip(" ") for text in TEXTS]
        drawn[form] = "".join(engine.reply(Call([Message("user", TEXTS[0])], Options(20, 2.0, 1.0, 1.0, seed=3))))
        if hasattr(engine, "close"):
            engine.close()
    for form in ("adapter", "merged"):
        assert said[form] == said["trained"], form
    for form in ("gguf:f32", "gguf:lora"):  # half a character at the end is shown by one engine and dropped by another
        for found, expected in zip(said[form], said["trained"], strict=True):
            assert found.rstrip("\ufffd")[:5] == expected.rstrip("\ufffd")[:5], form
    assert drawn["untuned"] != drawn["trained"] == drawn["merged"], "the training is heard"


@needs_llama_cpp
def test_the_demos_base_from_export_to_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs" / "demo", "embedded", prompt={"system": SYSTEM})
    monkeypatch.setattr("warmline.engine.choice.has_gpu", lambda: False)
    runs = ["--runs", str(tmp_path / "runs")]

    def command(*given: str, typed: str = "") -> str:
        done = CliRunner().invoke(app, [*given, *runs], input=typed)
        assert done.exit_code == 0, done.output
        return done.stdout

    exported = command("export", "demo", "--to", "adapter,merged,gguf", "--quant", "q4_k_m", "--lora-gguf", "--ollama")
    assert set(json.loads(exported.splitlines()[-1])["verified"]) == {
        "adapter", "merged", "gguf:q4_k_m", "gguf:lora", "ollama"
    }  # fmt: skip
    assert json.loads(command("doctor", "demo").splitlines()[-1])["engine"]["detail"] == "demo-q4_k_m.gguf"
    for engine in ("llamacpp", "local"):
        shown = command("chat", "demo", "--engine", engine, typed="I cannot sleep at night.\n/quit\n")
        assert "reply  " in shown
    rows = [json.loads(line) for line in (tmp_path / "runs" / "demo" / "audit.jsonl").read_text().splitlines()]
    assert [row["row"]["engine"] for row in rows] == ["demo", "demo"]
    assert (tmp_path / "runs" / "demo" / "cache" / "demo-q4_k_m.prompt").exists()
    # a later start takes the kept prompt
    door = open_chat(Run.open("demo", tmp_path / "runs"))
    done = list(door.turn(Thread(), "I cannot sleep."))[-1]
    assert isinstance(done, Done)
    assert done.usage.cached_tokens >= len(door.engine._head)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- Ollama, by its documented grammar

WORDS = {"FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES"}
NUMBERS = {"num_ctx": int, "repeat_last_n": int, "seed": int, "num_predict": int, "top_k": int}
NUMBERS |= {"repeat_penalty": float, "temperature": float, "top_p": float, "min_p": float}


def read_modelfile(text: str) -> dict[str, Any]:
    """Read as Ollama's documentation says: instructions in any case, # comments, values of one line or in quotes."""
    found: dict[str, Any] = {"parameters": []}
    while text := text.lstrip("\n"):
        if text.startswith("#"):
            text = text.partition("\n")[2]
            continue
        matched = re.match(r'([A-Za-z]+) +(?:"""(.*?)"""|([^\n]*))(?:\n|$)', text, re.S)
        assert matched, text[:60]
        word = matched[1].upper()
        assert word in WORDS, word
        value = matched[2] if matched[2] is not None else matched[3].strip()
        text = text[matched.end() :]
        if word == "PARAMETER":
            name, _, given = value.partition(" ")
            if name == "stop":
                assert re.fullmatch(r'"[^"\n]+"', given), given
                found["parameters"].append((name, given[1:-1]))
            else:
                found["parameters"].append((name, NUMBERS[name](given)))
        else:
            assert word not in found or word in ("LICENSE", "ADAPTER", "MESSAGE"), f"a second {word}"
            found[word] = value
    assert "FROM" in found, "the one instruction that must be there"
    return found


@pytest.mark.parametrize("name", [*ARCHITECTURES, "embedded"])
@pytest.mark.parametrize("system", ["", 'Du hörst zu.\n\nOne line, two "quotes" and a # sign.'])
def test_a_modelfile_keeps_to_ollamas_grammar(models: dict[str, Path], name: str, system: str) -> None:
    base = {"model": name if name == "embedded" else str(models[name])}
    chosen = recipe.parse({"name": "x", "base": base, "prompt": {"system": system}})
    template = Template.of(load.load_tokenizer(chosen.base), chosen.prompt)
    found = read_modelfile(ollama.modelfile("x-q8_0.gguf", chosen, template, "apache-2.0 \n and more"))
    assert found["FROM"] == "./x-q8_0.gguf"
    assert found["SYSTEM"] == ollama.system_prompt(chosen)
    assert found["SYSTEM"].startswith(system)
    assert found["TEMPLATE"] == ollama.go_template(template)
    assert found["TEMPLATE"].count("{{") == found["TEMPLATE"].count("}}")
    opened = len(re.findall(r"\{\{ *(?:if|range)", found["TEMPLATE"]))
    assert opened == len(re.findall(r"\{\{ *end", found["TEMPLATE"]))
    parameters = dict(found["parameters"])
    assert parameters["num_ctx"] == chosen.prompt.context
    stops = {value for key, value in found["parameters"] if key == "stop"}
    assert stops == {template.tokenizer.convert_ids_to_tokens(i) for i in template.end_ids}


@pytest.mark.parametrize("part", ["system", "licence"])
def test_what_a_modelfile_cannot_hold_is_refused(part: str) -> None:
    """Its quoting has no way to write three quotes: what stands behind them would be read as instructions."""
    spoilt = 'Be kind.""" \nADAPTER ./other.gguf\nSYSTEM """'
    prompt = {"system": spoilt if part == "system" else "Be kind."}
    chosen = recipe.parse({"name": "x", "base": {"model": "embedded"}, "prompt": prompt})
    template = Template.of(load.load_tokenizer(chosen.base), chosen.prompt)
    with pytest.raises(ModelError) as caught:
        ollama.modelfile("x.gguf", chosen, template, spoilt if part == "licence" else "mit")
    assert caught.value.code == "export-unsupported"
