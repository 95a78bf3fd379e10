#!/usr/bin/env bash
# Prints the path of a CPython 3.11: $PYTHON, python3.11, python3 or one of pyenv's.
set -euo pipefail

fits() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython")' 2>/dev/null; }

for candidate in ${PYTHON:-} python3.11 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.11*/bin/python3; do
    path=$(command -v "$candidate") || continue
    if fits "$path"; then
        "$path" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done
echo "no CPython 3.11 found (Lama Cleaner 1.2.5 does not run on later ones): install python3.11, or \`pyenv install 3.11\`, or set PYTHON=/path/to/python3.11" >&2
exit 1
