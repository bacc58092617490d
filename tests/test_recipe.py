"""Recipes: all faults at once, near names offered, a dumped recipe is the same recipe."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline import recipe
from warmline.errors import RecipeError


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_is_valid_and_named_as_its_file(name: str) -> None:
    loaded = recipe.load(name)
    assert loaded.name == name
    assert loaded.description
    assert recipe.parse(recipe.yaml.safe_load(recipe.dump(loaded))) == loaded


def test_every_setting_is_explained() -> None:
    missing = [name for name, _, text in recipe.explain() if len(text) < 15]
    assert set(missing) <= {"name", "description"}, "all but these say more than their name"


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.parse({"adapter": {"rank": 0, "rnk": 8}, "train": {"epochs": "many"}, "nme": "x"}, "my.yaml")
    text = str(caught.value)
    assert "5 problems in my.yaml" in text
    for part in (
        "`adapter.rank` is 0",
        "`adapter.rnk` is not a setting",
        "`train.epochs`",
        "`name` is missing",
        "`nme`",
    ):
        assert part in text
    assert "did you mean `adapter.rank` for `adapter.rnk`" in text


@pytest.mark.parametrize(
    ("name", "hint"), [("demmo", "did you mean `demo`?"), ("xyzzy", "shipped recipes: demo"), ("gone.yaml", "demo")]
)
def test_an_unknown_recipe_offers_what_there_is(name: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load(name)
    assert caught.value.code == "recipe-unknown"
    assert hint in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list\n", "", "\x00"])
def test_what_is_not_a_recipe_is_said_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        recipe.load(str(path))
    assert caught.value.code == "recipe-invalid"


def test_bytes_that_are_not_text_are_said_so(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(b"\xff\xfe\x00name: x")
    with pytest.raises(RecipeError, match="not UTF-8"):
        recipe.load(str(path))


def test_settings_are_laid_over() -> None:
    loaded = recipe.load("demo", ("train.epochs=1.5", "data.sources=[a.csv, b.csv]", "base.load=bf16"))
    assert loaded.train.epochs == 1.5
    assert loaded.data.sources == ("a.csv", "b.csv")
    assert loaded.base.load == "bf16"
    assert recipe.load("demo").train.epochs != 1.5


@pytest.mark.parametrize("setting", ["train.epochs", "name.x=1", "train.epoch=2"])
def test_a_wrong_setting_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError):
        recipe.load("demo", (setting,))


@given(st.recursive(st.one_of(st.none(), st.integers(), st.text(max_size=4)), lambda c: st.lists(c, max_size=3)))
def test_any_value_is_taken_or_refused_in_words(value: object) -> None:
    for tree in ({"name": value}, {"name": "x", "train": value}, {"name": "x", "data": {"sources": value}}):
        with contextlib.suppress(RecipeError):
            recipe.parse(tree)  # type: ignore[arg-type]


def test_a_setting_of_two_kinds_is_one_fault() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load("demo", ("train.pack=many", "adapter.targets=3", "data.sources=[1, 2]", "train.epohs=2"))
    text = str(caught.value)
    assert "5 problems in demo" in text
    assert "`train.pack` is 'many': " in text
    assert "`adapter.targets` is 3: " in text
    assert "`data.sources.0` is 1" in text
    assert "`train.epochs` for `train.epohs`" in text
    assert recipe.load("demo", ("train.pack=auto",)).train.pack_tokens == 2048


def test_a_value_that_is_not_yaml_is_said_so() -> None:
    with pytest.raises(RecipeError, match="not YAML"):
        recipe.load("demo", ("train.betas=[0.9",))


def test_the_listener_stands_for_words_that_a_run_writes_down() -> None:
    settings = recipe.load("qwen3-4b-qlora")
    assert settings.prompt.system == recipe.listener()
    assert settings.prompt.system.startswith("You are an AI system")
    assert recipe.parse(settings.model_dump(mode="json")).prompt.system == settings.prompt.system
    assert recipe.parse({"name": "own", "prompt": {"system": "listener, please"}}).prompt.system == "listener, please"
