#!/usr/bin/env bash
# Live Avatar on one small GPU by audio.cpp (github.com/0xShug0/audio.cpp), under the engine contract (scripts/README.md):
# an example of wrapping another program. Its row in configs/engines.yaml is disabled.
#
# UNVERIFIED: it follows that project's sources and documentation (docs/community_models/liveavatar.md, app/cli/args.cpp,
# app/workflow/file_sink.cpp, as of September 2026), but nobody has run it with the real program. It is tested against
# a stand-in for the command line. Whether the video is good it cannot know: the service opens and measures it, as any.
#
# Settings, from the row's `env`, or from the service's environment where `engine_env_passthrough` names AUDIO_CPP_*:
#   AUDIO_CPP_MODEL    the folder of the three GGUF files (required)
#   AUDIO_CPP_CLI      the program (default: audiocpp_cli on PATH)
#   AUDIO_CPP_FFMPEG   the ffmpeg that makes an mp4 of raw frames (default: ffmpeg on PATH)
#   AUDIO_CPP_THREADS  threads of the program (default: 8)
#
# Ends with 64 for arguments that make no sense and with 78 for an installation that cannot work, each in one line.
set -euo pipefail

readonly USAGE=64 CONFIG=78
MADE=$PWD/made # the working folder is the attempt's own

die() {
    printf 'audio.cpp: %s\n' "$2" >&2
    exit "$1"
}

read_arguments() {
    low_vram=()
    local argument value
    for argument in "$@"; do
        value=${argument#*=}
        case $argument in
            --prompt=*) prompt=$value ;;
            --image=*) image=$value ;;
            --audio=*) audio=$value ;;
            --sample_steps=*) steps=$value ;;
            --seed=*) seed=$value ;;
            --output_dir=*) output=$value ;;
            --size=* | --num_clip=*) ;; # AVATAR_PLAN_* tell what comes of them
            --low_vram) # the row's own: weights and cache in host memory, a group of layers at a time on the GPU
                low_vram=(
                    --session-option liveavatar.denoiser_weight_streaming=true
                    --request-option denoiser_layerwise=true
                    --request-option denoiser_layerwise_batch=16
                    --request-option target_cache_blocks=1
                    --request-option vae_cache_f16=true
                    --request-option vae_encoder_chunk_size=4
                    --request-option vae_decoder_tile_size=320
                )
                ;;
            *) die $USAGE "unknown argument ${argument%%=*}" ;;
        esac
    done
    [[ -v prompt && -v image && -v audio && -v steps && -v seed && -v output ]] ||
        die $USAGE "an argument of the contract is missing"
    [[ -n ${AVATAR_PLAN_WIDTH:-} && -n ${AVATAR_PLAN_HEIGHT:-} && -n ${AVATAR_PLAN_SECONDS:-} ]] ||
        die $USAGE "AVATAR_PLAN_WIDTH, AVATAR_PLAN_HEIGHT and AVATAR_PLAN_SECONDS are not set"
    # The program takes any argument that is a flag's name for that flag, also one that is a flag's value.
    [[ $prompt != -* ]] || prompt=" $prompt"
}

find_installation() {
    cli=$(command -v -- "${AUDIO_CPP_CLI:-audiocpp_cli}") || die $CONFIG "the program is not there (AUDIO_CPP_CLI)"
    [[ -n ${AUDIO_CPP_MODEL:-} ]] || die $CONFIG "AUDIO_CPP_MODEL is not set: it names the folder of the GGUF files"
    local file
    for file in Wan2.2-S2V-Support-Q4_K_S-F16.gguf Wan2.2-S2V-VAE-F16.gguf Wan2.2-S2V-14B-NVFP4-LORA.gguf; do
        [[ -s $AUDIO_CPP_MODEL/$file ]] || die $CONFIG "missing weights: $file is not there or empty (AUDIO_CPP_MODEL)"
    done
}

# Run the program with "$@"; SIGTERM goes on to it, for this shell must stay to see what it left.
run() {
    local child='' status=0 stopped=''
    trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
    "$@" &
    child=$!
    [[ -z $stopped ]] || kill -TERM "$child" 2>/dev/null || true
    wait "$child" || status=$?
    if [[ -n $stopped ]]; then # the trap ended the first wait
        wait "$child" || true
        exit 143
    fi
    trap - TERM
    return "$status"
}

generate() {
    # 16 frames a second in clips of 48, of which the first loses 3.
    local clips
    clips=$(awk -v seconds="$AVATAR_PLAN_SECONDS" 'BEGIN { n = (seconds * 16 + 3) / 48; print int(n) + (n > int(n)) }')
    run "$cli" --task gen --family liveavatar --model "$AUDIO_CPP_MODEL" --backend cuda \
        --threads "${AUDIO_CPP_THREADS:-8}" --audio "$audio" --text "$prompt" \
        --request-option generation_mode=liveavatar \
        --request-option "reference_image_path=$image" \
        --request-option "height=$AVATAR_PLAN_HEIGHT" \
        --request-option "width=$AVATAR_PLAN_WIDTH" \
        --request-option "num_clips=$clips" \
        --request-option "num_inference_steps=$steps" \
        --request-option "seed=$seed" \
        "${low_vram[@]}" --out-dir "$MADE" --log
}

# The file sink writes an artifact of an unknown kind as one line of JSON with its bytes in hexadecimal digits.
frames_of() {
    sed 's/.*"payload_hex":"//; s/".*//' -- "$1" | tr -d '\n' | tr a-f A-F | basenc --base16 --decode
}

# Print the number that the artifact's `meta` holds under the name $2.
meta_of() {
    local head
    head=$(head -c 2000 -- "$1")
    [[ $head =~ \"$2\":\"([0-9]+)\" ]] || die $USAGE "the raw video does not tell its $2"
    printf %s "${BASH_REMATCH[1]}"
}

# Leave what the program made as the one video in the output folder.
deliver() {
    mkdir -p -- "$output"
    local videos=("$MADE"/*.mp4) raw=$MADE/liveavatar_video_rgb24.json
    if [[ -f ${videos[0]} ]]; then
        exec mv -- "${videos[0]}" "$output/video.mp4"
    fi
    [[ -f $raw ]] || die 1 "the program left neither an mp4 nor liveavatar_video_rgb24.json"
    local ffmpeg width height fps
    ffmpeg=$(command -v -- "${AUDIO_CPP_FFMPEG:-ffmpeg}") ||
        die $CONFIG "the program left raw frames, and there is no ffmpeg to make an mp4 of them (AUDIO_CPP_FFMPEG)"
    width=$(meta_of "$raw" width) height=$(meta_of "$raw" height) fps=$(meta_of "$raw" fps)
    [[ -z ${AVATAR_PROGRESS_FD:-} ]] || printf '@progress {"phase": "encoding"}\n' >&"$AVATAR_PROGRESS_FD"
    exec "$ffmpeg" -nostdin -loglevel warning -f rawvideo -pixel_format rgb24 -video_size "${width}x$height" \
        -framerate "$fps" -i pipe:0 -i "$audio" -t "$AVATAR_PLAN_SECONDS" -c:v libx264 -pix_fmt yuv420p -c:a aac \
        -movflags +faststart "$output/video.mp4" < <(frames_of "$raw")
}

read_arguments "$@"
find_installation
generate
deliver
