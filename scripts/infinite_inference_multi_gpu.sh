#!/usr/bin/env bash
# Live Avatar on five GPUs, under the engine contract (scripts/README.md): one denoising step on each of four, decoding
# on the fifth. Settings: live_avatar.sh. Decoding online is for one GPU and is left out.
# shellcheck source=/dev/null
source "$(dirname -- "${BASH_SOURCE[0]}")/live_avatar.sh"

la_read "$@"
la_allow_steps 4 # as many as denoising GPUs: with fewer the ranks wait for ever
la_find_installation
la_set_environment
la_set_flags --offload_model=False --num_gpus_dit=4 --enable_vae_parallel
la_exec 5 minimal_inference/s2v_streaming_interact.py
