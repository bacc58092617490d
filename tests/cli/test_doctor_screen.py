"""The doctor says whether the crisis screen has both its opinions."""

from __future__ import annotations

import pytest

from warmline.cli.doctor import screening
from warmline.safety import encoder


def test_the_screen_is_whole_as_installed() -> None:
    assert screening() == ("crisis screen", "words and encoder", "", True)


def test_an_encoder_that_cannot_be_loaded_is_a_caution(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError

    monkeypatch.setattr(encoder, "shipped", missing)
    _, found, advice, good = screening()
    assert not good
    assert found == "words alone"
    assert "install" in advice
