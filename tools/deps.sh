#!/usr/bin/env bash
# Installs the system packages that LamaGrid needs, or names them. Does nothing when all are there.
set -euo pipefail

missing=()
want() { # want PACKAGE COMMAND...: the package is missing when the command fails
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
library() { ldconfig -p | grep -q "$1"; }
browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
virtualenv() { # a Python built by hand brings its own; Debian's needs python3-venv
    local python
    python=$("$(dirname "$0")/python311.sh" 2>/dev/null) || return 0 # make venv says what to do
    "$python" -c 'import ensurepip, venv'
}
PATH=$PATH:/sbin:/usr/sbin

want gcc command -v gcc
want g++ command -v g++
want make command -v make
want cmake command -v cmake
want nasm command -v nasm
want libgl1 library 'libGL\.so\.1'
want libglib2.0-0 library 'libgthread-2\.0\.so\.0'
want chromium browser
want iproute2 command -v ip
want python3-venv virtualenv

if [ ${#missing[@]} -eq 0 ]; then
    echo "deps: all system packages are there"
    exit 0
fi
install="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "deps: missing: ${missing[*]}"
    echo "deps: as root on Debian or Ubuntu:  $install"
    exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
