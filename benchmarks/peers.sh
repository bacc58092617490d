#!/bin/sh
# The trainers that benchmarks/train_step.py compares with, each in an environment of its own under build/peers.
#
#     benchmarks/peers.sh [llamafactory] [torchtune] [litgpt]
#     benchmarks/peers.sh unsloth          for benchmarks/full_size.py; needs a GPU and CUDA's torch
#
# Torch is pinned to Warmline's, so that all are timed on the same kernels; on a machine without a GPU point pip at the
# CPU wheel (PIP_FIND_LINKS or --index-url), or it fetches gigabytes of CUDA. What asks for another torch, or for audio
# and pictures, is installed without its dependencies and given the few that training takes.
set -eu
cd "$(dirname "$0")/.."
torch=torch==2.13.0
for peer in ${*:-llamafactory torchtune litgpt}; do
    python="build/peers/$peer/bin/python"
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "build/peers/$peer"
    install() { "$python" -m pip install --quiet "$@"; }
    case $peer in
    llamafactory)
        install $torch transformers==5.6.0 accelerate==1.11.0 datasets==4.0.0 peft==0.18.1 bitsandbytes==0.50.2 \
            einops fire omegaconf pandas scipy sentencepiece tiktoken "tyro<0.9" pyyaml protobuf matplotlib pillow
        install --no-deps llamafactory==0.9.5 trl==0.24.0
        ;;
    torchtune)
        install $torch datasets==4.0.0 omegaconf sentencepiece tiktoken blobfile tqdm pillow psutil safetensors \
            huggingface_hub tokenizers kagglehub
        install --no-deps torchtune==0.6.1 torchao==0.9.0 torchdata==0.11.0
        ;;
    litgpt)
        install $torch safetensors tokenizers jsonargparse huggingface_hub tqdm pyyaml psutil \
            lightning-utilities torchmetrics packaging fsspec typing_extensions
        install --no-deps litgpt==0.5.13 lightning==2.6.0
        ;;
    unsloth)
        install $torch unsloth==2026.10.9 pydantic pyyaml
        ;;
    *)
        echo "no such peer: $peer" >&2
        exit 2
        ;;
    esac
done
