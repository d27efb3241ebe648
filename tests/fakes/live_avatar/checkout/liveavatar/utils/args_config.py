"""The training configuration, of which the LoRA's shape is read."""

from __future__ import annotations

from typing import Any


def parse_args_for_training_config(path: str) -> dict[str, Any]:
    with open(path) as file:
        pairs = [line.split(":", 1) for line in file if ":" in line]
    settings: dict[str, Any] = {name.strip(): value.strip() for name, value in pairs}
    return settings | {"lora_rank": int(settings["lora_rank"]), "lora_alpha": int(settings["lora_alpha"])}
