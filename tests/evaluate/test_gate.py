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
        gate.together({name: rows(drawn(dice, share), drawn(dice, share)) for name in ("base", "tuned")})["passed"]
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
    caught = 0
    for _ in range(TRIALS):
        found = gate.together({"base": rows(drawn(dice, before)), "tuned": rows(drawn(dice, after))})
        caught += not found["systems"]["tuned"]["passed"]
    assert caught >= 0.95 * TRIALS


def test_one_suite_that_collapses_is_caught_and_named():
    dice = random.Random(4)
    caught = 0
    for _ in range(TRIALS):
        pair = {"base": rows(drawn(dice, 0.97)), "tuned": rows(drawn(dice, 0.97, "crisis", 0.3))}
        result = gate.together(pair)
        caught += any("crisis" in reason or "all suites" in reason for reason in result["reasons"])
    assert caught >= 0.95 * TRIALS


def test_a_worse_form_is_caught_among_six():
    dice = random.Random(5)
    forms = ("fp32", "bf16", "int8", "nf4", "gguf-q8_0", "gguf-q4_k_m")
    caught = 0
    for _ in range(TRIALS):
        good = rows(drawn(dice, 0.8))
        systems = dict.fromkeys(("base", "tuned", *forms), good) | {"nf4": rows(drawn(dice, 0.5))}
        found = gate.together(systems)["systems"]
        caught += [name for name, one in found.items() if not one["passed"]] == ["nf4"]
    assert caught >= 0.95 * TRIALS


def test_more_forms_change_nothing_for_the_tuned_model():
    """A model must not pass because somebody measured six forms of it, nor fail because nobody did."""
    dice = random.Random(6)
    before, after = rows(drawn(dice, 0.9)), rows(drawn(dice, 0.75))
    alone = gate.together({"base": before, "tuned": after})
    with_forms = gate.together({"base": before, "tuned": after, "nf4": after, "int8": after, "bf16": before})
    assert alone["pairs"]["tuned − base"] == with_forms["pairs"]["tuned − base"]
    assert alone["systems"]["tuned"] == with_forms["systems"]["tuned"]


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
