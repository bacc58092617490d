#!/bin/sh
# Make .venv with Warmline and everything it needs, at the versions of constraints.txt. Says what it does; run it again
# at any time. Use: sh scripts/setup.sh [PYTHON]
set -eu
python=${1:-python3}
cd "$(dirname "$0")/.."

if ! command -v "$python" >/dev/null 2>&1; then
    echo "warmline: $python is not installed. Install Python 3.11 or newer and run the same command again." >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "warmline: $("$python" --version) is too old, 3.11 or newer is needed. Try: make setup PYTHON=python3.12" >&2
    exit 2
fi
if [ ! -x .venv/bin/python ]; then
    echo "warmline: making .venv with $("$python" --version)"
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        echo "warmline: the venv module is missing. On Debian or Ubuntu: apt-get install python3-venv" >&2
        rm -rf .venv
        exit 2
    fi
fi
echo "warmline: installing the packages of constraints.txt into .venv (the first time takes a few minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    "$(sed -n 's/^\(torch==.*\)$/\1/p' constraints.txt)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
touch .venv/.installed
echo "warmline: ready. Everything is in .venv; remove that folder to undo it"
