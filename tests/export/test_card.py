"""What the card and the Modelfile say, and the gate before them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.export.conftest import needs_llama_cpp, refuse
from warmline import recipe
from warmline.errors import ModelError, RunError
from warmline.messages import Message
from warmline.model import load
from warmline.model.export import card, make, ollama
from warmline.model.export.vocabulary import adds_bos
from warmline.model.template import Template
from warmline.runs import Run, read_json, write_json

Make = Callable[..., tuple[Run, recipe.Recipe]]


def facts(**changes: object) -> card.Facts:
    base: dict[str, object] = {
        "name": "first",
        "base": "owner/base",
        "base_on_hub": True,
        "base_licence": "apache-2.0",
        "data_licences": ["Apache-2.0"],
        "language": "en",
        "conversations": 12,
        "safety": {"state": "passed"},
        "trained": {"steps": 3, "epochs": 1.0},
        "measured": None,
        "load": "nf4",
        "system": "",
        "verified": {"adapter": {"weights": "same"}},
    }
    return card.Facts(**base | changes)  # type: ignore[arg-type]


def test_a_loss_of_safety_stops_the_export_until_somebody_signs_for_it(run_of: Make) -> None:
    run, settings = run_of("llama")
    refuse(run, "crisis prompts met fell from 41 to 28 of 60")
    with pytest.raises(ModelError) as caught:
        make.export(run, settings, ["adapter"])
    assert caught.value.code == "export-refused"
    assert "41 to 28" in str(caught.value)
    assert not (run.folder / ".export").exists()
    stage = make.export(run, settings, ["adapter"], override="Dr A. Example")
    text = (stage.folder / "adapter" / "README.md").read_text("utf-8")
    assert "less safe than its base" in text
    assert "Dr A. Example" in text
    assert "41 to 28" in text
    assert stage.manifest["inputs"]["safety"]["override"] == "Dr A. Example"


def test_without_an_evaluation_the_card_says_so_and_with_a_good_one_too(run_of: Make) -> None:
    run, settings = run_of("llama")
    before = make.export(run, settings, ["adapter"])
    assert "**Not evaluated**" in (before.folder / "adapter" / "README.md").read_text("utf-8")
    refuse(run, passed=True)
    after = make.export(run, settings, ["adapter"])
    assert after.key != before.key
    assert "no significant loss of safety" in (after.folder / "adapter" / "README.md").read_text("utf-8")


@needs_llama_cpp
def test_a_form_that_lost_stops_itself_and_no_other(run_of: Make) -> None:
    run, settings = run_of("llama")
    first = make.export(run, settings, ["gguf:q8_0", "gguf:f32", "ollama"]).folder
    untouched = (first / "gguf" / "llama-run-f32.gguf").stat().st_ino
    refuse(run, passed=True, q8_0="harmless replies: 40 of 40 before, 21 after", f32="")
    with pytest.raises(ModelError) as caught:
        make.export(run, settings, ["gguf:q8_0"])
    assert caught.value.code == "export-refused"
    assert (first / "gguf" / "llama-run-q8_0.gguf").exists(), "what refuses leaves everything as it is"
    stage = make.export(run, settings, ["adapter", "gguf:f32", "gguf:q8_0"])
    there = {path.name for path in (stage.folder / "gguf").iterdir()}
    assert there == {"llama-run-f32.gguf", "Modelfile", "README.md"}
    assert "llama-run-f32.gguf" in (stage.folder / "gguf" / "Modelfile").read_text("utf-8")
    assert (stage.folder / "gguf" / "llama-run-f32.gguf").stat().st_ino == untouched, "not made again"
    assert set(read_json(stage.folder / "verified.json")) == {"adapter", "gguf:f32", "ollama"}
    for form in ("adapter", "gguf"):
        text = (stage.folder / form / "README.md").read_text("utf-8")
        assert "no significant loss of safety" in text
        assert "- gguf-q8_0: harmless replies: 40 of 40 before, 21 after" in text
        assert "gguf-f32, gguf-q8_0" in text
    signed = make.export(run, settings, ["gguf:q8_0"], override="Dr A. Example").folder
    assert (signed / "gguf" / "llama-run-q8_0.gguf").exists()
    assert "by decision of Dr A. Example" in (signed / "gguf" / "README.md").read_text("utf-8")


def test_an_evaluation_of_an_earlier_training_does_not_count(run_of: Make) -> None:
    run, settings = run_of("llama")
    refuse(run, passed=True)
    write_json(run.folder / "evaluation" / "MANIFEST.json", {"inputs": {"train": "another"}})
    stage = make.export(run, settings, ["adapter"])
    assert stage.manifest["inputs"]["safety"] == {"state": "not evaluated"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"passed": "yes"}', '{"passed": 1}'])
def test_a_verdict_that_cannot_be_read_is_no_pass(run_of: Make, content: str) -> None:
    run, settings = run_of("llama")
    (run.folder / "evaluation").mkdir()
    (run.folder / "evaluation" / "gate.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        make.export(run, settings, ["adapter"])
    assert caught.value.code == "export-refused"


def test_a_run_without_training_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        make.export(Run.create(tmp_path / "empty"), recipe.load("demo"), ["adapter"])


@pytest.mark.parametrize(
    ("base", "data", "licence", "name"),
    [
        ("apache-2.0", ["Apache-2.0"], "apache-2.0", None),
        ("MIT", ["MIT"], "mit", None),
        ("apache-2.0", ["MIT"], "other", "apache-2.0 AND MIT"),
        ("unknown", ["unknown"], "other", "unknown"),
        ("gemma", ["CC-BY-NC-4.0", "MIT"], "other", "gemma AND CC-BY-NC-4.0 AND MIT"),
    ],
)
def test_the_head_is_the_hubs_and_names_every_licence(
    base: str, data: list[str], licence: str, name: str | None
) -> None:
    text = card.render("adapter", facts(base_licence=base, data_licences=data))
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == licence
    assert head.get("license_name") == name
    assert head["base_model"] == "owner/base"
    assert head["library_name"] == "peft"
    assert ("**Non-commercial**" in text) == ("CC-BY-NC-4.0" in data)
    assert ("keep this model to yourself" in text) == (base == "unknown")


def test_nf4_is_in_no_licence_and_nc_inside_a_word_is_not_non_commercial() -> None:
    assert "Non-commercial" not in card.render("adapter", facts(base_licence="ncsa", data_licences=["NCSA"]))


@pytest.mark.parametrize(
    ("content", "licence"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
        ("---\nlicense: [\n---\n", "unknown"),
        ("# no head", "unknown"),
        ("---\nlanguage: en\n---\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_bases_licence_is_what_its_card_states(tmp_path: Path, content: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert card.licence_of_base(recipe.Base(model=str(tmp_path))) == licence


def test_the_embedded_base_states_its_licence() -> None:
    assert card.licence_of_base(recipe.Base(model="embedded")) == "apache-2.0"


def render_go(template: str, system: str, turns: list[Message]) -> str:
    """The few forms of Ollama's template language that a Modelfile of ours uses."""
    start, body = template.split("{{ range .Messages }}")
    found = re.fullmatch(
        r"\{\{ \$first := true \}\}\{\{ if \.System \}\}(.*?)\{\{ \.System \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}",
        start,
        re.S,
    )
    assert found
    text = found[1] + system + found[2] if system else found[3]
    shape = re.fullmatch(
        r'\{\{ if eq \.Role "user" \}\}\{\{ if not \$first \}\}(.*?)\{\{ end \}\}\{\{ \$first = false \}\}'
        r"\{\{ \.Content \}\}(.*?)"
        r'\{\{ else if eq \.Role "assistant" \}\}( *)\{\{ \.Content \}\}\{\{ end \}\}\{\{ end \}\}',
        body,
        re.S,
    )
    assert shape
    first = True
    for turn in turns:
        if turn.role == "user":
            text += ("" if first else shape[1]) + turn.content + shape[2]
            first = False
        elif turn.role == "assistant":
            text += shape[3] + turn.content
    return text


@pytest.mark.parametrize("name", ["embedded", "falcon", "gemma", "qwen3"])
@pytest.mark.parametrize("system", ["", "Be kind."])
def test_ollamas_format_is_the_runs_format(models: dict[str, Path], name: str, system: str) -> None:
    base = recipe.Base(model="embedded" if name == "embedded" else str(models[name]))
    template = Template(load.load_tokenizer(base), "auto", system)
    turns = [Message("user", "One?"), Message("assistant", "Two."), Message("user", "Three\nlines")]
    text = render_go(ollama.go_template(template), system, turns)
    encoded = template.encode(turns, reply=True).ids
    bos = template.tokenizer.bos_token_id
    if adds_bos(template.tokenizer):
        encoded = encoded[1:] if encoded[0] == bos else encoded
    assert template.tokenizer(text, add_special_tokens=False).input_ids == encoded


@needs_llama_cpp
def test_the_bundle_for_ollama(run_of: Make) -> None:
    run, settings = run_of("qwen3", prompt={"system": "You are Robin."})
    folder = make.export(run, settings, ["gguf:f16", "gguf:q8_0", "ollama"]).folder / "gguf"
    text = (folder / "Modelfile").read_text("utf-8")
    assert "FROM ./qwen3-run-q8_0.gguf" in text
    assert (folder / "qwen3-run-q8_0.gguf").exists()
    assert 'PARAMETER stop "<|im_end|>"' in text
    system = text.split('SYSTEM """')[1].split('"""')[0]
    assert system.startswith("You are Robin.")
    assert "findahelpline.com" in system
    assert "without Warmline's screening" in text
    assert "> You are Robin." in (folder / "README.md").read_text("utf-8")
    assert "ollama create" in (folder / "README.md").read_text("utf-8")
    row = read_json(run.folder / "export" / "verified.json")["ollama"]
    assert row == {"file": "Modelfile", "runs": "qwen3-run-q8_0.gguf"}


def test_the_safety_prompt_keeps_to_the_contract() -> None:
    text = ollama.SAFETY_PROMPT.lower()
    for must in (
        "an ai",
        "emergency number",
        "findahelpline.com",
        "ask directly",
        "safe now",
        "trust",
        "never diagnose",
    ):
        assert must in text
    assert "commit" not in text
