"""The stand-in's command line: upstream's flags, lines, streams, refusals and exit statuses, without a network."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import Any

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import standin
import torch
import torch.distributed as dist
from liveavatar.models.wan.wan_2_2.configs import MAX_AREA_CONFIGS, SIZE_CONFIGS, WAN_CONFIGS
from liveavatar.models.wan.wan_2_2.utils.utils import merge_video_audio, save_video, str2bool
from liveavatar.utils.args_config import parse_args_for_training_config

EXAMPLE = {
    "prompt": "Summer beach vacation style, a white cat wearing sunglasses sits on a surfboard.",
    "image": "examples/boy.jpg",
    "audio": "examples/boy.wav",
}

FLAGS: dict[str, dict[str, Any]] = {
    "--task": {"type": str, "default": "t2v-A14B", "choices": list(WAN_CONFIGS)},
    "--size": {"type": str, "default": "1280*720", "choices": list(SIZE_CONFIGS)},
    "--frame_num": {"type": int},
    "--ckpt_dir": {"type": str},
    "--offload_model": {"type": str2bool},
    "--ulysses_size": {"type": int, "default": 1},
    "--t5_fsdp": {"action": "store_true"},
    "--t5_cpu": {"action": "store_true"},
    "--dit_fsdp": {"action": "store_true"},
    "--save_file": {"type": str},
    "--save_dir": {"type": str},
    "--prompt": {"type": str},
    "--use_prompt_extend": {"action": "store_true"},
    "--base_seed": {"type": int, "default": -1},
    "--image": {"type": str},
    "--sample_solver": {"type": str, "default": "euler", "choices": ["euler", "unipc", "dpm++"]},
    "--sample_steps": {"type": int},
    "--sample_shift": {"type": float},
    "--sample_guide_scale": {"type": float},
    "--convert_model_dtype": {"action": "store_true"},
    "--num_clip": {"type": int},
    "--audio": {"type": str},
    "--enable_tts": {"action": "store_true"},
    "--tts_prompt_audio": {"type": str},
    "--tts_prompt_text": {"type": str},
    "--tts_text": {"type": str},
    "--pose_video": {"type": str},
    "--start_from_ref": {"action": "store_true"},
    "--infer_frames": {"type": int, "default": 80},
    "--load_lora": {"action": "store_true"},
    "--lora_path": {"type": str},
    "--lora_path_dmd": {"type": str},
    "--training_config": {"type": str},
    "--use_dataset": {"action": "store_true"},
    "--drop_motion_noisy": {"action": "store_true"},
    "--single_gpu": {"action": "store_true"},
    "--using_merged_ckpt": {"action": "store_true"},
    "--num_gpus_dit": {"type": int, "default": 4},
    "--enable_vae_parallel": {"action": "store_true"},
    "--offload_kv_cache": {"action": "store_true"},
    "--enable_online_decode": {"action": "store_true"},
    "--fp8": {"action": "store_true"},
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Generate a video from a text prompt, an image and speech")
    for name, settings in FLAGS.items():
        parser.add_argument(name, **settings)
    return parser


def parse() -> argparse.Namespace:
    args = make_parser().parse_args()
    assert args.ckpt_dir is not None, "Please specify the checkpoint directory."
    assert args.task == "s2v-14B", f"Unsupport task: {args.task}"
    for name, value in EXAMPLE.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.sample_steps is None:
        args.sample_steps = WAN_CONFIGS[args.task].sample_steps
    args.base_seed = args.base_seed if args.base_seed >= 0 else int.from_bytes(os.urandom(4), "little")
    return args


def choose_mode(args: argparse.Namespace, world_size: int) -> type:
    if world_size > 1:
        assert world_size >= 5, "At least 5 GPUs are supported for distributed inference."
        assert args.num_gpus_dit == 4, "Only 4 GPUs are supported for distributed inference."
        assert args.enable_vae_parallel is True, "VAE parallel is required for distributed inference."
        args.single_gpu = False
        from liveavatar.models.wan.causal_s2v_pipeline_tpp import WanS2V

        print("Using TPP distributed inference.")
        return WanS2V
    args.num_gpus_dit, args.enable_vae_parallel, args.single_gpu = 1, False, True
    from liveavatar.models.wan.causal_s2v_pipeline import WanS2V as Single

    print(f"Using single GPU inference with offload mode: {args.offload_model}")
    return Single


def file_name(args: argparse.Namespace) -> str:
    """The name of a video for which no file was given: glued to the folder's, and in need of a LoRA's path."""
    words = args.prompt.replace(" ", "_").replace("/", "_")[:50]
    name = f"{time.strftime('%Y%m%d_%H%M%S')}_{args.sample_steps}step_{words}"
    if args.lora_path_dmd.endswith(".pt"):
        name += "_" + args.lora_path_dmd.split("/")[-1].split(".")[0]
    return f"{args.save_dir or './output/'}{name}.mp4"


def start_logging(rank: int) -> None:
    if rank == 0:
        handler = logging.StreamHandler(stream=sys.stdout)
        logging.basicConfig(
            level=logging.INFO, format="[%(asctime)s] %(levelname)s: %(message)s", handlers=[handler]
        )  # fmt: skip
    else:
        logging.basicConfig(level=logging.ERROR)


def load(args: argparse.Namespace, pipeline: type, rank: int) -> Any:
    settings = parse_args_for_training_config(args.training_config) if args.training_config else {}
    print(f"COMPILE: {os.environ.get('ENABLE_COMPILE', 'true').lower() == 'true'}")
    model = pipeline(config=WAN_CONFIGS[args.task], checkpoint_dir=args.ckpt_dir, device_id=rank, rank=rank)
    if args.load_lora and args.lora_path_dmd is not None:
        model.add_lora_to_model(None, lora_rank=settings["lora_rank"], pretrained_lora_path=args.lora_path_dmd)
    return model


def save(args: argparse.Namespace, video: Any) -> None:
    if args.save_file is None:
        args.save_file = file_name(args)
    logging.info(f"Saving generated video to {args.save_file}")
    save_video(tensor=video, save_file=args.save_file, fps=25)
    merge_video_audio(video_path=args.save_file, audio_path=args.audio)


def generate(args: argparse.Namespace) -> None:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    start_logging(rank)
    print(f"world_size: {world_size}")
    if args.offload_model is None:
        args.offload_model = world_size == 1
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend="nccl", init_method="env://", rank=rank, world_size=world_size)
    pipeline = choose_mode(args, world_size)
    assert args.ulysses_size == 1, "Sequence parallel is not supported."
    model = load(args, pipeline, rank)
    logging.info("Generating video ...")
    video, _ = model.generate(
        input_prompt=args.prompt, ref_image_path=args.image, audio_path=args.audio, num_repeat=args.num_clip,
        max_area=MAX_AREA_CONFIGS[args.size], infer_frames=args.infer_frames, sample_solver=args.sample_solver,
        sampling_steps=args.sample_steps, offload_model=args.offload_model, num_gpus_dit=args.num_gpus_dit,
        enable_vae_parallel=args.enable_vae_parallel, enable_online_decode=args.enable_online_decode,
    )  # fmt: skip
    print("denoising video done")
    print(f"rank: {rank}")
    if rank == (args.num_gpus_dit if args.enable_vae_parallel else 0):
        save(args, video)
    logging.info("Finished.")


if __name__ == "__main__":
    standin.note_start("cli")
    generate(parse())
