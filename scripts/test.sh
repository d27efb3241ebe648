#!/usr/bin/env bash
# All tests: first those that can share the machine, side by side, then those that measure, one at a time.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=.venv/bin/python
scripts/test_packages.sh
# Hundreds of processes are started; each would compile the modules anew where Python is told not to keep them.
unset PYTHONDONTWRITEBYTECODE
# Two more than there are cores: many tests wait for a process or a socket.
workers=${TEST_WORKERS:-$(($(nproc 2>/dev/null || echo 2) + 2))}

"$python" -m pytest -q -n "$workers" --dist worksteal -m "not alone and not long" "$@"
shared=$?
"$python" -m pytest -q -m "alone and not long" "$@"
alone=$?
exit $((shared != 0 || alone != 0))
