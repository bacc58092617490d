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

    monkeypatch.setattr(quantised, "IN_MEMORY", ("fp32", "bf16", "none-such", "nf4"))
    before = read_json(stage.folder / "nf4" / "closeness.json")
    again, more = measure.evaluate(*run, ["none-such"])
    assert "none-such" in more["failed"]
    assert [row["form"] for row in more["forms"]] == ["fp32", "bf16", "nf4"]
    assert read_json(again.folder / "nf4" / "closeness.json") == before
    assert "could not be measured" in (again.folder / "report.html").read_text("utf-8")
