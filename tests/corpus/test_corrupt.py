"""More than a thousand broken rows of thirty kinds: each is named by file, line and reason, and none ends the work."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from warmline import recipe
from warmline.corpus.pipeline import Choices, prepare
from warmline.corpus.read import Reject, inspect, read
from warmline.errors import DataError, WarmlineError

SECRET = "zebraquilt"
"""Stands in every broken row; it must never show in an error or a reject."""


def good(number: int) -> dict:
    return {
        "messages": [
            {"role": "user", "content": f"The {number} nights of this week were long and loud again."},
            {"role": "assistant", "content": f"What was loudest in night {number}?"},
        ]
    }


def line(number: int) -> bytes:
    return json.dumps(good(number)).encode()


JSONL: dict[str, tuple[bytes, str]] = {
    "bad-utf8": (b'{"messages": "' + SECRET.encode() + b' \xff\xfe"}', "bad-utf8"),
    "cut-utf8": (b'{"messages": "' + SECRET.encode() + b' \xe2\x82"}', "bad-utf8"),
    "nul": (b'{"messages": "' + SECRET.encode() + b'\x00"}', "nul"),
    "escaped-nul": (b'{"messages": "' + SECRET.encode() + b'\\u0000"}', "nul"),
    "lone-surrogate": (b'{"messages": "' + SECRET.encode() + b'\\ud800"}', "lone-surrogate"),
    "low-surrogate": (b'{"messages": "' + SECRET.encode() + b'\\udc80"}', "bad-utf8"),
    "unclosed-quote": (b'{"messages": "' + SECRET.encode(), "not-json"),
    "unclosed-brace": (line(1)[:-1], "not-json"),
    "trailing-comma": (b'{"messages": [],}', "not-json"),
    "two-values": (line(1) + line(2), "not-json"),
    "single-quotes": (b"{'messages': '" + SECRET.encode() + b"'}", "not-json"),
    "nan": (b'{"messages": NaN}', "not-a-number"),
    "infinity": (b'{"messages": [Infinity]}', "not-a-number"),
    "long-number": (b'{"messages": ' + b"9" * 5000 + b"}", "number-too-long"),
    "depth-bomb": (b"[" * 100_000, "too-deep"),
    "deep-nest": (b'{"messages":' + b"[" * 200 + b"]" * 200 + b"}", "too-deep"),
    "huge-line": (b'{"messages": "' + b"x" * 10_000_000 + b'"}', "too-large"),
    "bare-string": (json.dumps(SECRET).encode(), "wrong-type"),
    "bare-number": (b"17", "wrong-type"),
    "bare-null": (b"null", "wrong-type"),
    "bare-list": (b'["' + SECRET.encode() + b'"]', "wrong-type"),
    "no-messages": (b'{"other": "' + SECRET.encode() + b'"}', "no-messages"),
    "messages-text": (b'{"messages": "' + SECRET.encode() + b'"}', "no-messages"),
    "message-text": (b'{"messages": ["' + SECRET.encode() + b'"]}', "wrong-type"),
    "no-role": (b'{"messages": [{"content": "' + SECRET.encode() + b'"}]}', "no-speaker"),
    "odd-role": (b'{"messages": [{"role": "zebraquilt", "content": "x"}]}', "unknown-speaker"),
    "role-number": (b'{"messages": [{"role": 3, "content": "x"}]}', "no-speaker"),
    "no-content": (b'{"messages": [{"role": "user"}]}', "missing-text"),
    "content-number": (b'{"messages": [{"role": "user", "content": 12}]}', "wrong-type"),
    "content-object": (b'{"messages": [{"role": "user", "content": {"zebraquilt": 1}}]}', "wrong-type"),
    "tool-call": (b'{"messages": [{"role": "tool", "content": "zebraquilt"}]}', "tool-call"),
    "html-page": (b"<html><body>zebraquilt 502 Bad Gateway</body></html>", "not-json"),
    "csv-line": (b"zebraquilt,reply", "not-json"),
}
CSV: dict[str, tuple[bytes, str]] = {
    "bad-utf8": (b'"zebraquilt \xff\xfe","reply"', "bad-utf8"),
    "nul": (b'"zebraquilt\x00","reply"', "nul"),
    "unbalanced": (b'"zebraquilt with an open quote,reply', "unbalanced-quotes"),
    "stray-quote": (b'"zebraquilt"tail,reply', "unbalanced-quotes"),
    "too-few": (b"zebraquilt", "too-few-cells"),
    "too-many": (b"zebraquilt,reply,more,cells", "too-many-cells"),
    "ten-megabytes": (b'"' + b"x" * 10_000_000 + b'",reply', "too-large"),
}


def test_jsonl_rows(tmp_path: Path) -> None:
    pick = random.Random(1)
    kinds = [name for name in JSONL for _ in range(1 if name in ("huge-line", "depth-bomb") else 36)]
    pick.shuffle(kinds)
    path = tmp_path / "rows.jsonl"
    expected: dict[int, str] = {}
    with open(path, "wb") as file:
        file.write(line(0) + b"\n")
        for number, kind in enumerate(kinds):
            expected[2 * number + 2] = JSONL[kind][1]
            file.write(JSONL[kind][0] + b"\n" + line(number + 1) + b"\n")
    rejects: list[Reject] = []
    found = list(read(str(path), licence="MIT", on_reject=rejects.append))
    assert len(kinds) >= 1_000
    assert len(set(kinds)) >= 25
    assert {r.line: r.reason for r in rejects} == expected
    assert len(found) == len(kinds) + 1, "no good row is lost to a broken neighbour"
    assert SECRET not in json.dumps([r.to_json() for r in rejects])


def test_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    kinds = [name for name in CSV for _ in range(1 if name == "ten-megabytes" else 12)]
    random.Random(2).shuffle(kinds)
    with open(path, "wb") as file:
        file.write(b"question,answer\n")
        for number, kind in enumerate(kinds):
            file.write(CSV[kind][0] + f'\nIs this row {number} whole?,"It is, and\nhas two lines"\n'.encode())
    rejects: list[Reject] = []
    found = list(read(str(path), licence="MIT", on_reject=rejects.append))
    assert Counter(r.reason for r in rejects) == Counter(CSV[kind][1] for kind in kinds)
    assert [c.messages[0].content for c in found] == [f"Is this row {n} whole?" for n in range(len(kinds))]
    lines = path.read_bytes().split(b"\n")
    for reject in rejects:
        assert reject.line is not None
        assert b"Is this row" not in lines[reject.line - 1]


def test_json_array_with_a_broken_element(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"[" + line(1) + b",\n" + b'{"messages": ' + SECRET.encode() + b"},\n" + line(2) + b"]")
    rejects: list[Reject] = []
    assert len(list(read(str(path), licence="MIT", on_reject=rejects.append))) == 2
    assert [(r.row, r.reason) for r in rejects] == [(2, "not-json")]


def whole(count: int) -> bytes:
    return b"".join(line(n) + b"\n" for n in range(count))


def test_a_truncated_gzip_gives_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(whole(5_000), mtime=0)[:-3_000])
    rejects: list[Reject] = []
    found = list(read(str(path), licence="MIT", on_reject=rejects.append))
    assert 100 < len(found) < 5_000
    assert rejects[-1].reason in ("truncated-file", "not-json")


def test_a_truncated_zstd_gives_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    with pa.output_stream(str(path), compression="zstd") as out:
        out.write(whole(50_000))
    path.write_bytes(path.read_bytes()[:-2_000])
    rejects: list[Reject] = []
    list(read(str(path), licence="MIT", on_reject=rejects.append))
    assert rejects


def test_a_json_file_cut_off_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps([good(n) for n in range(50)]).encode()[:-40])
    rejects: list[Reject] = []
    assert len(list(read(str(path), licence="MIT", on_reject=rejects.append))) == 49
    assert rejects[-1].reason == "truncated-file"


def damaged_parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([{"text": "<HUMAN>: a\n<ASSISTANT>: b"}] * 500), path)
    data = bytearray(path.read_bytes())
    data[40:400] = b"\x00" * 360
    path.write_bytes(bytes(data))


FILES = {
    "empty": (lambda p: p.write_bytes(b""), "empty-file"),
    "blank": (lambda p: p.write_bytes(b"\n\n  \n"), "empty-file"),
    "picture": (lambda p: p.write_bytes(b"\x89PNG\r\n" + bytes(500)), "unknown-container"),
    "spreadsheet": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4), "unknown-container"),
    "program": (lambda p: p.write_bytes(b"\x7fELF" + bytes(300)), "unknown-container"),
    "header only": (lambda p: p.write_bytes(b"question,answer\n"), "no-record"),
    "missing column": (lambda p: p.write_bytes(b"id,age\n1,34\n2,35\n"), "unknown-format"),
    "xml bomb": (
        lambda p: p.write_bytes(b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "zebraquilt">]><l>&a;</l>'),
        "no-record",
    ),
    "broken xml": (lambda p: p.write_bytes(b"<?xml version='1.0'?><Document><Focus>zebraquilt"), "no-record"),
    "plain words": (lambda p: p.write_bytes(b"zebraquilt went home. Nothing else happened.\n"), "no-record"),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_files(tmp_path: Path, name: str) -> None:
    """Alone it is an error with a code; among others it is noted and the rest goes on."""
    make, reason = FILES[name]
    bad, fine = tmp_path / "in" / "bad.dat.csv", tmp_path / "in" / "fine.jsonl"
    bad.parent.mkdir()
    make(bad)
    fine.write_bytes(whole(40))
    assert inspect(bad).reason == reason
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(WarmlineError) as caught:
        prepare(recipe.Data(sources=(str(bad),), licence="MIT"), out)
    assert caught.value.code in ("data-format", "data-empty")
    assert SECRET not in str(caught.value)
    summary = prepare(recipe.Data(sources=(str(bad.parent),), licence="MIT", anonymise=False), out)
    assert summary["rejects"]["read"] == {reason: 1}
    assert summary["counts"]["read"] == 40


def test_a_damaged_parquet_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    damaged_parquet(path)
    rejects: list[Reject] = []
    with contextlib.suppress(DataError):
        list(read(str(path), licence="MIT", on_reject=rejects.append))
        assert rejects


def test_stop_names_file_line_and_reason_and_no_words(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(1) + b"\n" + JSONL["bad-utf8"][0] + b"\n")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError) as caught:
        prepare(recipe.Data(sources=(str(path),), licence="MIT"), out, Choices(on_error="stop"))
    assert caught.value.code == "data-row"
    assert "rows.jsonl:2" in str(caught.value)
    assert "bad-utf8" in str(caught.value)
    assert SECRET not in str(caught.value)
