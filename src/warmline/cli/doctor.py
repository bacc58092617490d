"""The command that looks at this machine: what is here, what is missing, which engine would reply and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warmline import console, recipe
from warmline.errors import WarmlineError
from warmline.runs import Run

if TYPE_CHECKING:
    from warmline.serve.config import Settings

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "tokenizers",
    "onnxruntime",
    "llama-cpp-python",
    "gguf",
    "httpx",
    "fastapi",
    "argon2-cffi",
    "limits",
)
NEEDED = ("torch", "transformers", "peft", "tokenizers", "onnxruntime", "fastapi", "argon2-cffi", "limits")
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
"""What llama.cpp and torch compute faster with."""
LEAST_DISK = 5e9
LEAST_MEMORY = 3e9
LEAST_FILES = 1024


def doctor(
    name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Also say which engine replies for this run.")
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="As for `warmline chat`.")] = None,
    port: Annotated[int, typer.Option(help="Port the page would take.")] = 8765,
    config: Annotated[
        Path | None, typer.Option("--config", help="Also look at what a server with this file of settings needs.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
) -> None:
    """Say what this machine has, what is missing, and which engine a run would talk with. Changes nothing.

    \b
    Examples:
      warmline doctor
      warmline doctor demo
      warmline doctor demo --engine llamacpp
      warmline doctor --config serve.yaml
    """
    run = Run.open(name, runs) if name else None
    rows = [*machine(runs), *software(), screening()]
    rows += server(config) if config else [listening(port)]
    console.table("this machine", ["", "found", ""], [[what, found, advice] for what, found, advice, _ in rows])
    found: dict[str, Any] = {what: value for what, value, _, _ in rows}
    if run is not None:
        found["engine"] = decided(run, engine)
    cautions = [what for what, _, _, good in rows if not good]
    console.json_line(found | {"cautions": cautions})


Row = tuple[str, str, str, bool]
"""What was looked at, what was found, what to do about it, whether it is as it should be."""


def machine(runs: Path) -> Iterator[Row]:
    """Processor, memory, disk, GPU."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = _flags()
    yield (
        "processor",
        f"{cores} cores, {platform.machine()}, {' '.join(f for f in FEATURES if f in flags)}".strip(" ,"),
        "",
        True,
    )
    memory = psutil.virtual_memory()
    enough = memory.available > LEAST_MEMORY
    advice = "" if enough else "close other programs, or choose a small base in NF4"
    yield "memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free", advice, enough
    there = next(p for p in (runs.resolve(), *runs.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    enough = free > LEAST_DISK
    yield "disk", f"{free / 1e9:.1f} GB free for runs", "" if enough else "free some space", enough
    yield "GPU", _gpu(), "", True


def _flags() -> frozenset[str]:
    """Processor features by the system's own names; none where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(word for line in lines if line.startswith(("flags", "Features")) for word in line.split()[2:])


def _gpu() -> str:
    from warmline.engine.choice import has_gpu

    if not has_gpu() or not (tool := shutil.which("nvidia-smi")):
        return "driver without nvidia-smi" if has_gpu() else "none"
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not answer"
    return "; ".join(line.strip() for line in told.splitlines())


def software() -> Iterator[Row]:
    """Python, packages, and what builds llama-cpp-python where no wheel is at hand."""
    yield "Python", platform.python_version(), "", sys.version_info >= (3, 11)
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package), "", True
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed", f"pip install {package}", package not in NEEDED
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    missing = "" if compiler else "only needed to build llama-cpp-python; without it the engine is `local`"
    yield "C++ compiler", compiler or "none", missing, True


def screening() -> Row:
    """Whether the crisis screen has both its opinions: without its encoder the words judge alone, and find less."""
    from warmline.safety.screen import screen

    rules = screen("I can't do this any more and nobody would miss me.").rules
    if not {"encoder.failed", "classifier.failed"} & set(rules):
        return "crisis screen", "words and encoder", "", True
    return "crisis screen", "words alone", "its encoder can't be loaded: install warmline again, free memory", False


def server(config: Path) -> Iterator[Row]:
    """What `warmline serve --config` needs: settings that hold, keys, TLS, open files, a place to write."""
    import resource

    from warmline.serve.config import is_loopback, load
    from warmline.serve.keys import Keys

    try:
        settings = load(config, {})
    except WarmlineError as error:
        yield "settings", "cannot be used", error.what, False
        return
    who = "this machine only" if settings.local else f"as {', '.join(settings.answer_to) or 'passed on by a proxy'}"
    yield "settings", f"{settings.host}, {who}", "", True
    try:
        held = Keys(settings.keys_file).read()
    except WarmlineError as error:
        yield "keys", error.what, error.hint or "", False
    else:
        valid = sum(key.state == "valid" for key in held.keys)
        enough = settings.local or bool(valid or held.operators)
        advice = "" if enough else "warmline keys operator NAME; warmline keys create NAME --scope chat"
        yield "keys", f"{valid} valid, {len(held.operators)} operators", advice, enough
    safe = is_loopback(settings.host) or bool(settings.certificate or settings.proxies)
    yield (
        "TLS",
        "here" if settings.certificate else "by a proxy" if settings.proxies else "none",
        ("" if safe else "set `certificate` and `certificate_key`, or a proxy and `proxies`"),
        safe,
    )
    if settings.oidc_issuer:
        yield login(settings)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield (
        "open files",
        f"{files:,}",
        "" if files >= LEAST_FILES else "ulimit -n 4096: each visitor takes one",
        (files >= LEAST_FILES),
    )
    if settings.log and str(settings.log) != "-":
        good = os.access(settings.log.parent, os.W_OK)
        yield "log", str(settings.log), "" if good else "its folder cannot be written", good
    yield listening(settings.port)


def login(settings: Settings) -> Row:
    """Whether the service at which operators log in is there; only its public description is asked for."""
    from warmline.cli.talk import login_service
    from warmline.serve.oidc import NoLogin

    try:
        service = login_service(settings)
        if service is not None:
            service.describe()
    except (WarmlineError, NoLogin) as error:
        advice = error.hint if isinstance(error, WarmlineError) else "look at `oidc_issuer`, and whether it answers"
        return "login service", str(error).partition("\n")[0], advice or "", False
    return "login service", str(settings.oidc_issuer), "", True


def listening(port: int) -> Row:
    with socket.socket() as attempt:
        attempt.settimeout(0.5)
        taken = attempt.connect_ex(("127.0.0.1", port)) == 0
    return f"port {port}", "taken" if taken else "free", "choose another with --port" if taken else "", not taken


def decided(run: Run, engine: str | None) -> dict[str, str]:
    """Which engine would reply for the run, and why; an impossible wish is told, not raised."""
    from warmline.engine.choice import choose

    use = engine or recipe.load(str(run.folder / "recipe.yaml")).engine.use
    try:
        choice = choose(run, use)
        if choice.kind == "remote":  # asked whether it is there; no text is sent
            from warmline.engine.remote import RemoteEngine

            RemoteEngine.open(choice.url, choice.model, key=os.environ.get("WARMLINE_ENGINE_KEY")).close()
    except WarmlineError as error:
        console.warn(str(error))
        return {"use": "none", "why": error.what}
    detail = choice.files.model.name if choice.files else choice.url
    console.say(
        f"{run.name}: engine {choice.kind}{f' ({detail})' if detail else ''}, because {choice.why}", style="bold"
    )
    if choice.kind == "local" and use == "auto" and "GGUF" in choice.why:
        console.say(
            f"on a processor llama.cpp is several times faster: warmline export {run.name} --to gguf --quant q4_k_m"
        )
    return {"use": choice.kind, "why": choice.why, "detail": detail}


def register(app: typer.Typer) -> None:
    app.command()(doctor)
