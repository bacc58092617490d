"""Packed = unpacked = shared: what conversations have in common is computed once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ARCHITECTURES
from warmline import recipe
from warmline.model import load
from warmline.model import pack as packing
from warmline.model.template import Encoded

LOADED: dict[str, Any] = {}
some = settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def opened(models: dict[str, Path], name: str) -> Any:
    if name not in LOADED:
        LOADED[name] = load.load_model(recipe.Base(model=str(models[name]), load="fp32"))
        packing.prepare(LOADED[name])
    return LOADED[name]


def text(ids: list[int], supervised: list[bool] | None = None, owner: str = "") -> Encoded:
    return Encoded(ids, supervised or [i >= len(ids) // 2 for i in range(len(ids))], owner)


@st.composite
def families(draw: st.DrawFn) -> list[Encoded]:
    """Texts that go on from a random place of an earlier one: trees of any shape, copies and beginnings included."""
    runs = st.lists(st.integers(3, 300), min_size=2, max_size=24)
    ids = [draw(runs)]
    for _ in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from(ids))
        cut = draw(st.one_of(st.just(len(parent)), st.integers(0, len(parent))))
        ids.append((parent[:cut] + draw(st.one_of(st.just([]), runs)))[:60])
    ids = [found for found in ids if len(found) > 1]
    flags = draw(st.lists(st.booleans(), min_size=60, max_size=60))
    # The same flags for all would hide a supervised token that is counted once instead of once for each owner.
    return [
        Encoded(found, [*[flags[(i + n) % 60] for i in range(len(found) - 1)], True], f"c{n}")
        for n, found in enumerate(ids)
    ]


def measured(model: Any, rows: list[packing.Pack]) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Loss of each conversation, and the gradient of their weighted sum for every weight."""
    model.zero_grad()
    losses: dict[str, float] = {}
    for row in rows:
        found = packing.surprise(model, row)
        for n, name in enumerate(row.names):
            losses[name] = float(found[row.owners == n].detach().sum())
        weights = torch.tensor([1.0 + int(name[1:]) for name in row.names])
        (found * weights[row.owners]).sum().backward()
    return losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_equal(model: Any, texts: list[Encoded], rows: list[packing.Pack]) -> None:
    losses, gradients = measured(model, rows)
    expected, wanted = measured(model, [packing.pack([one], share=False) for one in texts])
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(one, other, rtol=2e-3, atol=1e-4 * float(other.abs().max()) + 1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
@some
@given(texts=families())
def test_shared_equals_apart_in_loss_and_gradient(models: dict[str, Path], name: str, texts: list[Encoded]) -> None:
    assert_equal(opened(models, name), texts, [packing.pack(texts)])


@pytest.mark.parametrize("name", ARCHITECTURES)
@some
@given(texts=families(), capacity=st.integers(20, 200))
def test_however_they_are_packed(models: dict[str, Path], name: str, texts: list[Encoded], capacity: int) -> None:
    assert_equal(opened(models, name), texts, packing.packs(texts, capacity))
    assert_equal(opened(models, name), texts, packing.packs(texts, capacity, share=False))


SYSTEM, QUESTION = [*range(10, 30)], [*range(30, 60)]
CASES = {
    "one": [text(SYSTEM, owner="c0")],
    "the same three times": [text(SYSTEM, owner=f"c{n}") for n in range(3)],
    "one the beginning of the other": [text(SYSTEM, owner="c0"), text(SYSTEM + QUESTION, owner="c1")],
    "the other first": [text(SYSTEM + QUESTION, owner="c0"), text(SYSTEM, owner="c1")],
    "a dialogue cut at every turn": [text([*range(10, 20 + 12 * n)], owner=f"c{n}") for n in range(4)],
    "one question, many answers": [
        text(SYSTEM + QUESTION + [100 + n] * (3 + 2 * n), [False] * 50 + [True] * (3 + 2 * n), f"c{n}")
        for n in range(5)
    ],
    "nothing in common but the first token": [
        text([1, 20 + n, 5, 6, 7, 8, 9, 10, 11], owner=f"c{n}") for n in range(3)
    ],
    "all supervised": [text(SYSTEM + [90 + n] * 9, [True] * 29, f"c{n}") for n in range(4)],
}


@pytest.mark.parametrize("name", ["llama", "gemma3", "falcon"])
@pytest.mark.parametrize("case", CASES)
def test_known_shapes(models: dict[str, Path], name: str, case: str) -> None:
    assert_equal(opened(models, name), CASES[case], [packing.pack(CASES[case])])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchs_own_attention_for_long_texts(models: dict[str, Path], monkeypatch: Any, name: str) -> None:
    """Texts too long for ours."""
    monkeypatch.setattr(packing, "LONGEST", 0)
    for case in ("one question, many answers", "a dialogue cut at every turn", "one the beginning of the other"):
        assert_equal(opened(models, name), CASES[case], [packing.pack(CASES[case])])


@pytest.mark.parametrize(
    ("case", "tokens"),
    [
        ("one", 20),
        ("the same three times", 20),
        ("one the beginning of the other", 50),
        ("a dialogue cut at every turn", 46),
        ("one question, many answers", 50 + 3 + 5 + 7 + 9 + 11),
        ("nothing in common but the first token", 27),
    ],
)
def test_how_many_tokens_are_computed(case: str, tokens: int) -> None:
    assert packing.pack(CASES[case]).ids.shape[1] == tokens
    assert packing.pack(CASES[case], share=False).ids.shape[1] == sum(len(one) for one in CASES[case])


@settings(max_examples=60)
@given(texts=families(), capacity=st.integers(8, 200), share=st.booleans())
def test_every_text_is_once_in_a_row_and_can_be_read_there(texts: list[Encoded], capacity: int, share: bool) -> None:
    rows = packing.packs(texts, capacity, share)
    assert sorted(name for row in rows for name in row.names) == sorted(one.owner for one in texts)
    by_name = {one.owner: one for one in texts}
    for row in rows:
        assert row.ids.shape[1] <= capacity or any(len(by_name[name]) > capacity for name in row.names)
        assert sum(row.layout.lengths) == row.ids.shape[1] == row.positions.shape[1]
        for n, name in enumerate(row.names):
            places = row.places(n)
            assert row.ids[0, places].tolist() == by_name[name].ids
            assert row.positions[0, places].tolist() == [*range(len(by_name[name]))]
            mine = row.owners == n
            targets = [i for i in range(1, len(by_name[name])) if by_name[name].supervised[i]]
            assert row.rows[mine].tolist() == [int(places[i - 1]) for i in targets]
            assert row.labels[mine].tolist() == [by_name[name].ids[i] for i in targets]
        assert row.owners.tolist() == sorted(row.owners.tolist())


@settings(max_examples=60)
@given(texts=families(), capacity=st.integers(8, 200))
def test_sharing_never_computes_more(texts: list[Encoded], capacity: int) -> None:
    def computed(share: bool) -> int:
        return sum(row.ids.shape[1] for row in packing.packs(texts, capacity, share))

    assert computed(True) <= computed(False) == sum(len(one) for one in texts)


def test_answers_to_one_question_come_into_one_row() -> None:
    """Length alone would mix the questions: every row would hold all three."""
    texts = [text(SYSTEM + [200 + q] * 40 + [100 + a] * (10 + a), owner=f"{q}/{a}") for a in range(6) for q in range(3)]
    rows = packing.packs(texts, 180)
    assert sorted(sorted(row.names) for row in rows) == [[f"{q}/{a}" for a in range(6)] for q in range(3)]
    assert sum(row.ids.shape[1] for row in rows) == 3 * (20 + 40 + sum(10 + a for a in range(6)))


def test_deep_and_wide_families_end_well() -> None:
    dialogue = [*range(5000)]
    texts = [text(dialogue[: 10 * n], owner=f"c{n}") for n in range(1, 400)]
    rows = packing.packs(texts, 4096)
    assert sum(len(row.names) for row in rows) == len(texts)
    copies = [text(SYSTEM, owner=f"c{n}") for n in range(3000)]
    assert [row.ids.shape[1] for row in packing.packs(copies, 100)] == [20]


@pytest.mark.parametrize("case", CASES)
def test_a_row_that_cannot_be_made_smaller_says_so(case: str) -> None:
    """Whoever halves the capacity when memory runs out must know when to stop."""
    rows = packing.packs(CASES[case], capacity=1)
    assert all(row.single and row.ids.shape[1] == max(len(CASES[case][0]), row.positions.max() + 1) for row in rows)


@pytest.mark.parametrize("name", ["llama", "falcon", "gemma3"])
@pytest.mark.parametrize("length", [15, 16, 17])
def test_what_fills_a_row_up_changes_nothing(models: dict[str, Path], monkeypatch: Any, name: str, length: int) -> None:
    model = opened(models, name)
    rows = [packing.pack([text(list(range(5, 5 + length)), owner="c0"), text(list(range(9, 9 + length)), owner="c1")])]
    filled, gradients = measured(model, rows)
    seen = packing._filled(rows[0])[0].shape[1]
    assert seen == -(-rows[0].ids.shape[1] // packing.EIGHT) * packing.EIGHT
    monkeypatch.setattr(packing, "EIGHT", 1)
    bare, expected = measured(model, rows)
    assert filled == pytest.approx(bare, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, expected, strict=True))


def test_nothing_packs_to_nothing() -> None:
    assert packing.packs([], 100) == []


def tiny(name: str) -> Any:
    """Architectures whose layers do not bow to an attention function of ours."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

    torch.manual_seed(3)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    common = {**shape, "intermediate_size": 48, "head_dim": 16, "vocab_size": 310}
    if name == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**common, sliding_window=16)).eval()
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    types = ["linear_attention", "full_attention"]
    config = Qwen3NextConfig(
        **common, **linear, **experts, linear_value_head_dim=8, shared_expert_intermediate_size=16, layer_types=types
    )
    return Qwen3NextForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["gemma2", "qwen3_next"])
def test_layers_that_would_leak_are_computed_one_by_one(name: str) -> None:
    model = tiny(name)
    texts = CASES["one question, many answers"]
    with torch.no_grad():
        untouched = [model(input_ids=torch.tensor([one.ids])).logits[0] for one in texts]
    packing.prepare(model)
    assert_equal(model, texts, [packing.pack(texts)])
    packed = packing.pack(texts)
    with torch.no_grad():
        ours = packing.logits(model, packed)
    for n, one in enumerate(untouched):
        assert torch.allclose(ours[packed.owners == n], one[49:-1], atol=1e-4)
