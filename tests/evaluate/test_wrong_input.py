"""What can be wrong before and while a run is measured or judged: one line with its code, and nothing half-done."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from warmline import recipe
from warmline.cli.main import app as command
from warmline.errors import WarmlineError
from warmline.runs import MANIFEST, Run, read_json, write_json

Made = tuple[Run, recipe.Recipe]


def refused(*words: str) -> WarmlineError:
    found = CliRunner().invoke(command, list(words)).exception
    assert isinstance(found, WarmlineError), found
    assert "\n" not in found.what
    return found


def other_base(to: str) -> Callable[[Run, dict[str, Path]], None]:
    def change(run: Run, models: dict[str, Path]) -> None:
        path = run.folder / "recipe.yaml"
        settings = recipe.load(str(path))
        base = settings.base.model_copy(update={"model": str(models.get(to, run.folder / to))})
        path.write_text(recipe.dump(settings.model_copy(update={"base": base})), "utf-8")

    return change


def no_adapter(run: Run, models: dict[str, Path]) -> None:
    (run.folder / "train" / "adapter" / "adapter_model.safetensors").unlink()


def untrained(run: Run, models: dict[str, Path]) -> None:
    (run.folder / "train" / MANIFEST).unlink()


def nothing(run: Run, models: dict[str, Path]) -> None:
    pass


WRONG: dict[str, tuple[Callable[[Run, dict[str, Path]], None], list[str], str]] = {
    "the base is gone": (other_base("gone"), [], "base-missing"),
    "the adapter is another base's": (other_base("qwen3"), [], "base-mismatch"),
    "the adapter is gone": (no_adapter, [], "adapter-missing"),
    "it was never trained": (untrained, [], "run-missing"),
    "a suite without items": (nothing, ["--suites", "{folder}/empty.yaml"], "suite-invalid"),
    "a suite that is not there": (nothing, ["--suites", "{folder}/nosuch.yaml"], "suite-invalid"),
    "a form that is none": (nothing, ["--forms", "q17"], "usage"),
    "a GGUF that was never exported": (nothing, ["--forms", "gguf-q8_0"], "usage"),
    "the visitors' server is down": (nothing, ["--visitors", "http://127.0.0.1:{port}/v1#actor"], "engine-unreachable"),
}


@pytest.fixture
def port() -> int:
    """One on which nobody listens."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


@pytest.mark.parametrize("case", WRONG)
def test_evaluate_says_it_in_a_line(run: Made, models: dict[str, Path], port: int, tmp_path: Path, case: str) -> None:
    wrong, options, code = WRONG[case]
    made = run[0]
    (tmp_path / "empty.yaml").write_text("suite: empty\nitems: []\n")
    wrong(made, models)
    asked = [option.format(folder=tmp_path, port=port) for option in options]
    if not {"--forms", "--suites"} & set(asked):
        asked += ["--suites", "none", "--forms", "none"]
    found = refused("evaluate", made.name, *asked, "--runs", str(made.folder.parent))
    assert found.code == code, str(found)
    assert not (made.folder / "evaluation").exists()


def test_judge_says_it_in_a_line(run: Made, port: int) -> None:
    made = run[0]
    runs = ["--runs", str(made.folder.parent)]
    by = ["--by", f"http://127.0.0.1:{port}/v1#arbiter"]
    assert refused("judge", made.name, *by, *runs).code == "run-missing"  # not measured yet
    stage = made.folder / "evaluation"
    for system in ("base", "tuned"):
        write_json(stage / system / "answers.json", [])
    write_json(stage / MANIFEST, read_json(made.folder / "train" / MANIFEST))
    assert refused("judge", made.name, *by, *runs).code == "engine-unreachable"
    assert not (made.folder / "judged").exists()
