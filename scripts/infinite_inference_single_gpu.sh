#!/usr/bin/env bash
# Live Avatar on one GPU, under the engine contract (scripts/README.md). Settings: live_avatar.sh.
# shellcheck source=/dev/null
source "$(dirname -- "${BASH_SOURCE[0]}")/live_avatar.sh"

la_read "$@"
la_allow_steps 1 2 3 4 # one cache for each step, and there are four
la_find_installation
la_set_environment
la_set_flags --offload_model=True "${LA_ONLINE_DECODE[@]}"
la_exec 1 minimal_inference/s2v_streaming_interact.py
