"""Makes a stand-in checkout: the programs by link, so that many tests share them, and weights of a few bytes."""

from __future__ import annotations

import json
import wave
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
TORCHRUN = HERE / "torchrun"
CKPT = "ckpt/Wan2.2-S2V-14B"
LORA = "ckpt/LiveAvatar/liveavatar.safetensors"
WEIGHTS = (
    f"{CKPT}/config.json",
    f"{CKPT}/models_t5_umt5-xxl-enc-bf16.pth",
    f"{CKPT}/Wan2.1_VAE.pth",
    f"{CKPT}/google/umt5-xxl/tokenizer.json",
    f"{CKPT}/wav2vec2-large-xlsr-53-english/config.json",
)


def make_checkout(folder: Path) -> Path:
    """Lay out `folder`, which must not exist, as a Live Avatar checkout with all its weights, and return it."""
    folder.mkdir(parents=True)
    for name in ("minimal_inference", "liveavatar"):
        (folder / name).symlink_to(HERE / "checkout" / name)
    for name in WEIGHTS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"stand-in": path.name}))
    lora = folder / LORA
    lora.parent.mkdir(parents=True)
    lora.write_bytes((2).to_bytes(8, "little") + b"{}")
    _make_examples(folder / "examples")
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    """The variables by which the launch scripts find the stand-in; `more` tells it what to do."""
    return {"LIVE_AVATAR_HOME": str(home), "LIVE_AVATAR_TORCHRUN": str(TORCHRUN), **more}


def _make_examples(folder: Path) -> None:
    """What the command line takes when it is given no picture and no sound."""
    folder.mkdir()
    Image.new("RGB", (96, 160), "teal").save(folder / "boy.jpg")
    with wave.open(str(folder / "boy.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(32000))
