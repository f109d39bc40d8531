#!/usr/bin/env bash
# What tests need and pip can't install: for the page Chromium with its driver, and axe-core for .venv; systemd.
# Chromium and systemd are Debian's, by apt, where this runs as root on such a system; elsewhere it is the user's to install.
# What can't be had is said, and is no failure: the tests of the page are skipped then. Asked again the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/.browser
missing=0

has_browser() {
    command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome; } >/dev/null
}

has_systemd() {
    [ -x /lib/systemd/systemd ] && command -v systemctl >/dev/null
}

by_apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y "$@" >/dev/null
}

by_npm() {
    command -v npm >/dev/null || return 1
    mkdir -p .venv/npm
    cp tests/npm/package.json tests/npm/package-lock.json .venv/npm/
    npm ci --prefix .venv/npm --ignore-scripts --no-audit --no-fund --silent
}

if ! has_systemd && ! by_apt systemd; then
    echo "systemd can't be installed here: the tests of its units are skipped" >&2
    missing=1
fi
if ! has_browser && ! by_apt chromium chromium-driver fonts-liberation; then
    echo "Chromium and chromedriver can't be installed here: the tests of the page are skipped" >&2
    missing=1
fi
if ! by_npm; then
    echo "axe-core can't be installed by npm here: the page is not looked at with it" >&2
    missing=1
fi
mkdir -p .venv
if [ "$missing" = 0 ]; then touch "$stamp"; fi
