"""The stand-in's Gradio module: touch points and protocol of upstream's, with its flaws.

A failure is told to the log and becomes None; a rank that failed waits for the next request while the others wait for
it; an empty prompt is computed by rank 0 alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from typing import Any

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gradio as gr
import standin
import torch
import torch.distributed as dist
from liveavatar.models.wan.wan_2_2.configs import MAX_AREA_CONFIGS, SIZE_CONFIGS, WAN_CONFIGS
from liveavatar.models.wan.wan_2_2.utils.utils import merge_video_audio, save_video, str2bool
from liveavatar.utils.args_config import parse_args_for_training_config as training_config_parser  # noqa: F401

wan_s2v_pipeline: Any = None
global_args: Any = None
global_cfg: Any = None
global_training_settings: Any = None
global_rank = 0
global_world_size = 1
global_save_rank = 0

FLAGS: dict[str, dict[str, Any]] = {
    "--task": {"type": str, "default": "s2v-14B", "choices": list(WAN_CONFIGS)},
    "--size": {"type": str, "choices": list(SIZE_CONFIGS)},
    "--frame_num": {"type": int},
    "--ckpt_dir": {"type": str, "default": "ckpt/Wan2.2-S2V-14B/"},
    "--offload_model": {"type": str2bool},
    "--ulysses_size": {"type": int, "default": 1},
    "--t5_fsdp": {"action": "store_true"},
    "--t5_cpu": {"action": "store_true"},
    "--dit_fsdp": {"action": "store_true"},
    "--save_dir": {"type": str, "default": "./output/gradio/"},
    "--sample_solver": {"type": str, "default": "euler", "choices": ["euler", "unipc", "dpm++"]},
    "--sample_steps": {"type": int, "default": 4},
    "--sample_shift": {"type": float},
    "--sample_guide_scale": {"type": float, "default": 0.0},
    "--convert_model_dtype": {"action": "store_true"},
    "--base_seed": {"type": int, "default": 420},
    "--infer_frames": {"type": int, "default": 48},
    "--load_lora": {"action": "store_true"},
    "--lora_path": {"type": str},
    "--lora_path_dmd": {"type": str},
    "--training_config": {"type": str, "default": "liveavatar/configs/s2v_causal_sft.yaml"},
    "--num_clip": {"type": int, "default": 10},
    "--single_gpu": {"action": "store_true"},
    "--using_merged_ckpt": {"action": "store_true"},
    "--num_gpus_dit": {"type": int, "default": 4},
    "--enable_vae_parallel": {"action": "store_true"},
    "--offload_kv_cache": {"action": "store_true"},
    "--enable_tts": {"action": "store_true"},
    "--pose_video": {"type": str},
    "--start_from_ref": {"action": "store_true"},
    "--drop_motion_noisy": {"action": "store_true"},
    "--server_port": {"type": int, "default": 7860},
    "--server_name": {"type": str, "default": "0.0.0.0"},
    "--fp8": {"action": "store_true"},
}


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Gradio Web UI")
    for name, settings in FLAGS.items():
        parser.add_argument(name, **settings)
    args = parser.parse_args()
    if args.size is None:
        args.size = "704*384" if args.single_gpu or args.num_gpus_dit == 1 else "720*400"
    args.base_seed = args.base_seed if args.base_seed >= 0 else int.from_bytes(os.urandom(4), "little")
    return args


def _init_logging(rank: int) -> None:
    if rank == 0:
        handler = logging.StreamHandler(stream=sys.stdout)
        logging.basicConfig(
            level=logging.INFO, format="[%(asctime)s] %(levelname)s: %(message)s", handlers=[handler]
        )  # fmt: skip
    else:
        logging.basicConfig(level=logging.ERROR)


def initialize_pipeline(args: argparse.Namespace, training_settings: dict[str, Any]) -> None:
    global wan_s2v_pipeline, global_args, global_cfg, global_training_settings
    global global_rank, global_world_size, global_save_rank
    standin.note_start("gradio")
    global_rank, global_world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _init_logging(global_rank)
    if args.offload_model is None:
        args.offload_model = global_world_size == 1
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group(backend="nccl", init_method="env://", rank=global_rank, world_size=global_world_size)
    if global_world_size > 1:
        assert args.enable_vae_parallel is True, "VAE parallel is required for distributed inference."
        from liveavatar.models.wan.causal_s2v_pipeline_tpp import WanS2V

        logging.info("Using TPP distributed inference.")
    else:
        args.enable_vae_parallel, args.num_gpus_dit = False, 1
        from liveavatar.models.wan.causal_s2v_pipeline import WanS2V

        logging.info(f"Using single GPU inference with offload mode: {args.offload_model}")
    pipeline = WanS2V(config=WAN_CONFIGS[args.task], checkpoint_dir=args.ckpt_dir, rank=global_rank)
    if args.load_lora and args.lora_path_dmd is not None:
        pipeline.add_lora_to_model(None, pretrained_lora_path=args.lora_path_dmd)
    wan_s2v_pipeline, global_args, global_cfg = pipeline, args, WAN_CONFIGS[args.task]
    global_training_settings = training_settings
    global_save_rank = args.num_gpus_dit if args.enable_vae_parallel else 0
    logging.info("Pipeline initialized successfully!")


def run_single_sample(
    prompt: str, image_path: str, audio_path: str, num_clip: int, sample_steps: int, sample_guide_scale: float,
    infer_frames: int, size: str, base_seed: int, sample_solver: str,
) -> str | None:  # fmt: skip
    fields = [
        prompt, image_path, audio_path, num_clip, sample_steps, sample_guide_scale, infer_frames, size, base_seed,
        sample_solver,
    ]  # fmt: skip
    standin.note(event="infer", fields=fields)
    if dist.is_initialized() and global_rank == 0:
        dist.broadcast_object_list(["infer", *fields, None, None], src=0)
    path = _run_inference_computation(*fields)
    if dist.is_initialized() and global_rank == 0:
        dist.broadcast_object_list(["idle", *[None] * 12], src=0)
    return path


def _run_inference_computation(
    prompt: str, image_path: str, audio_path: str, num_clip: int, sample_steps: int, sample_guide_scale: float,
    infer_frames: int, size: str, base_seed: int, sample_solver: str,
) -> str | None:  # fmt: skip
    try:
        logging.info(f"[Rank {global_rank}] Generating video...")
        video, _ = wan_s2v_pipeline.generate(
            input_prompt=prompt, ref_image_path=image_path, audio_path=audio_path, num_repeat=num_clip,
            max_area=MAX_AREA_CONFIGS[size], infer_frames=infer_frames, sample_solver=sample_solver,
            sampling_steps=sample_steps, offload_model=global_args.offload_model,
            num_gpus_dit=global_args.num_gpus_dit, enable_vae_parallel=global_args.enable_vae_parallel,
        )  # fmt: skip
        path = None
        if global_rank == global_save_rank:
            name = prompt.replace(" ", "_").replace("/", "_")[:50]
            os.makedirs(global_args.save_dir, exist_ok=True)
            name = f"{time.strftime('%Y%m%d_%H%M%S')}_{sample_steps}step_{name}.mp4"
            path = os.path.join(global_args.save_dir, name)
            logging.info(f"Saving generated video to {path}")
            save_video(tensor=video, save_file=path, fps=global_cfg.sample_fps)
            merge_video_audio(video_path=path, audio_path=audio_path)
            logging.info(f"Video saved successfully: {path}")
        if dist.is_initialized():
            torch.cuda.synchronize()
            dist.barrier()
            paths = [path]
            dist.broadcast_object_list(paths, src=global_save_rank)
            path = paths[0]
        return path
    except Exception as error:
        logging.error(f"Error during generation: {error}")
        traceback.print_exc()
        return None


def create_gradio_interface() -> Any:
    return gr.Blocks(title="the only use of gradio")


def worker_loop() -> None:
    while True:
        try:
            inputs: list[Any] = [None] * 13
            dist.broadcast_object_list(inputs, src=0)
            if inputs[0] == "infer" and inputs[1]:
                _run_inference_computation(*inputs[1:11])
            elif inputs[0] not in ("infer", "idle", None):
                logging.warning(f"[Rank {global_rank}] Received unknown command: {inputs[0]}")
        except Exception as error:
            logging.error(f"[Rank {global_rank}] Error in worker loop: {error}")
            traceback.print_exc()
            time.sleep(1)
