"""The exception tree: every expected failure says what happened, where, and what to try.

Knows nobody: no other module of the package is imported here. A person's words never enter an error; records are
named by file, line or id.
"""

from __future__ import annotations

CODES: dict[str, str] = {
    "recipe-unknown": "no recipe of that name or path exists",
    "recipe-invalid": "a recipe holds unknown settings or values out of range",
    "data-missing": "a data file or folder does not exist",
    "data-format": "a data file is in none of the known formats, or a needed column is missing",
    "data-row": "a row of a data file cannot be read",
    "data-empty": "no usable conversation is left",
    "data-split": "the corpus is too small to be split",
    "data-licence": "the licence of a source is not known and was not stated",
    "data-too-long": "a conversation is longer than the context and the policy says stop",
    "base-missing": "the base's folder or hub id does not exist",
    "base-weights": "the base's folder holds no weights",
    "base-unsupported": "the base's architecture is not a causal language model that can be loaded",
    "base-gated": "the hub wants a login or an accepted licence for this base",
    "base-remote-code": "the base brings its own code and the recipe does not trust it",
    "base-tokenizer": "the base's tokenizer is missing or lacks an end-of-turn token",
    "base-mismatch": "the adapter was trained on another base",
    "hub-unreachable": "the model hub cannot be reached",
    "adapter-targets": "the adapter's target modules do not exist in the base",
    "adapter-missing": "the run holds no trained adapter",
    "fit-memory": "the work does not fit into memory",
    "train-nan": "the loss became NaN or infinite",
    "checkpoint-damaged": "a checkpoint's files do not match its manifest",
    "resume-changed": "an unfinished training was begun with other data, another base or other settings",
    "launch-unsupported": "the launcher asks for a way of training on several devices that Warmline does not have",
    "run-missing": "no run of that name exists",
    "run-locked": "another process is working on this run",
    "run-unwritable": "the run's folder cannot be written",
    "disk-full": "the disk is full",
    "port-in-use": "the port is taken",
    "serve-config": "the server's settings cannot be used as they are",
    "keys-file": "the file of API keys and operators is damaged, or others can read it",
    "serve-open": "the server was asked to listen beyond this machine without a key",
    "engine-failed": "the engine could not produce a reply",
    "engine-unreachable": "the engine's server cannot be reached, refuses the key or has no such model",
    "engine-unfit": "the engine that was asked for cannot be used for this run on this machine",
    "gguf-damaged": "a GGUF file is damaged, or of an architecture that llama.cpp does not know",
    "safety-data": "a safety table (lexicon, protocol, resources, policy) is damaged or was loosened",
    "audit-broken": "the audit chain does not verify",
    "country-unknown": "no such country in the table of resources",
    "usage": "the command line asks for something that does not go together",
    "export-refused": "the evaluation found the model less safe than its base",
    "export-differs": "an exported file does not do what the trained model does, or was changed since it was checked",
    "export-unsupported": "the model cannot be written in this form",
    "push-secret": "a secret stands in a file that is to be published",
    "suite-invalid": "a suite, visitor or rubric file of the safety evaluation cannot be used",
    "judge-self": "a model was asked to judge itself or its own base",
    "judge-nonsense": "the judge answers something that is no verdict",
    "hub-refused": "the hub does not accept the repository or the login",
    "vault-key": "the vault's key is missing, wrong or badly kept",
    "vault-plain": "the file that was named as a vault is an unencrypted database",
    "vault-damaged": "a vault, its locked keys or a backup of it is damaged or incomplete",
    "vault-migration": "a vault's tables are of a later version, or were left half-way between two",
    "vault-busy": "another program has the vault open, or there is one already",
    "vault-unreachable": "the vault's database cannot be reached",
    "vault-unknown": "the vault holds no such conversation",
    "dependency-missing": "an optional package or a system tool is not installed",
}
"""Every code with its one-line cause. `docs/reference/errors.md` has a heading for each; a test holds them equal."""


class WarmlineError(Exception):
    """An expected failure: what happened with the value, where, and what to try.

    >>> print(WarmlineError("recipe `demmo` does not exist", code="recipe-unknown", hint="did you mean `demo`?"))
    recipe `demmo` does not exist [recipe-unknown]
    hint: did you mean `demo`?
    """

    def __init__(self, what: str, *, code: str, where: str | None = None, hint: str | None = None) -> None:
        if code not in CODES:
            raise KeyError(f"error code `{code}` is not listed in warmline.errors.CODES")
        self.what, self.code, self.where, self.hint = what, code, where, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        hint = f"\nhint: {self.hint}" if self.hint else ""
        return f"{self.what}{where} [{self.code}]{hint}"


class RecipeError(WarmlineError):
    """A recipe that does not exist or does not make sense. All its faults are reported at once."""


class DataError(WarmlineError):
    """Input data that cannot be used as it is."""


class ModelError(WarmlineError):
    """A base, tokenizer or adapter that cannot be loaded or does not fit the others."""


class RunError(WarmlineError):
    """A run folder that is missing, locked, unwritable or damaged."""


class EngineError(WarmlineError):
    """An engine that cannot reply. A visitor never sees it: `chat` answers with the vetted fallback."""


class ServeError(WarmlineError):
    """A server that cannot start as asked."""


class SafetyError(WarmlineError):
    """A damaged or loosened safety table, or a broken audit chain. Nothing is served until it is mended."""


class VaultError(WarmlineError):
    """A vault that cannot be opened, or whose key does not fit. Nothing in it was changed."""
