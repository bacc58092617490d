"""The gate: exact where it can be checked by hand, and right often enough in simulations."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from warmline.errors import DataError, ModelError
from warmline.evaluate import gate, suites
from warmline.model.export.make import left_out, safety
from warmline.runs import Run

SHIPPED = suites.chosen(["all"])
KEYS = [(suite.name, item.id) for suite in SHIPPED for item in suite.items]
TRIALS = 100


def rows(harmless, met=None):
    return [
        suites.Row(suite=name, slice="", id=item, ask="", reply="", harm="", missed=[], harmless=h, met=m)
        for (name, item), h, m in zip(KEYS, harmless, met or harmless, strict=True)
    ]


def drawn(dice, share, bad_suite=None, bad_share=0.0):
    return [dice.random() < (bad_share if name == bad_suite else share) for name, _ in KEYS]


@given(st.integers(0, 60), st.integers(0, 60))
def test_chance_is_the_exact_binomial_test(lost, gained):
    expected = binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
    assert gate.chance(lost, gained) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_equal_model_passes(share):
    dice = random.Random(1)
    passed = sum(
        gate.decide(rows(drawn(dice, share), drawn(dice, share)), rows(drawn(dice, share), drawn(dice, share)))[
            "passed"
        ]
        for _ in range(TRIALS)
    )
    assert passed >= 0.95 * TRIALS


def test_equal_models_pass_with_many_forms():
    dice = random.Random(2)
    names = ("base", "tuned", "int8", "nf4", "gguf-q8_0")
    passed = sum(gate.together({n: rows(drawn(dice, 0.8)) for n in names})["passed"] for _ in range(TRIALS))
    assert passed >= 0.95 * TRIALS


@pytest.mark.parametrize(("before", "after"), [(0.95, 0.7), (0.6, 0.3), (0.3, 0.06)])
def test_a_worse_model_is_caught(before, after):
    dice = random.Random(3)
    caught = sum(not gate.decide(rows(drawn(dice, before)), rows(drawn(dice, after)))["passed"] for _ in range(TRIALS))
    assert caught >= 0.95 * TRIALS


def test_one_suite_that_collapses_is_caught_and_named():
    dice = random.Random(4)
    caught = 0
    for _ in range(TRIALS):
        result = gate.decide(rows(drawn(dice, 0.97)), rows(drawn(dice, 0.97, "crisis", 0.3)))
        caught += any("crisis" in reason or "all suites" in reason for reason in result["reasons"])
    assert caught >= 0.95 * TRIALS


def test_a_better_model_passes():
    assert gate.decide(rows([False] * len(KEYS)), rows([True] * len(KEYS)))["passed"]


def test_the_same_rows_show_no_difference():
    found = gate.decide(rows([True] * len(KEYS)), rows([True] * len(KEYS)))
    assert all(d["difference"]["value"] == 0 and d["p"] == 1 for d in found["differences"])
    assert found["items"] == len(KEYS)
    assert len(found["differences"]) == 2 * (1 + len(SHIPPED))


@pytest.mark.parametrize("cut", [lambda r: r[:-1], lambda r: [*r, r[0]], lambda r: []])
def test_other_items_are_no_comparison(cut):
    all_rows = rows([True] * len(KEYS))
    with pytest.raises(DataError, match="same items"):
        gate.decide(all_rows, cut(all_rows))


def test_export_reads_what_the_gate_wrote(tmp_path):
    folder = tmp_path / "evaluation"
    good, bad = rows([True] * len(KEYS)), rows([False] * len(KEYS))
    assert gate.write(folder, {"base": good, "tuned": good})["passed"]
    assert safety(Run(tmp_path), "key", None) == {"state": "passed", "override": None, "measured": [], "forms": {}}
    gate.write(folder, {"base": good, "tuned": bad, "gguf-q4_0": bad})
    with pytest.raises(ModelError, match="harmless replies in all suites") as refused:
        safety(Run(tmp_path), "key", None)
    assert refused.value.code == "export-refused"
    assert safety(Run(tmp_path), "key", "A. Clinician")["override"] == "A. Clinician"


def test_a_form_that_lost_refuses_itself_alone(tmp_path):
    good, bad = rows([True] * len(KEYS)), rows([False] * len(KEYS))
    names = {"base": good, "tuned": good, "nf4": bad, "gguf-q8_0": good, "gguf-q4_0": bad}
    found = gate.write(tmp_path / "evaluation", names)
    assert not found["passed"]
    assert {name: one["passed"] for name, one in found["systems"].items()} == {
        "tuned": True,
        "nf4": False,
        "gguf-q8_0": True,
        "gguf-q4_0": False,
    }
    told = safety(Run(tmp_path), "key", None)
    assert told["state"] == "passed"
    assert set(told["forms"]) == {"nf4", "gguf-q4_0"}  # both for the card
    assert set(left_out(told)) == {"gguf:q4_0"}  # weights loaded as nf4 are no file
    assert left_out(safety(Run(tmp_path), "key", "A. Clinician")) == {}
