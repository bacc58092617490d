"""One exported form to a hub, in one commit: first every file is looked through for secrets. Knows no model.

Exactly the files of the export's manifest go, with their card; nothing that someone has laid beside them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from warmline import console
from warmline.errors import ModelError, RunError
from warmline.model.export import FORMS
from warmline.runs import Run, sha256

CARD = "README.md"

HTTPError: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]
"""Of the HTTP package that this version of the hub's client is built on."""

SECRETS: dict[str, bytes] = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "an OpenAI-style key": rb"\bsk-[A-Za-z0-9_-]{32,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google key": rb"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": rb"\bxox[baprs]-[0-9A-Za-z-]{20,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a web token": rb"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{15,}",
    "a password in an address": rb"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']{1,60}:[^\s/@\"']{3,60}@[A-Za-z0-9]",
    "a stated password or key": rb"(?i)\b(?:password|passwd|api[_-]?key|secret[_-]?key|access[_-]?token)\b"
    rb"[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/_.-]{12,}",
    "a path with a person's account": rb"(?:/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})"
    rb"[A-Za-z][A-Za-z0-9._-]*[/\\\"']",
}
"""What must not leave this machine, by kind. Looked for in every file, weights included."""

_CHUNK, _OVERLAP = 8 << 20, 4096


def secrets_in(path: Path, known: tuple[str, ...] = ()) -> list[str]:
    """Kinds of secrets found in a file. Never what they are. `known` are secrets of this very machine.

    Memory stays flat; a secret across two chunks is found.
    """
    patterns = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}
    exact = [value.encode() for value in known if len(value) >= 8]
    found: set[str] = set()
    tail = b""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            text = tail + chunk
            found |= {kind for kind, pattern in patterns.items() if kind not in found and pattern.search(text)}
            if any(value in text for value in exact):
                found.add("a secret of this machine's environment")
            tail = text[-_OVERLAP:]
    return sorted(found)


def _known_secrets() -> tuple[str, ...]:
    named = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY", re.IGNORECASE)
    # The name of a setting may speak of tokens where its value is only a number or a word.
    likely = re.compile(r"\d.{10,}|.{10,}\d")
    values = [value for name, value in os.environ.items() if named.search(name) and likely.search(value)]
    return tuple(filter(None, [*values, get_token()]))


def choose(run: Run, form: str | None) -> tuple[str, dict[str, Any]]:
    """The form to push and the export's manifest.

    Raises:
        RunError: nothing is exported, or several forms are and none was named.
    """
    if not (run.folder / "export").exists():
        raise RunError(
            f"run `{run.name}` is not exported yet",
            code="run-missing",
            where=str(run.folder),
            hint=f"warmline export {run.name} --to adapter",
        )
    manifest = run.manifest("export")
    there = [name for name in FORMS if f"{name}/{CARD}" in manifest["files"]]
    chosen = form or (there[0] if len(there) == 1 else None)
    if chosen is None or chosen not in there:
        raise RunError(
            f"run `{run.name}` is exported as {' and '.join(there)}"
            + (f", not as {form}" if form else "; a repository takes one form"),
            code="usage",
            hint=f"--form {there[0]}" if not form else f"warmline export {run.name} --to {form}",
        )
    return chosen, manifest


def _files(run: Run, form: str, manifest: dict[str, Any]) -> list[Path]:
    """The form's files, unchanged since they were checked. A card may have been added to by hand."""
    folder = run.folder / "export"
    names = [name for name in manifest["files"] if name.startswith(f"{form}/")]
    for name in names:
        path = folder / name
        if not path.is_file() or (path.name != CARD and sha256(path) != manifest["files"][name]):
            raise RunError(
                f"{name} is not as it was exported and checked",
                code="export-differs",
                where=str(path),
                hint=f"remove {folder} and run `warmline export {run.name}` again",
            )
    return [folder / name for name in sorted(names)]


def push(run: Run, repository: str, *, form: str | None = None, private: bool = False) -> str:
    """Create the repository if need be and commit one form to it. Returns the commit's address.

    Raises:
        RunError: nothing fits to be pushed, a licence is unknown and the repository is to be public, or a file has
            changed.
        ModelError: a secret was found; the hub refuses or cannot be reached. Nothing has been published then.
    """
    chosen, manifest = choose(run, form)
    unknown = "unknown" in manifest["summary"]["licences"]
    if unknown and not private:
        raise RunError(
            "the licence of the base or of some data is unknown, so the model must not be published",
            code="data-licence",
            hint=f"state it: `warmline export {run.name} --base-licence NAME`, data.licence in the recipe; or use "
            "--private",
        )
    if manifest["inputs"]["safety"]["state"] != "passed":
        console.warn("the evaluation has not passed this model; its card says so")
    files = _files(run, chosen, manifest)
    folder, known = run.folder / "export" / chosen, _known_secrets()
    leaks = [f"{path.relative_to(folder)}: {', '.join(kinds)}" for path in files if (kinds := secrets_in(path, known))]
    if leaks:
        raise ModelError(
            f"secrets stand in the files, and nothing was sent: {'; '.join(leaks)}",
            code="push-secret",
            where=str(folder),
            hint="remove them at their source (the base's files, the recipe), export again, and renew the secret",
        )
    console.say(f"{len(files)} files looked through, no secret found")
    api = HfApi(library_name="warmline")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise ModelError(
                f"{repository} is there already and is public",
                code="hub-refused",
                hint="choose another name, or make it private on the hub",
            )
        operations = [CommitOperationAdd(str(path.relative_to(folder)), path) for path in files]
        commit = api.create_commit(
            repository, operations, commit_message=f"Add {run.name} as {chosen}, exported by Warmline"
        )
    except (HFValidationError, ValueError) as error:
        raise ModelError(
            f"`{repository}` cannot take this: {' '.join(str(error).split())[:200]}",
            code="hub-refused",
            hint="a repository is named like `owner/name`",
        ) from None
    except LocalTokenNotFoundError:
        raise _refused(repository, "it wants a login") from None
    except HfHubHTTPError as error:
        raise _refused(repository, f"it answers {error.response.status_code}") from None
    except (OfflineModeIsEnabled, HTTPError, OSError, RuntimeError) as error:
        raise ModelError(
            f"the hub cannot be reached ({type(error).__name__})",
            code="hub-unreachable",
            hint="check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and run the same command again",
        ) from None
    return str(commit.commit_url)


def _refused(repository: str, how: str) -> ModelError:
    return ModelError(
        f"the hub refuses {repository}: {how}",
        code="hub-refused",
        hint="log in with `hf auth login`, with a token that may write to this name",
    )
