"""Records out of files: CSV, TSV, JSON, JSONL, Parquet, XML, YAML and text, plain or compressed, one at a time.

Knows nothing of conversations. Memory stays flat however large the file is, and a broken record costs that record only:
it is reported as a `Fault` with its line and a reason, never with its text.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args

from warmline.errors import DataError

Container = Literal["csv", "tsv", "json", "jsonl", "parquet", "xml", "yaml", "text"]
CONTAINERS: tuple[Container, ...] = get_args(Container)

MAX_CELL = 1_000_000
"""Characters of the longest cell, line or element that is taken for data; longer ones are a fault of the file."""
MAX_DEPTH = 40
"""Deepest nesting of a JSON record. Real ones have five or six levels."""
_RECORD_LINES = 2_000
_WHOLE_FILE = 64 << 20

SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet", ".xml", ".yaml", ".yml", ".txt"),
    *(".gz", ".zst", ".zstd"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One record: its 1-based number, the line it starts on where there are lines, and its value."""

    number: int
    line: int | None
    value: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """A record that could not be read, and why. `reason` is a short code; no text of the record is kept."""

    number: int
    line: int | None
    reason: str


class Unreadable(Exception):
    """One record is not usable. `reason` is the code that goes into `rejected.jsonl`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


OnFault = Callable[[Fault], None]


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed if it is gzip or zstd; told by its first bytes, not by its name."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DataError(
            f"{path.name} cannot be read: {(error.strerror or 'refused').lower()}", code="data-missing", where=str(path)
        ) from None
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if magic == b"\x28\xb5\x2f\xfd":
        import pyarrow

        return cast(BinaryIO, _Zstd(pyarrow.input_stream(str(path), compression="zstd")))
    return open(path, "rb")


class _Zstd(io.RawIOBase):
    """Arrow's decompressing stream with the one method that `io` builds on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, self._stream.read(None if size is None or size < 0 else size))

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


_BROKEN_STREAM = (EOFError, OSError, zlib.error)


def head(path: Path, size: int = 1 << 16) -> bytes:
    """The first bytes after decompression; fewer when the compressed stream is broken."""
    with open_bytes(path) as stream:
        pieces = []
        try:
            while size > 0 and (piece := stream.read(min(size, 1 << 13))):
                pieces.append(piece)
                size -= len(piece)
        except _BROKEN_STREAM:
            pass
        return b"".join(pieces)


def encoding_of(sample: bytes) -> str:
    """utf-8 unless a byte order mark, or bytes that only Windows-1252 can mean, say otherwise."""
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if sample[:3] == b"\xef\xbb\xbf":
        return "utf-8-sig"
    try:
        sample[: max(0, len(sample) - 4)].decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    # A whole file in Windows-1252 is common; a stray bad byte in a UTF-8 file is another thing. All high bytes must
    # be quotes and dashes or letters beside letters, there must be a few of them, and none may form valid UTF-8.
    high = re.findall(rb"[\x80-\xff]+", sample)
    letters = len(re.findall(rb"(?<=[a-zA-Z])[\xc0-\xff]|[\xc0-\xff](?=[a-zA-Z])|[\x91-\x94\x96\x97\x85\xa0]", sample))
    if len(high) >= 3 and letters >= sum(map(len, high)) and not re.search(rb"[\xc2-\xf4][\x80-\xbf]+", sample):
        return "cp1252"
    return "utf-8"


def container_of(path: Path) -> Container | None:
    """What kind of file it is by its content; None for an empty one.

    Raises:
        DataError: the content is binary and none of the known kinds.
    """
    sample = head(path)
    if not sample.strip(b"\x00 \r\n\t\xef\xbb\xbf"):
        return None
    if sample[:4] == b"PAR1":
        return "parquet"
    binary = sample[:4] in (b"PK\x03\x04", b"\x89PNG", b"%PDF", b"\xd0\xcf\x11\xe0", b"\x7fELF", b"SQLi")
    if binary or (sample.count(b"\x00") > len(sample) // 10 and encoding_of(sample) != "utf-16"):
        raise DataError(
            f"{path.name} is a binary file of no known kind",
            code="data-format",
            where=str(path),
            hint="export it as CSV, JSONL or Parquet",
        )
    text = sample.decode(encoding_of(sample), errors="replace").lstrip("\ufeff \r\n\t")
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst").removesuffix(".zstd")
    if text[:1] in "[{":
        first, _, rest = text.partition("\n")
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            # A broken first line of a JSONL file: look whether the second stands by itself.
            second = rest.partition("\n")[0].strip()
            lines = second.startswith("{") and second.endswith("}") and first.rstrip()[-1:] in "}]"
            return "jsonl" if lines or (name.endswith(("jsonl", "ndjson")) and "\n" in text) else "json"
        more = rest.lstrip()[:1]
        lines = bool(more) or name.endswith(("jsonl", "ndjson")) or not isinstance(value, (dict, list))
        return "jsonl" if lines else "json"
    # `<HUMAN>: ...` in a text file is a speaker, not a tag.
    if re.match(r"<(?!\w+>+\s*:)(\?xml|!--|!DOCTYPE|[A-Za-z][\w:.-]*[\s>/])", text) and ">" in text:
        return "xml"
    if name.endswith((".yaml", ".yml")):
        return "yaml"
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if name.endswith((".tsv", ".tab")):
        return "tsv"
    if name.endswith(".csv"):
        return "csv"
    first = text.partition("\n")[0]
    if name.endswith(".json"):
        return "json"
    if "\t" in first and len(first) < 1000:
        return "tsv"
    if re.fullmatch(r'\s*"?[\w -]{0,40}"?(,"?[\w -]{1,40}"?)+\s*', first) and not re.match(r"\w+:", first):
        return "csv"
    return "text"


class _Lines:
    """Physical lines of a text file with push-back, so that a broken record can be tried again from its next line."""

    def __init__(self, path: Path) -> None:
        self._encoding = encoding_of(head(path, 1 << 18))
        self._stream = open_bytes(path)
        errors = "replace" if self._encoding == "utf-16" else "surrogateescape"
        buffered = io.BufferedReader(cast(Any, self._stream)) if isinstance(self._stream, _Zstd) else self._stream
        self._text = io.TextIOWrapper(buffered, encoding=self._encoding, errors=errors, newline="")
        self._back: list[str] = []
        self.number = 0
        self.truncated = False

    def next(self) -> str | None:
        """The next line with its end; None at the end of the file. A line over the limit comes as one cut piece."""
        if self._back:
            self.number += 1
            return self._back.pop()
        try:
            line = self._text.readline(MAX_CELL + 1)
            if len(line) > MAX_CELL and line[-1] not in "\r\n":
                while (rest := self._text.readline(MAX_CELL)) and rest[-1] not in "\r\n":
                    pass
        except _BROKEN_STREAM:
            self.truncated = True
            return None
        if not line:
            return None
        self.number += 1
        return line

    def back(self, lines: list[str]) -> None:
        self._back.extend(reversed(lines))
        self.number -= len(lines)

    def close(self) -> None:
        self._text.close()


_SURROGATE = re.compile("[\ud800-\udfff]")


def _flaw(text: str) -> str | None:
    """Why text as read from the file cannot be right, or None."""
    if "\x00" in text:
        return "nul"
    if found := _SURROGATE.search(text):
        return "bad-utf8" if "\udc80" <= found[0] <= "\udcff" else "lone-surrogate"
    return None


def flaw_in(value: Any, depth: int = 0) -> str | None:
    """The first flaw in a parsed record: NUL, bytes that are not UTF-8, lone surrogates, a huge cell, a deep nest."""
    if isinstance(value, str):
        return "too-large" if len(value) > MAX_CELL else _flaw(value)
    if depth > MAX_DEPTH:
        return "too-deep"
    children: Any = ()
    if isinstance(value, dict):
        children = itertools.chain(value.keys(), value.values())
    elif isinstance(value, (list, tuple)):
        children = value
    for child in children:
        if isinstance(child, (str, dict, list, tuple)) and (found := flaw_in(child, depth + 1)):
            return found
    return None


def delimiter_of(sample: str, container: Container) -> str:
    """The character between cells, told from the first line."""
    if container == "tsv":
        return "\t"
    first = re.sub(r'"[^"]*"', "", sample.partition("\n")[0])
    return max(",;\t|", key=lambda mark: (first.count(mark), mark == ","))


def _table(path: Path, container: Container, on_fault: OnFault) -> Iterator[Row]:
    delimiter = delimiter_of(head(path).decode(encoding_of(head(path)), errors="replace"), container)
    lines = _Lines(path)
    csv.field_size_limit(4 * MAX_CELL)
    header: list[str] | None = None
    number = 0
    try:
        while (line := lines.next()) is not None:
            start, taken = lines.number, [line]
            if not line.strip("\r\n"):
                continue
            cells, reason = _record(lines, taken, delimiter)
            if header is None:
                if cells is None:
                    on_fault(Fault(0, start, "header"))
                    return
                header = _headings(cells)
                continue
            number += 1
            if cells is not None and len(cells) != len(header):
                reason = "too-few-cells" if len(cells) < len(header) else "too-many-cells"
            elif cells is not None:
                reason = next((f for f in map(flaw_in, cells) if f), "")
            if reason:
                on_fault(Fault(number, start, reason))
                continue
            yield Row(number, start, dict(zip(header, cells or (), strict=True)))
        if lines.truncated:
            on_fault(Fault(number + 1, lines.number + 1, "truncated-file"))
    finally:
        lines.close()


def _headings(cells: list[str]) -> list[str]:
    """Column names: stripped, never empty, never twice."""
    names: list[str] = []
    for index, cell in enumerate(cells, 1):
        name = cell.strip().lstrip("\ufeff") or f"column {index}"
        names.append(name if name not in names else f"{name} ({index})")
    return names


def _record(lines: _Lines, taken: list[str], delimiter: str) -> tuple[list[str] | None, str]:
    """One CSV record that begins with `taken`, over as many lines as its quotes need.

    On a fault only its first line is used up: the lines after it are read again as records of their own, so an
    unbalanced quote costs one row and not the rest of the file.
    """
    text = taken[0]
    if len(text) > MAX_CELL:
        return None, "too-large"
    quotes, size = text.count('"'), len(text)
    while quotes % 2:
        line = lines.next()
        if line is None or len(taken) >= _RECORD_LINES or size + len(line) > MAX_CELL:
            lines.back(taken[1:] + ([line] if line is not None else []))
            return None, "unbalanced-quotes"
        taken.append(line)
        quotes += line.count('"')
        size += len(line)
    try:
        parsed = list(csv.reader(taken, delimiter=delimiter, strict=True))
    except csv.Error:
        lines.back(taken[1:])
        return None, "unbalanced-quotes"
    if len(parsed) != 1:
        lines.back(taken[1:])
        return None, "unbalanced-quotes"
    return parsed[0], ""


def _loads(text: str) -> Any:
    def no_constant(name: str) -> Any:
        raise Unreadable("not-a-number")

    try:
        value = json.loads(text, parse_constant=no_constant)
    except RecursionError:
        raise Unreadable("too-deep") from None
    except ValueError as error:
        raise Unreadable("number-too-long" if "integer string conversion" in str(error) else "not-json") from None
    return value


def _json_lines(path: Path, on_fault: OnFault) -> Iterator[Row]:
    lines = _Lines(path)
    number = 0
    try:
        while (line := lines.next()) is not None:
            if not line.strip():
                continue
            number += 1
            try:
                if len(line) > MAX_CELL:
                    raise Unreadable("too-large")
                # A NUL or a wrong byte also breaks JSON; its own reason says more than `not-json`.
                if found := _flaw(line):
                    raise Unreadable(found)
                value = _loads(line)
                if reason := flaw_in(value):
                    raise Unreadable(reason)
            except Unreadable as error:
                on_fault(Fault(number, lines.number, error.reason))
                continue
            yield Row(number, lines.number, value)
        if lines.truncated:
            on_fault(Fault(number + 1, lines.number + 1, "truncated-file"))
    finally:
        lines.close()


_TURNS = frozenset({"messages", "conversations", "conversation", "dialog", "dialogue", "turns", "utterances", "inputs"})


def _records_in(value: Any) -> list[Any]:
    """The list of records in a parsed JSON file: the file itself, or the one long list in it."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, list) and inner and all(isinstance(item, dict) for item in inner):
                speaks = any(k in inner[0] for k in ("role", "from", "speaker"))
                if key.lower() not in _TURNS or not speaks:
                    return inner
        if value and all(isinstance(inner, dict) for inner in value.values()):
            return [{"id": key} | inner for key, inner in value.items()]
    return [value]


def _json(path: Path, on_fault: OnFault) -> Iterator[Row]:
    """A JSON file. Above 64 MB its first list is streamed; below, the file is read whole."""
    sample = head(path, 1 << 18)
    if path.stat().st_size <= _WHOLE_FILE:
        try:
            with open_bytes(path) as stream:
                data = stream.read()
        except _BROKEN_STREAM:
            data = None  # truncated: what comes before the cut can still be streamed
        if data is not None and len(data) <= 4 * _WHOLE_FILE:
            try:
                value = _loads(data.decode(encoding_of(sample)))
                for number, record in enumerate(_records_in(value), 1):
                    if reason := flaw_in(record):
                        on_fault(Fault(number, None, reason))
                    else:
                        yield Row(number, None, record)
                return
            except UnicodeDecodeError:
                pass
            except Unreadable as error:
                if error.reason == "too-deep" and not sample.lstrip().startswith(b"[{"):
                    on_fault(Fault(1, 1, error.reason))
                    return
    yield from _json_stream(path, encoding_of(sample), on_fault)


def _json_stream(path: Path, encoding: str, on_fault: OnFault) -> Iterator[Row]:
    """Elements of the first list in the file, found and decoded a piece at a time."""
    decoder = json.JSONDecoder()
    number, truncated = 0, False
    with open_bytes(path) as stream:
        reader = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape")
        buffer, ended = "", False

        def more() -> bool:
            nonlocal buffer, ended, truncated
            try:
                piece = "" if ended else reader.read(1 << 18)
            except _BROKEN_STREAM:
                piece, truncated = "", True
            ended = ended or not piece
            buffer += piece
            return bool(piece)

        more()
        while "[" not in buffer and more():
            pass
        start = buffer.find("[")
        if start < 0:
            on_fault(Fault(1, 1, "not-json"))
            return
        buffer = buffer[start + 1 :]
        while True:
            buffer = buffer.lstrip(" \r\n\t,")
            if not buffer:
                if more():
                    continue
                break
            if buffer[0] == "]":
                return
            try:
                value, end = decoder.raw_decode(buffer)
                # The very end of the buffer may cut a number in two.
                if end == len(buffer) and more():
                    continue
            except RecursionError:
                number += 1
                on_fault(Fault(number, None, "too-deep"))
                return
            except ValueError:
                if len(buffer) <= MAX_CELL and more():
                    continue
                number += 1
                resume = re.search(r"\}\s*,?\s*(?=\{)", buffer)
                if truncated or resume is None:
                    on_fault(Fault(number, None, "truncated-file" if truncated or ended else "not-json"))
                    return
                on_fault(Fault(number, None, "not-json"))
                buffer = buffer[resume.end() :]
                continue
            buffer = buffer[end:]
            number += 1
            if reason := flaw_in(value):
                on_fault(Fault(number, None, reason))
            else:
                yield Row(number, None, value)
    on_fault(Fault(number + 1, None, "truncated-file"))


def _parquet(path: Path, on_fault: OnFault) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=False) as file:
            for batch in file.iter_batches(batch_size=512):
                try:
                    values = batch.to_pylist()
                except (UnicodeDecodeError, ValueError, pyarrow.ArrowException):
                    values = [_one(batch, index) for index in range(batch.num_rows)]
                for value in values:
                    number += 1
                    reason = "bad-utf8" if value is None else flaw_in(value)
                    if reason:
                        on_fault(Fault(number, None, reason))
                    else:
                        yield Row(number, None, value)
    except (OSError, pyarrow.ArrowException):
        on_fault(Fault(number + 1, None, "damaged-parquet"))


def _one(batch: Any, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except ValueError:
        return None


def _xml(path: Path, on_fault: OnFault) -> Iterator[Row]:
    """The whole document as one record: {"tag", "attributes", "text", "children"}. Entities of its own are refused."""
    from xml.etree import ElementTree

    try:
        with open_bytes(path) as stream:
            data = stream.read(_WHOLE_FILE + 1)
    except _BROKEN_STREAM:
        on_fault(Fault(1, None, "truncated-file"))
        return
    if len(data) > _WHOLE_FILE:
        on_fault(Fault(1, None, "too-large"))
        return
    if re.search(rb"<!(DOCTYPE|ENTITY)", data):
        on_fault(Fault(1, None, "xml-entities"))
        return
    try:
        root = ElementTree.fromstring(data)
        value = _tree(root, 0)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        line = error.position[0] if isinstance(error, ElementTree.ParseError) else None
        on_fault(Fault(1, line, "not-xml"))
        return
    except (Unreadable, RecursionError):
        on_fault(Fault(1, None, "too-deep"))
        return
    yield Row(1, 1, value)


def _tree(element: Any, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise Unreadable("too-deep")
    return {
        "tag": element.tag,
        "attributes": dict(element.attrib),
        "text": "".join(element.itertext()) if len(element) == 0 else element.text or "",
        "children": [_tree(child, depth + 1) for child in element],
    }


def _yaml(path: Path, on_fault: OnFault) -> Iterator[Row]:
    import yaml

    if path.stat().st_size > _WHOLE_FILE // 8:
        on_fault(Fault(1, None, "too-large"))
        return
    try:
        data = head(path, _WHOLE_FILE // 8)
        value = yaml.safe_load(data.decode(encoding_of(data)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        on_fault(Fault(1, mark.line + 1 if mark else None, "not-yaml"))
        return
    except UnicodeDecodeError:
        on_fault(Fault(1, None, "bad-utf8"))
        return
    except (RecursionError, ValueError):
        on_fault(Fault(1, None, "too-deep"))
        return
    for number, record in enumerate(_records_in(_dates_as_text(value)), 1):
        yield Row(number, None, record)


def _dates_as_text(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {str(key): _dates_as_text(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_dates_as_text(inner, depth + 1) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _text(path: Path, on_fault: OnFault) -> Iterator[Row]:
    """Lines of a text file, blank ones included: what they mean is for the reader of transcripts to say."""
    lines = _Lines(path)
    try:
        while (line := lines.next()) is not None:
            reason = "too-large" if len(line) > MAX_CELL else _flaw(line)
            if reason:
                on_fault(Fault(lines.number, lines.number, reason))
                continue
            yield Row(lines.number, lines.number, line.rstrip("\r\n"))
        if lines.truncated:
            on_fault(Fault(lines.number + 1, lines.number + 1, "truncated-file"))
    finally:
        lines.close()


def rows(path: Path, container: Container, on_fault: OnFault) -> Iterator[Row]:
    """Yield the file's records in order; broken ones go to `on_fault` instead."""
    if container in ("csv", "tsv"):
        return _table(path, container, on_fault)
    readers = {"json": _json, "jsonl": _json_lines, "parquet": _parquet, "xml": _xml, "yaml": _yaml, "text": _text}
    return readers[container](path, on_fault)
