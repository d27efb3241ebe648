"""The pipeline on one GPU: all steps of a block after one another, all decoding at the end."""

from __future__ import annotations

from typing import Any

import standin
import standin_media
from tqdm import tqdm

from . import loading

ROOM = 2800
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
        sample_solver: str, sampling_steps: int, offload_model: bool, enable_online_decode: bool = False, **_: Any,
    ) -> tuple[standin_media.Pictures, dict[str, Any]]:  # fmt: skip
        height, width = standin.output_size(max_area, *standin_media.size_of(ref_image_path))
        lengths = [standin_media.seconds_of(path) for path in audio_path.split("+")]
        clips = standin.clips_of(min(lengths), infer_frames, num_repeat)
        print("complete prepare conditional inputs")
        if sample_solver != "euler":
            raise NotImplementedError("Unsupported solver.")
        standin.check_cache(height, width, ROOM)
        caches = {str(step): [] for step in (1, 2, 3, 4)}  # four, whatever the number of steps
        for block in range(clips * (infer_frames // FRAMES_PER_BLOCK)):
            standin.in_block(block)
            for step, _time in enumerate(tqdm(list(range(sampling_steps)))):
                caches[str(step + 1)].append(block)
        print("complete full-sequence generation")
        if offload_model:
            print("loading VAE to cuda for final decode")
        return standin_media.Pictures(clips * infer_frames - 3, height, width), {}
