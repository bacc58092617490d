"""What a reply through our engine, chat and guards takes in memory, beside llama.cpp called directly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED = 150
"""MB."""


def test_the_engine_and_its_guards_take_little_beside_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from warmline import recipe
    from warmline.model.export.weights import write_gguf
    from warmline.model.load import embedded_folder, load_tokenizer
    from warmline.model.template import Template

    write_gguf(embedded_folder(), tmp_path / "m.gguf", "f16", Template(load_tokenizer(recipe.Base(model="embedded"))))

    def peak(kind: str) -> int:
        """Highest resident MB of a fresh process that loads the file and replies once."""
        script = Path(__file__).parents[2] / "benchmarks" / "generate.py"
        command = [sys.executable, str(script), "--alone", kind, "--model", str(tmp_path / "m.gguf"), "--threads", "1"]
        command += ["--folder", str(embedded_folder())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-500:]
        return int(json.loads(done.stdout.splitlines()[-1])["peak_mb"])

    direct, ours = peak("direct"), peak("engine")
    assert direct < ours <= direct + ALLOWED
