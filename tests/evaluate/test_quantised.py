"""Forms of the tuned model against its most precise one, each in a process of its own."""

from __future__ import annotations

import pytest

from warmline import recipe
from warmline.evaluate import measure, quantised
from warmline.runs import Run, read_json


@pytest.mark.slow
def test_forms_beside_base_and_tuned(run: tuple[Run, recipe.Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    measure.evaluate(*run)
    stage, measured = measure.evaluate(*run, ["fp32", "bf16", "nf4"])
    rows = {row["form"]: row for row in measured["forms"]}
    assert list(rows) == ["fp32", "bf16", "nf4"]
    assert {row["reference"] for row in rows.values()} == {"fp32"}
    assert rows["fp32"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["fp32"]["same_choice"]["value"] == 1
    assert 0 < rows["bf16"]["kl"]["value"] < rows["nf4"]["kl"]["value"]
    assert rows["fp32"]["weights_mb"] > rows["bf16"]["weights_mb"] > rows["nf4"]["weights_mb"]
    assert all(row["peak_mb"] > 50 for row in rows.values())
    # the recipe loads fp32, so that form is the tuned model itself
    assert measured["ratios"]["fp32 / tuned"]["value"] == 1
    assert measured["ratios"]["nf4 / tuned"]["value"] != 1
    assert "nf4 − tuned" in measured["metrics"]["length"]["differences"]
    assert not (stage.folder / quantised.REFERENCE).exists()
    page = (stage.folder / "report.html").read_text("utf-8")
    assert "What smaller weights cost" in page
    # what was measured stays measured when less is asked for
    assert measure.evaluate(*run)[1] == measured

    # a form that cannot be measured leaves the others as they are, and is tried again when it is asked for again
    broken = run[0].folder / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing behind it")
    monkeypatch.setattr(quantised, "ggufs", lambda _: {"q8_0": broken})
    before = read_json(stage.folder / "nf4" / "closeness.json")
    for _ in range(2):
        again, more = measure.evaluate(*run, ["gguf-q8_0"])
        assert list(more["failed"]) == ["gguf-q8_0"]
        assert [row["form"] for row in more["forms"]] == ["fp32", "bf16", "nf4"]
        assert read_json(again.folder / "nf4" / "closeness.json") == before
        assert "could not be measured" in (again.folder / "report.html").read_text("utf-8")
        assert not (again.folder / quantised.REFERENCE).exists()
