#!/usr/bin/env bash
# What the three Live Avatar scripts share; they source it. From the engine contract (scripts/README.md) to the flags of
# Alibaba-Quark/LiveAvatar (written against 9c2c38d), its environment and torchrun.
#
# Settings, all from the environment:
#   LIVE_AVATAR_HOME      the checkout; may be read-only
#   LIVE_AVATAR_TORCHRUN  the torchrun of the checkout's own Python environment (default: torchrun on PATH)
#   LIVE_AVATAR_LORA      the LoRA's file (default: ckpt/LiveAvatar/liveavatar.safetensors in the checkout)
#   LIVE_AVATAR_CACHE     where compiled kernels are kept (default: ~/.cache/live-avatar; else the attempt's folder)
#   LIVE_AVATAR_COMPILE   true, false, or auto (default): compile from LIVE_AVATAR_COMPILE_CLIPS clips on (default 60)
#
# Ends with 64 for arguments that make no sense and with 78 for an installation that cannot work, each in one line.
set -euo pipefail

readonly LA_USAGE=64 LA_CONFIG=78
LA_ATTEMPT=$PWD # the working folder at the start: whatever is written goes here or into the output folder
LA_CKPT=ckpt/Wan2.2-S2V-14B

la_die() {
    printf 'live avatar: %s\n' "$2" >&2
    exit "$1"
}

# Read the contract's arguments and the row's own. Only what is named here reaches upstream: the command line has flags
# that load any file, clone repositories, or have no effect.
la_read() {
    LA_EXTRA=() LA_ONLINE_DECODE=()
    local argument value
    for argument in "$@"; do
        value=${argument#*=}
        case $argument in
            --prompt=*) LA_PROMPT=$value ;;
            --image=*) LA_IMAGE=$value ;;
            --audio=*) LA_AUDIO=$value ;;
            --size=*) LA_SIZE=$value ;;
            --num_clip=*) LA_CLIPS=$value ;;
            --sample_steps=*) LA_STEPS=$value ;;
            --seed=*) LA_SEED=$value ;;
            --output_dir=*) LA_OUTPUT=$value ;;
            --output_format=mp4) ;;
            --enable_online_decode)
                # shellcheck disable=SC2034 # the script for one GPU reads it
                LA_ONLINE_DECODE=("$argument")
                ;;
            --fp8 | --t5_cpu | --offload_kv_cache | --convert_model_dtype) LA_EXTRA+=("$argument") ;;
            *) la_die $LA_USAGE "unknown argument ${argument%%=*}" ;;
        esac
    done
    local name
    for name in PROMPT IMAGE AUDIO SIZE CLIPS STEPS SEED OUTPUT; do
        name=LA_$name
        [[ -v $name ]] || la_die $LA_USAGE "an argument of the contract is missing: ${name#LA_}"
    done
    la_check_arguments
}

la_check_arguments() {
    [[ $LA_SIZE =~ ^[0-9]+\*[0-9]+$ ]] || la_die $LA_USAGE "--size is not of the form W*H"
    [[ $LA_CLIPS =~ ^[1-9][0-9]{0,8}$ ]] || la_die $LA_USAGE "--num_clip is not a number from 1 on"
    [[ $LA_STEPS =~ ^[1-9][0-9]?$ ]] || la_die $LA_USAGE "--sample_steps is not a number from 1 on"
    [[ $LA_SEED =~ ^[0-9]{1,10}$ ]] || la_die $LA_USAGE "--seed is not a number from 0 on"
    # Upstream runs in its own folder, and its torchrun workers too: no path may be relative.
    local name
    for name in LA_IMAGE LA_AUDIO LA_OUTPUT; do
        [[ ${!name} == /* ]] || printf -v "$name" %s "$LA_ATTEMPT/${!name}"
    done
    # Upstream takes a + for the sign between the recordings of several speakers.
    [[ $LA_AUDIO != *+* ]] || la_die $LA_USAGE "the path of the recording must not hold a +"
    # It would notice a file that is not there after minutes of loading.
    [[ -f $LA_IMAGE ]] || la_die $LA_USAGE "the image is not there"
    [[ -f $LA_AUDIO ]] || la_die $LA_USAGE "the recording is not there"
}

# Accept only the given numbers of steps: with others the ranks wait for each other for ever, or fail after the load.
la_allow_steps() {
    local steps
    for steps in "$@"; do
        [[ $LA_STEPS != "$steps" ]] || return 0
    done
    la_die $LA_USAGE "--sample_steps=$LA_STEPS cannot run here, only: $*"
}

la_find_installation() {
    [[ -n ${LIVE_AVATAR_HOME:-} ]] || la_die $LA_CONFIG "LIVE_AVATAR_HOME is not set: it names the checkout of Live Avatar"
    LA_HOME=$(cd -- "$LIVE_AVATAR_HOME" 2>/dev/null && pwd -P) || la_die $LA_CONFIG "LIVE_AVATAR_HOME is not a folder"
    local part
    for part in minimal_inference/s2v_streaming_interact.py minimal_inference/gradio_app.py \
        liveavatar/configs/s2v_causal_sft.yaml; do
        [[ -f $LA_HOME/$part ]] || la_die $LA_CONFIG "LIVE_AVATAR_HOME is not a checkout of Live Avatar: it has no $part"
    done
    la_check_weights
    la_find_torchrun
}

# What upstream would miss one by one, each after minutes of loading.
la_check_weights() {
    local part
    for part in config.json models_t5_umt5-xxl-enc-bf16.pth Wan2.1_VAE.pth; do
        [[ -s $LA_HOME/$LA_CKPT/$part ]] || la_die $LA_CONFIG "missing weights: $LA_CKPT/$part is not there or empty"
    done
    for part in google/umt5-xxl wav2vec2-large-xlsr-53-english; do
        la_holds_files "$LA_HOME/$LA_CKPT/$part" ||
            la_die $LA_CONFIG "missing weights: $LA_CKPT/$part/ is not there or empty"
    done
    # The file, never a name: upstream would download a name from the hub into its working folder.
    LA_LORA=${LIVE_AVATAR_LORA:-ckpt/LiveAvatar/liveavatar.safetensors}
    [[ $LA_LORA == /* ]] || LA_LORA=$LA_HOME/$LA_LORA
    [[ -f $LA_LORA && -s $LA_LORA ]] || la_die $LA_CONFIG "missing weights: the LoRA's file is not there or empty (LIVE_AVATAR_LORA)"
}

la_holds_files() {
    local file
    for file in "$1"/*; do
        [[ ! -f $file || ! -s $file ]] || return 0
    done
    return 1
}

la_find_torchrun() {
    LA_TORCHRUN=$(command -v -- "${LIVE_AVATAR_TORCHRUN:-torchrun}") && [[ -f $LA_TORCHRUN && -x $LA_TORCHRUN ]] ||
        la_die $LA_CONFIG "torchrun is not there: LIVE_AVATAR_TORCHRUN names the one of Live Avatar's environment"
    LA_TORCHRUN=$(cd -- "$(dirname -- "$LA_TORCHRUN")" && pwd -P)/${LA_TORCHRUN##*/}
    local service=${AVATAR_PYTHON:-/}
    if [[ ${LA_TORCHRUN%/*} -ef ${service%/*}/ && -e ${service%/*}/../pyvenv.cfg ]]; then
        la_die $LA_CONFIG "torchrun is the service's own: LIVE_AVATAR_TORCHRUN names the one of Live Avatar's environment"
    fi
}

la_set_environment() {
    # Nothing of the service's Python may reach upstream's, and upstream's own programs (ffmpeg) come first.
    unset PYTHONPATH PYTHONHOME PYTHONSAFEPATH VIRTUAL_ENV
    export PATH="${LA_TORCHRUN%/*}:$PATH"
    # Lines come when they are said; torchrun's workers would keep those on standard output until their end.
    export PYTHONUNBUFFERED=1
    export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TRANSFORMERS_OFFLINE=1
    export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
    local cache=${LIVE_AVATAR_CACHE:-${HOME:+$HOME/.cache/live-avatar}}
    [[ -z $cache || $cache == /* ]] || cache=$LA_ATTEMPT/$cache
    if [[ -z $cache ]] || ! mkdir -p -- "$cache/inductor" "$cache/triton" 2>/dev/null || [[ ! -w $cache/inductor ]]; then
        cache=$LA_ATTEMPT/cache
        mkdir -p -- "$cache/inductor" "$cache/triton"
    fi
    export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}"
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$cache/triton}"
    la_choose_compile
}

# Compiling costs minutes before the first block, so it pays for long videos only. Upstream's own default is true.
la_choose_compile() {
    local from=${LIVE_AVATAR_COMPILE_CLIPS:-60}
    case ${LIVE_AVATAR_COMPILE:-auto} in
        true | false) ENABLE_COMPILE=$LIVE_AVATAR_COMPILE ;;
        auto) ENABLE_COMPILE=false && ((from > $(la_clips))) || ENABLE_COMPILE=true ;;
        *) la_die $LA_CONFIG "LIVE_AVATAR_COMPILE is neither auto nor true nor false" ;;
    esac
    export ENABLE_COMPILE
}

# About how many clips of 1.92 s the video has: not more than the recording needs. Its header says how many bytes make
# a second (a WAV of the service; 4 bytes at 28), its size the rest.
la_clips() {
    local rate bytes need
    rate=$(od -An -tu4 -j28 -N4 --endian=little -- "$LA_AUDIO" | tr -d ' ') bytes=$(stat -Lc %s -- "$LA_AUDIO")
    need=$((${rate:-0} > 0 ? bytes * 25 / (rate * 48) + 1 : LA_CLIPS))
    echo $((need < LA_CLIPS ? need : LA_CLIPS))
}

# The flags that both of upstream's programs know, with "$@" after them.
la_set_flags() {
    mkdir -p -- "$LA_OUTPUT"
    # First of all the file, under its final name: nothing runs after upstream that could rename it. Upstream merges the
    # sound into <stem>_temp.mp4 beside it and moves that over it; until exit status 0 neither is a result.
    rm -f -- "$LA_OUTPUT/video.mp4" "$LA_OUTPUT/video_temp.mp4" # an old file would be merged anew where saving fails
    LA_FLAGS=(
        "--save_file=$LA_OUTPUT/video.mp4"
        "--prompt=$LA_PROMPT" # one element, whatever it begins with
        "--image=$LA_IMAGE"
        "--audio=$LA_AUDIO"
        --task=s2v-14B
        "--size=$LA_SIZE"
        "--num_clip=$LA_CLIPS"
        "--sample_steps=$LA_STEPS"
        "--base_seed=$LA_SEED"
        --infer_frames=48 # upstream's own default leaves the last frames of every clip as noise
        --sample_solver=euler
        "--ckpt_dir=$LA_CKPT/"
        --training_config=liveavatar/configs/s2v_causal_sft.yaml
        --load_lora
        "--lora_path_dmd=$LA_LORA"
        "$@"
        "${LA_EXTRA[@]}"
    )
}

# Become torchrun with as many ranks as the first argument says. Each rank is a session of its own; SIGTERM to torchrun
# stops them all in 1 to 3 s, SIGKILL would leave them. --standalone finds a free port, so that jobs do not collide.
la_exec() {
    local ranks=$1 program=$2 logs=()
    # One rank writes into the log as it is. Of several, lines would run into each other: torchrun takes each into files
    # of its own, ranks/*/attempt_0/<rank>/std{out,err}.log in the attempt's folder, byte for byte, so that the bars of
    # rank 0 can be counted, and copies them into the log line by line with the rank before them ([default0]:), so that
    # whatever a rank dies of stands there too. (--redirects alone would leave the log without the cause.)
    ((ranks == 1)) || logs=(--tee=3)
    cd -- "$LA_HOME"
    exec "$LA_TORCHRUN" --standalone "--nproc_per_node=$ranks" "${logs[@]}" "--log-dir=$LA_ATTEMPT/ranks" \
        "$program" "${LA_FLAGS[@]}"
}
