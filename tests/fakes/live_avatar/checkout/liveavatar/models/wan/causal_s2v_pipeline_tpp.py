"""The pipeline on several GPUs: step i of every block on rank i, decoding on the last rank.

As upstream's: a rank whose step does not exist hands nothing on, and the decoding rank has no cache for a step.
"""

from __future__ import annotations

from typing import Any

import standin
import standin_media
import torch.distributed as dist
from tqdm import tqdm

from . import loading

ROOM = 3000
FRAMES_PER_BLOCK = 12


class WanS2V:
    def __init__(self, config: Any, checkpoint_dir: str, **_: Any) -> None:
        self.config = config
        self.noise_model: Any = None
        loading.load(checkpoint_dir)

    def add_lora_to_model(self, model: Any, pretrained_lora_path: str, **_: Any) -> Any:
        loading.add_lora(pretrained_lora_path)
        return model

    def generate(
        self, *, ref_image_path: str, audio_path: str, num_repeat: int | None, max_area: int, infer_frames: int,
        sample_solver: str, sampling_steps: int, num_gpus_dit: int, enable_vae_parallel: bool, **_: Any,
    ) -> tuple[standin_media.Pictures | None, dict[str, Any]]:  # fmt: skip
        height, width = standin.output_size(max_area, *standin_media.size_of(ref_image_path))
        lengths = [standin_media.seconds_of(path) for path in audio_path.split("+")]
        clips = standin.clips_of(min(lengths), infer_frames, num_repeat)
        print("complete prepare conditional inputs")
        if sample_solver != "euler":
            raise NotImplementedError("Unsupported solver.")
        dist.barrier()
        rank, last = dist.get_rank(), num_gpus_dit - 1 + int(enable_vae_parallel)
        if rank < num_gpus_dit:
            standin.check_cache(height, width, ROOM)
        cache: Any = [] if rank < num_gpus_dit else None
        blocks = clips * (infer_frames // FRAMES_PER_BLOCK)
        for block in range(blocks):
            standin.in_block(block)
            for step, _time in enumerate(tqdm(list(range(sampling_steps)))):
                if step != rank:
                    continue
                latents = dist.recv(rank - 1) if rank else block
                assert cache[0:0] == []
                if rank < last:
                    dist.send(latents, rank + 1)
            if rank == last:
                if block == 1:
                    print("WARNING: VAE serves as a bottleneck!")
                assert dist.recv(last - 1) == block
        dist.barrier()
        if rank != last:
            return None, {}
        return standin_media.Pictures(blocks * FRAMES_PER_BLOCK - 3, height, width), {}
