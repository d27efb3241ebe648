#!/usr/bin/env bash
# Live Avatar on four GPUs, under the engine contract (scripts/README.md): one denoising step on each of three, decoding
# on the fourth. Experimental: three steps instead of the four that the model was distilled for look a little worse.
# Upstream's command line insists on five GPUs, its Gradio module does not: engines/live_avatar/driver.py runs that.
# Settings: live_avatar.sh. Decoding online is for one GPU and is left out.
# shellcheck source=/dev/null
source "$(dirname -- "${BASH_SOURCE[0]}")/live_avatar.sh"
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

la_read "$@"
la_allow_steps 3 # as many as denoising GPUs: with fewer the ranks wait for ever
la_find_installation
la_set_environment
la_set_flags --offload_model=False --num_gpus_dit=3 --enable_vae_parallel "--save_dir=$LA_ATTEMPT/gradio/"
la_exec 4 "$root/engines/live_avatar/driver.py"
