"""The sizes and the models that the command line knows."""

from __future__ import annotations

import types

SUPPORTED = [
    "720*1280", "1280*720", "480*832", "832*480", "704*1280", "1280*704",
    "1024*704", "704*1024", "720*400", "704*384", "688*368", "384*256",
]  # fmt: skip
SIZE_CONFIGS = {name: tuple(map(int, name.split("*"))) for name in SUPPORTED}
MAX_AREA_CONFIGS = {name: sides[0] * sides[1] for name, sides in SIZE_CONFIGS.items()}
SUPPORTED_SIZES = {"s2v-14B": tuple(SUPPORTED)}
WAN_CONFIGS = {
    name: types.SimpleNamespace(
        sample_steps=40, sample_shift=3, sample_guide_scale=4.5, frame_num=81, sample_fps=25, sample_solver="euler"
    )
    for name in ("t2v-A14B", "s2v-14B")
}
