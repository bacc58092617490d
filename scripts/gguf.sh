#!/bin/sh
# Build llama.cpp into .venv: the fast engine on CPUs, and what writes quantised GGUF files. Without it replies come
# from the slower engine `local`. Takes some minutes the first time. Use: sh scripts/gguf.sh
set -eu
cd "$(dirname "$0")/.."
if .venv/bin/python -c "import llama_cpp, gguf" >/dev/null 2>&1; then
    exit 0
fi
if ! command -v c++ >/dev/null 2>&1 && ! command -v g++ >/dev/null 2>&1; then
    echo "warmline: no C++ compiler, so GGUF export and the llama.cpp engine are left out." >&2
    echo "          Debian/Ubuntu: apt-get install g++ · macOS: xcode-select --install; then: make gguf" >&2
    exit 0
fi
echo "warmline: building llama.cpp for this machine (some minutes, once)"
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
log=.venv/gguf.log
if ! CMAKE_BUILD_PARALLEL_LEVEL=$jobs \
    CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF" \
    .venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt ".[gguf]" >"$log" 2>&1; then
    echo "warmline: llama.cpp could not be built; GGUF export and its engine are left out. See $log" >&2
fi
