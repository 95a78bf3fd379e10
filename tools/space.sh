#!/usr/bin/env bash
# space.sh GIB FOLDER WHAT: fails, and says so, when a disk has less room than that.
set -euo pipefail

need=$1 folder=$2 what=$3
free=$(($(df -Pk "$folder" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
if [ "$free" -lt "$need" ]; then
    echo "$what needs $need GB in $folder, which has $free GB left: free some or build elsewhere" >&2
    exit 1
fi
