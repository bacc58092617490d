#!/bin/sh
# Install what the tests need beyond pip: Chromium, for the page, a C++ compiler, for llama.cpp, and PostgreSQL's programs,
# for the vault (the tests start a cluster of their own). As root on Debian or Ubuntu it installs; elsewhere it prints the
# command, and the tests that need them are skipped (in CI they fail).
set -eu
missing=""
found=""
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then found=$name; break; fi
done
[ -n "$found" ] || [ -d "/Applications/Google Chrome.app" ] || missing="chromium"
command -v c++ >/dev/null 2>&1 || missing="$missing g++"
if ! command -v initdb >/dev/null 2>&1 && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    missing="$missing postgresql"
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "warmline: installing for the tests: $missing"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
elif command -v apt-get >/dev/null 2>&1; then
    echo "warmline: some tests are SKIPPED; to run them: sudo apt-get install $missing" >&2
elif command -v brew >/dev/null 2>&1; then
    echo "warmline: some tests are SKIPPED; to run them: brew install --cask google-chrome; brew install postgresql; xcode-select --install" >&2
else
    echo "warmline: some tests are SKIPPED; to run them, install: $missing" >&2
fi
