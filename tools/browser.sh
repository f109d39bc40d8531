#!/usr/bin/env bash
# What the tests of the page need and pip can't install: Chromium with its driver, and axe-core for .venv.
# Chromium is Debian's, by apt, where this runs as root on such a system; elsewhere it is the user's to install.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromedriver >/dev/null || ! { command -v chromium || command -v google-chrome; } >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y chromium chromium-driver fonts-liberation >/dev/null
    else
        echo "Chromium and chromedriver are not installed: the tests of the page are skipped" >&2
    fi
fi

if command -v npm >/dev/null; then
    mkdir -p .venv/npm
    cp tests/npm/package.json tests/npm/package-lock.json .venv/npm/
    npm ci --prefix .venv/npm --ignore-scripts --no-audit --no-fund --silent
else
    echo "npm is not installed: the page is not looked at with axe-core" >&2
fi
