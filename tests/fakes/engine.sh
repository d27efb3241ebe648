#!/usr/bin/env bash
# The launch script of the stand-in engine.
exec "$AVATAR_PYTHON" -S "$(dirname "$0")/engine.py" "$@"
