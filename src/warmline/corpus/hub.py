"""Conversations of a dataset on a hub, streamed by the `datasets` package. The only module here that may go online."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any

from warmline.corpus.formats import Sample
from warmline.corpus.read import Inspection, OnReject, _columns, _conversations, _fit, _safe_names
from warmline.corpus.rows import Row
from warmline.errors import DataError, ModelError
from warmline.messages import Conversation


def _load(source: str) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ModelError(
            f"reading the hub dataset {source} needs the package `datasets`",
            code="dependency-missing",
            hint="pip install datasets, or download the files and name their folder",
        ) from None
    try:
        return datasets.load_dataset(source, streaming=True)
    except Exception as error:
        # The package raises a dozen kinds of errors for one and the same thing: it could not get the data.
        kind = type(error).__name__
        gated = "Gated" in kind or "gated" in str(error)[:300]
        raise DataError(
            f"the hub dataset {source} could not be opened: {kind}",
            code="base-gated" if gated else "hub-unreachable",
            hint="log in and accept its terms on the hub" if gated else "check the id and the network, or name a file",
        ) from None


def _licence_of(source: str) -> str | None:
    """What the dataset's card on the hub says; None where there is no card or it says nothing."""
    try:
        card = importlib.import_module("huggingface_hub").dataset_info(source).card_data
    except Exception:  # as above: whatever went wrong, the licence is not known and has to be stated
        return None
    stated = getattr(card, "license", None)
    return ", ".join(stated) if isinstance(stated, list) else stated


def inspect(source: str, format: str | None, columns: dict[str, str], licence: str | None) -> tuple[Inspection, Any]:
    """What the dataset is taken for, and the opened dataset."""
    splits = _load(source)
    streams = dict(splits) if hasattr(splits, "keys") else {"train": splits}
    first = next(iter(streams.values()))
    sample = Sample("hub", tuple(itertools.islice(first, 20)))
    name, fits = _fit(sample, format, columns)
    stated = getattr(getattr(first, "info", None), "license", None) or _licence_of(source)
    found = Inspection(
        source,
        None,
        "hub",
        name,
        columns=_columns(name, sample, columns),
        names=_safe_names(sample.names),
        licence=stated or licence,
        licence_from="the hub's card" if stated else "stated by hand" if licence else "",
        fits=fits,
    )
    return found, streams


def conversations(
    source: str, format: str | None, columns: dict[str, str], licence: str | None, on_reject: OnReject
) -> Iterator[Conversation]:
    """All splits of the dataset, one after the other; the hub's own split names are kept as a label."""
    found, streams = inspect(source, format, columns, licence)
    if found.format is None:
        raise DataError(
            f"{source} is in no known shape; it has {', '.join(found.names)}",
            code="data-format",
            hint="say which: --format NAME, or name the columns: --columns question=...,answer=...",
        )
    counter = itertools.count(1)
    records = (Row(next(counter), None, value) for stream in streams.values() for value in stream)
    yield from _conversations(found, records, on_reject)
