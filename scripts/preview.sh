#!/usr/bin/env bash
# The CPU preview engine, under the engine contract (scripts/README.md).
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# The working folder is the attempt's own: nothing there may shadow a module.
export PYTHONPATH=$root PYTHONSAFEPATH=1
exec "${AVATAR_PYTHON:-python3}" -m engines.preview "$@"
