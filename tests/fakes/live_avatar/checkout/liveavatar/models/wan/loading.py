"""Loading the weights, with the refusals of those who read them."""

from __future__ import annotations

import logging
import os

import standin
from tqdm import tqdm


def load(folder: str) -> None:
    t5, vae = (os.path.join(folder, name) for name in ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"))
    logging.info(f"loading {t5}")
    standin.read_weights(t5)
    _need_folder(os.path.join(folder, "google/umt5-xxl"), "Can't load tokenizer for '{}'.")
    logging.info(f"loading {vae}")
    standin.read_weights(vae)
    logging.info(f"Creating WanModel from {folder}")
    standin.while_loading()
    config = os.path.join(folder, "config.json")
    if not os.path.exists(config):
        raise OSError(f"Error no file named config.json found in directory {folder}.")
    if not os.path.getsize(config):
        raise OSError(f"It looks like the config file at '{config}' is not a valid JSON file.")
    for _ in tqdm(range(4), desc="Loading checkpoint shards"):
        pass
    _need_folder(os.path.join(folder, "wav2vec2-large-xlsr-53-english"), "Can't load feature extractor for '{}'.")


def _need_folder(path: str, refusal: str) -> None:
    files = [entry for entry in os.scandir(path) if entry.stat().st_size] if os.path.isdir(path) else []
    if not files:
        raise OSError(refusal.format(path))


def add_lora(path: str) -> None:
    print(f"Merging LoRA weights from {path}")
    if not os.path.exists(path):
        kind = type("OfflineModeIsEnabled", (ConnectionError,), {"__module__": "huggingface_hub.errors"})
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise kind(f"Cannot reach https://huggingface.co/api/models/{path}: offline mode is enabled.")
        raise ConnectionError("there is no network here")
    standin.read_safetensors(path)
    print("LoRA merged successfully.")
