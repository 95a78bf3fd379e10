#!/usr/bin/env bash
# Makes .venv: Lama Cleaner with its pins, then the tools to build and test with. Run by `make venv`.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(tools/python311.sh)
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    tools/space.sh 8 . "the Python environment (torch with CUDA)"
fi
if [ ! -x .venv/bin/python ]; then
    echo "venv: 1/5 making .venv with $python"
    "$python" -m venv .venv
else
    echo "venv: 1/5 .venv is there"
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
echo "venv: 2/5 installing lama-cleaner 1.2.5 and torch (about 3 GB the first time)"
pip install --progress-bar "${PIP_PROGRESS_BAR:-on}" -r constraints/lama-cleaner.txt
echo "venv: 3/5 installing what the plugins need"
pip install --progress-bar "${PIP_PROGRESS_BAR:-on}" -r constraints/plugins.txt -c constraints/lama-cleaner.txt
echo "venv: 4/5 installing build and test tools"
pip install --progress-bar "${PIP_PROGRESS_BAR:-on}" -r constraints/dev.txt -c constraints/lama-cleaner.txt
echo "venv: 5/5 checking the libraries that OpenCV loads"
.venv/bin/python tools/libraries.py
