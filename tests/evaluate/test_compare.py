"""Compare: blind is blind, votes are kept once, win rates are Wilson's; in the terminal and on the page."""

from __future__ import annotations

import json
import random

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from warmline.cli.main import app as command
from warmline.errors import WarmlineError
from warmline.evaluate.compare import Comparison, open_systems, tally
from warmline.evaluate.comparepage import create_app
from warmline.serve.doorway import Doorway

SYSTEMS = {"base": lambda prompt, seed: f"base says {seed}", "tuned": lambda prompt, seed: f"tuned says {seed}"}


def both(folder, blind=True, seed=1):
    return Comparison(SYSTEMS, folder, blind=blind, dice=random.Random(seed))


def test_both_sides_get_the_same_seed_and_keep_their_own_words(tmp_path):
    for _ in range(20):
        pair = both(tmp_path).ask("Hello.")
        assert all(said.startswith(name) for name, said in zip(pair.names, pair.says, strict=True))
        assert len({said.split()[-1] for said in pair.says}) == 1


def test_the_order_is_drawn_anew_when_blind_and_fixed_when_not(tmp_path):
    blind = both(tmp_path)
    lefts = [blind.ask("Hello.").names[0] for _ in range(200)]
    assert 60 < lefts.count("base") < 140
    open_ = both(tmp_path, blind=False)
    assert {open_.ask("Hello.").names for _ in range(20)} == {("base", "tuned")}


def test_votes_are_kept_and_counted_once(tmp_path):
    comparison = both(tmp_path)
    for _ in range(8):
        pair = comparison.ask("Hello.")
        comparison.vote(pair.id, "left" if pair.names[0] == "tuned" else "right")
        with pytest.raises(WarmlineError):
            comparison.vote(pair.id, "left")
    tie = comparison.ask("Hello.")
    comparison.vote(tie.id, "tie")
    [found] = both(tmp_path, seed=2).tallies()  # another day
    assert (found.of, found.wins, found.losses, found.ties) == ("tuned", 8, 0, 1)
    assert found.rate.n == 8
    assert found.rate.low == pytest.approx(0.6756, abs=1e-4)  # Wilson, 8 of 8
    assert found.rate.high == 1


def test_three_side_by_side_and_two_at_a_time_when_blind(tmp_path):
    three = SYSTEMS | {"gguf-q8_0": lambda prompt, seed: f"gguf-q8_0 says {seed}"}
    assert Comparison(three, tmp_path, blind=False).ask("Hello.").names == tuple(three)
    blind = Comparison(three, tmp_path, blind=True, dice=random.Random(5))
    for _ in range(30):
        pair = blind.ask("Hello.")
        assert len(pair.says) == 2
        if "gguf-q8_0" in pair.names:
            blind.vote(pair.id, "left" if pair.names[0] == "gguf-q8_0" else "right")
    found = {(t.of, t.over): t for t in blind.tallies()}
    assert list(found) == [("tuned", "base"), ("gguf-q8_0", "base"), ("gguf-q8_0", "tuned")]
    assert found["tuned", "base"].rate is None
    assert min(found["gguf-q8_0", over].rate.value for over in SYSTEMS) == 1
    assert sum(t.wins for t in found.values()) == len(blind.votes())


def test_who_knows_the_names_has_no_vote(tmp_path):
    open_ = both(tmp_path, blind=False)
    with pytest.raises(WarmlineError, match="no such vote"):
        open_.vote(open_.ask("Hello.").id, "left")


def test_votes_that_knew_or_were_on_others_do_not_count():
    row = {"left": "base", "right": "tuned", "blind": True, "choice": "left"}
    others = [row | {"blind": False}, row | {"right": "gguf-q8_0"}]
    assert tally(others, "tuned", "base").rate is None
    assert tally([row, *others], "tuned", "base").losses == 1


@pytest.mark.parametrize(("id", "choice"), [("nosuch", "left"), (None, "middle")])
def test_votes_that_cannot_be_cast(tmp_path, id, choice):
    comparison = both(tmp_path)
    pair = comparison.ask("Hello.")
    with pytest.raises(WarmlineError):
        comparison.vote(id or pair.id, choice)


def test_the_page_tells_no_names_before_the_vote(tmp_path):
    app = create_app(both(tmp_path))
    app.add_middleware(Doorway)
    client = TestClient(app, base_url="http://127.0.0.1:8766")
    page = client.get("/")
    assert "Ask them" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/page.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/votes.jsonl").status_code == 404
    pair = client.post("/ask", json={"prompt": "I want to kill myself."}).json()
    assert pair["names"] is None
    assert pair["vetted"] is True
    told = client.post("/vote", json={"id": pair["id"], "choice": "tie"}).json()
    assert sorted(told["names"]) == ["base", "tuned"]
    assert client.post("/vote", json={"id": pair["id"], "choice": "tie"}).status_code == 409
    assert client.post("/ask", json={"prompt": "  "}).status_code == 422
    foreign = client.post("/ask", json={"prompt": "Hello"}, headers={"origin": "https://elsewhere.example"})
    assert foreign.status_code == 403
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 421


def test_the_adapter_is_switched_off_for_the_base(run):
    systems = open_systems(*run, ["base", "tuned"])
    assert systems["base"]("Hello.", 3) == systems["base"]("Hello.", 3)
    assert systems["base"]("Hello.", 3) != systems["tuned"]("Hello.", 3)
    with pytest.raises(WarmlineError, match="no such model"):
        open_systems(*run, ["base", "gguf-q8_0"])


def test_the_command(run):
    run_, _ = run
    runs = str(run_.folder.parent)
    once = CliRunner().invoke(command, ["compare", run_.name, "--prompt", "Hello.", "--runs", runs])
    assert once.exit_code == 0
    row = json.loads(once.stdout.splitlines()[-1])
    assert row.keys() == {"base", "tuned", "level"}
    talk = CliRunner().invoke(command, ["compare", run_.name, "--blind", "--runs", runs], input="Hello.\nx\nl\n\n")
    assert talk.exit_code == 0
    assert "left was" in talk.stderr
    assert len((run_.folder / "compare" / "votes.jsonl").read_text().splitlines()) == 1
