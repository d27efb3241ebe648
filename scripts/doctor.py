"""What can run on this machine, and why the rest cannot: driver, GPUs, checkout, weights, disk, profiles."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config_loader import ROOT, ConfigError, Settings, engine_environment, load_engines, load_settings
from tasks.admission import Admission
from tasks.hardware import cards_of
from tasks.profile import Engine
from utils.gpu import GpuSnapshot, look
from utils.gpu_visible import visible

_GIB = 2**30


def main() -> int:
    """Print the findings; return 0 when at least one engine can run."""
    try:
        settings = load_settings()
        table = load_engines(settings)
    except ConfigError as error:
        print(f"settings   {error}")
        return 1
    snapshot = look()
    devices = engine_environment(settings).get("CUDA_VISIBLE_DEVICES")
    _tell_gpus(snapshot, devices)
    _tell_live_avatar(settings)
    _tell_disk(settings)
    cards = cards_of(visible(snapshot.gpus, devices, snapshot.lost))
    admission = Admission(
        table=table,
        root=ROOT,
        home=settings.live_avatar_home,
        cpu_slots=settings.slots.cpu,
        allow_fallback=settings.engines.allow_fallback,
        policy=settings.gpus.policy,
        cards=lambda: cards,
    )
    able = [_tell_engine(admission, engine) for engine in table.engines]
    return 0 if any(able) else 1


def _tell_gpus(snapshot: GpuSnapshot, devices: str | None) -> None:
    print(f"driver     {snapshot.driver or 'none: ' + snapshot.reason}")
    for gpu in snapshot.gpus:
        capability = ".".join(map(str, gpu.capability or ())) or "unknown"
        busy = f", {len(gpu.processes)} processes on it" if gpu.processes else ""
        memory = f"{gpu.free_gib:.1f} of {gpu.total_gib:.1f} GiB free"
        print(f"GPU {gpu.index}      {gpu.name}, capability {capability}, {memory}{busy}")
    for index, reason in snapshot.lost:
        print(f"GPU {index}      lost: {reason}")
    if devices is not None:
        print(f"devices    CUDA_VISIBLE_DEVICES={devices!r} leaves these to the service")


def _tell_live_avatar(settings: Settings) -> None:
    home = settings.live_avatar_home
    told = "not set: LIVE_AVATAR_HOME names the checkout" if home is None else str(home)
    if home is not None and not (home / "minimal_inference" / "s2v_streaming_interact.py").is_file():
        told += " (not a checkout of Live Avatar)"
    print(f"checkout   {told}")
    if home is not None:
        torchrun = engine_environment(settings).get("LIVE_AVATAR_TORCHRUN", "torchrun")
        print(f"torchrun   {shutil.which(torchrun) or f'{torchrun} is not there: LIVE_AVATAR_TORCHRUN names it'}")


def _tell_disk(settings: Settings) -> None:
    existing = next(folder for folder in (settings.data_dir, *settings.data_dir.parents) if folder.exists())
    print(f"disk       {shutil.disk_usage(existing).free / _GIB:.1f} GiB free for {settings.data_dir}")


def _tell_engine(admission: Admission, engine: Engine) -> bool:
    against = admission.why_not(engine)
    print(f"\n{engine.name:10} {engine.title}: {'can run' if not against else 'cannot run: ' + against}")
    for profile in engine.profiles:
        reason = against or admission.profile_why_not(profile)
        print(f"  {'no ' if reason else 'yes'} {profile.name}{f': {reason}' if reason and reason != against else ''}")
    return not against


if __name__ == "__main__":
    sys.exit(main())
