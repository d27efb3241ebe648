"""Saving: a failure is told and swallowed, and the sound is merged afterwards."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import standin
import standin_media


def str2bool(text: str) -> bool:
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("Boolean value expected (True/False)")


def save_video(tensor: standin_media.Pictures, save_file: str, **_: Any) -> None:
    if "no_file" in standin.MODES:
        return
    try:
        standin_media.write_pictures(save_file, tensor)
    except Exception as error:
        logging.info(f"save_video failed, error: {error}")


def merge_video_audio(video_path: str, audio_path: str) -> None:
    if "no_file" in standin.MODES:
        return
    for kind, path in (("video", video_path), ("audio", audio_path)):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{kind} file {path} does not exist")
    base, suffix = os.path.splitext(video_path)
    merged = f"{base}_temp{suffix}"
    try:
        logging.info("Start merging video and audio...")
        standin_media.merge(video_path, audio_path, merged)
        standin_media.move(merged, video_path)
        logging.info(f"Merge completed, saved to {video_path}")
    except Exception as error:
        if os.path.exists(merged):
            os.remove(merged)
        logging.error(f"merge_video_audio failed with error: {error}")
