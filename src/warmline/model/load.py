"""Find and load a base: a local folder, a hub id, or the embedded one. Knows nothing of adapters or training."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.models.falcon import modeling_falcon

from warmline import recipe
from warmline.errors import ModelError
from warmline.runs import fingerprint, sha256

EMBEDDED = "embedded"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own bars and advice off the terminal; errors still raise."""
    level = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def embedded_folder() -> Path:
    """Where the small base that ships with Warmline lies."""
    return Path(str(resources.files("warmline") / "model" / "embedded"))


def locate(model: str) -> Path | str:
    """A folder for a local base, else the hub id as given.

    Raises:
        ModelError: it looks like a path and is not there.
    """
    if model == EMBEDDED:
        return embedded_folder()
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(
            f"base {model} is a file",
            code="base-missing",
            hint="name the folder that holds config.json, the tokenizer and the weights",
        )
    if model.startswith((".", "/", "~")) or model.count("/") != 1 or any(c.isspace() for c in model):
        raise ModelError(
            f"base `{model}` does not exist",
            code="base-missing",
            hint="give a folder with config.json and weights, a hub id such as `Qwen/Qwen3-4B`, or `embedded`",
        )
    return model


@contextlib.contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn the loaders' many exceptions into one clear message each."""
    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"base `{model}` asks for an accepted licence and a login",
            code="base-gated",
            hint="accept it on the model's hub page, then run `hf auth login`, or download it and name the folder",
        ) from None
    except LocalEntryNotFoundError:
        raise _unreachable(model) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"base `{model}` is neither a folder here nor a public model on the hub",
            code="base-missing",
            hint="check the spelling; for a private model log in with `hf auth login`",
        ) from None
    except (HfHubHTTPError, ConnectionError, TimeoutError):
        raise _unreachable(model) from None
    except torch.OutOfMemoryError:
        raise ModelError(
            f"base `{model}` does not fit into memory", code="fit-memory", hint="set base.load to `nf4`"
        ) from None
    except SafetensorError:
        raise ModelError(
            f"a weight file of base `{model}` is damaged", code="base-weights", hint="was the download interrupted?"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise ModelError(
                f"base `{model}` brings its own Python code",
                code="base-remote-code",
                hint="read that code, pin base.revision, then set base.trust_remote_code: true",
            ) from None
        if any(sign in text for sign in ("couldn't connect", "offline mode", "Connection error", "Cannot connect")):
            raise _unreachable(model) from None
        raise ModelError(
            f"base `{model}` cannot be loaded: {text[:300]}",
            code="base-unsupported",
            hint="Warmline loads causal language models that transformers knows, such as Llama, Falcon, Gemma, Qwen3",
        ) from None


def _unreachable(model: str) -> ModelError:
    return ModelError(
        f"the model hub cannot be reached, and base `{model}` is not stored on this machine",
        code="hub-unreachable",
        hint="check the network, or name a local folder; `embedded` needs neither",
    )


def check(base: recipe.Base) -> None:
    """Say at once, before anything is read or made, that a local base cannot be used.

    Raises:
        ModelError: the folder is not there, is not a model's, or holds no weights. A hub id is not asked for here.
    """
    folder = locate(base.model)
    if not isinstance(folder, Path):
        return
    config = folder / "config.json"
    if not config.exists():
        raise ModelError(
            f"{folder} holds no config.json, so it is not a model's folder",
            code="base-missing",
            hint="name the folder that holds config.json, the tokenizer and the weights",
        )
    try:
        kind = json.loads(config.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise ModelError("config.json of the base is not JSON", code="base-unsupported", where=str(config)) from None
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        raise ModelError(
            f"{folder} holds no weights",
            code="base-weights",
            hint="*.safetensors files belong beside config.json; was the download interrupted?",
        )
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in known and not (folder / "tokenizer_config.json").exists():
        raise ModelError(f"{folder} is of type `{kind}`, which is not a causal language model", code="base-unsupported")


def load_config(base: recipe.Base, here: bool = False) -> Any:
    """The base's configuration; of one that also sees pictures, that of the part that reads and writes.

    With `here` the hub is not asked: the base is on this machine or unknown.
    """
    with explained(base.model), quiet():
        config = AutoConfig.from_pretrained(
            str(locate(base.model)),
            revision=base.revision,
            trust_remote_code=base.trust_remote_code,
            local_files_only=here,
        )
    text = config.get_text_config()
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return text if text.model_type in known else config


def load_tokenizer(base: recipe.Base) -> Any:
    """The base's tokenizer. Its padding token, if it has none, stays unset: packing needs no padding."""
    where = locate(base.model)
    with explained(base.model), quiet():
        return AutoTokenizer.from_pretrained(
            str(where), revision=base.revision, trust_remote_code=base.trust_remote_code
        )


def half(device: str) -> torch.dtype:
    """What is multiplied on a device: bf16, or fp16 on GPUs without units for bf16, such as a T4.

    torch calls bf16 supported there too, for it can imitate it: several times slower than fp16.
    """
    slow = device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if slow else torch.bfloat16


def load_model(base: recipe.Base, device: str | None = None) -> Any:
    """The base's weights in the precision the recipe asks for, ready for inference or an adapter.

    Raises:
        ModelError: missing, without weights, unsupported, gated, or the hub cannot be reached.
    """
    check(base)
    where = locate(base.model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if base.load == "fp32" else half(device)
    quantisation = None
    if base.load == "nf4":
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=base.double_quant,
            bnb_4bit_compute_dtype=half(device),
        )
    elif base.load == "int8":
        quantisation = BitsAndBytesConfig(load_in_8bit=True)
    # transformers quantises layers of exactly torch's class and passes over Falcon's own, which compute the same.
    modeling_falcon.FalconLinear = torch.nn.Linear
    config = load_config(base)
    part = config.model_type.endswith("_text")
    with explained(base.model), quiet():
        model, found = AutoModelForCausalLM.from_pretrained(
            str(where),
            config=config,
            revision=base.revision,
            trust_remote_code=base.trust_remote_code,
            dtype=dtype,
            quantization_config=quantisation,
            device_map={"": device},
            # Where the part that reads and writes lies in the files of a base that also sees pictures.
            key_mapping={r"^(model\.)?language_model\.(model\.)?(?!lm_head)": "model."} if part else None,
            output_loading_info=True,
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{len(missing)} of the weights of base `{base.model}` are not in its files, the first is {missing[0]}",
            code="base-weights",
            hint="was the download interrupted?",
        )
    for module in model.modules():
        # bitsandbytes' repacked NF4 layout for AVX-512 exists for whole blocks only; others keep the general one.
        if getattr(module, "support_avx512bf16_for_cpu", False) and (
            module.out_features % 32 or module.in_features % 64
        ):
            module.support_avx512bf16_for_cpu = False
    model.eval()
    return model


def identity(base: recipe.Base) -> dict[str, Any]:
    """What makes this base this base: its name and a hash of its configuration and weights.

    Weight files over 64 MB are known by size and by the hash of their first and last 4 MB, so that a 15 GB base takes
    milliseconds. A hub base that is not on this machine is known by name and revision.
    """
    where = locate(base.model)
    if not isinstance(where, Path):
        return {"model": base.model, "revision": base.revision}
    files = {}
    for path in sorted([*where.glob("*.json"), *where.glob("*.safetensors"), *where.glob("*.bin")]):
        size = path.stat().st_size
        if size <= 64 << 20:
            files[path.name] = sha256(path)
            continue
        with open(path, "rb") as file:
            head = file.read(4 << 20)
            file.seek(-(4 << 20), 2)
            files[path.name] = fingerprint([size, head.hex(), file.read().hex()])
    return {"model": base.model, "hash": fingerprint(files)}


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a loaded model: as trained by its makers, whatever the precision in memory."""

    total: int
    trainable: int


def size(model: Any) -> Size:
    total = trainable = 0
    for parameter in model.parameters():
        # bitsandbytes keeps two NF4 values in one byte.
        packed = 2 if type(parameter).__name__ == "Params4bit" else 1
        total += parameter.numel() * packed
        trainable += parameter.numel() if parameter.requires_grad else 0
    return Size(total, trainable)
