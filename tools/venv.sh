#!/usr/bin/env bash
# Makes .venv: Lama Cleaner with its pins, and the tools to build and test with. Run by `make venv`.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(tools/python311.sh)
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    tools/space.sh 8 . "the Python environment (torch with CUDA)"
fi
if [ ! -x .venv/bin/python ]; then
    echo "venv: 1/3 making .venv with $python"
    "$python" -m venv .venv
else
    echo "venv: 1/3 .venv is there"
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
echo "venv: 2/3 installing lama-cleaner 1.2.5, torch, what the plugins need, and tools (about 3 GB the first time)"
# Every file is checked against its hash. The list is complete, so nothing else is looked for.
pip install --progress-bar "${PIP_PROGRESS_BAR:-on}" --require-hashes --no-deps -r constraints/hashes.txt
echo "venv: 3/3 checking the libraries that OpenCV loads"
.venv/bin/python tools/libraries.py
