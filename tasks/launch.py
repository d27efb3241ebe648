"""Starting the runner of an attempt, and finding out whether one lives.

An attempt's lock file is locked before the runner is spawned and the descriptor passed on, so there is no moment in
which a living runner could be taken for a dead one: the lock ends with the last process that holds it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tasks.engine_limits import NO_LIMITS, EngineLimits
from tasks.estimate import Work
from tasks.folders import Folders
from tasks.model import OOM_REASON, Task
from tasks.placement import Placement
from tasks.spawner import ROOT, Spawner
from tasks.spec import BEAT_FILE, DATABASE_VARIABLE, FAILPOINT_VARIABLE, LOCK_FILE, OUTPUT_FOLDER, AttemptSpec
from utils.plan import VideoPlan
from utils.process import holders, is_locked, try_lock


@dataclass(frozen=True, slots=True)
class Launcher:
    """Starts runners. `environment` is what engines may see; times in seconds."""

    folders: Folders
    environment: Mapping[str, str]
    database_url: str
    max_attempts: int
    heartbeat_seconds: float
    poll_seconds: float
    failpoint: str = ""
    limits: EngineLimits = NO_LIMITS
    spawner: Spawner = field(default_factory=Spawner)

    def reserve(self, task_id: str, attempt: int) -> int | None:
        """Make the folder of an attempt and return its lock's descriptor; None while another holds it."""
        folder = self.folders.attempt(task_id, attempt)
        (folder / OUTPUT_FOLDER).mkdir(parents=True, exist_ok=True)
        return try_lock(folder / LOCK_FILE)

    def spawn(self, task: Task, placement: Placement, work: Work, lock: int) -> int:
        """Start the runner of a claimed task and return its pid. It keeps running whatever happens to this process."""
        profile = placement.profile
        spec = self._spec(task, placement, work)
        spec.save()
        # By UUID: indices mean other cards where CUDA_VISIBLE_DEVICES was set before.
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(placement.gpus)} if placement.gpus else {}
        own = {DATABASE_VARIABLE: self.database_url, "AVATAR_PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}
        own |= {FAILPOINT_VARIABLE: self.failpoint} if self.failpoint else {}
        environment = {**self.environment, **profile.env, **own, **gpus, **_promised(task.plan), **spec.marks}
        return self.spawner.spawn(Path(spec.folder), environment, lock)

    def pulse(self, task: Task) -> int | None:
        """Return what changes while the runner of the task's present attempt works on, also without a database."""
        try:
            return (self.folders.attempt(task.id, task.attempt) / BEAT_FILE).stat().st_mtime_ns
        except OSError:
            return None

    def kill_holders(self, task: Task) -> None:
        """SIGKILL every process that holds the task's present attempt or its slot, whatever its environment is."""
        locks = [self.folders.attempt(task.id, task.attempt) / LOCK_FILE, *self._slot_locks(task.gpus, task.slot)]
        for lock in filter(is_locked, locks):
            for process in holders(lock):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _slot_locks(self, gpus: Sequence[str], slot: str | None) -> list[Path]:
        """Return the locks of a task's place, in one order for all."""
        return [self.folders.slots / f"{name}.lock" for name in sorted(gpus or filter(None, [slot]))]

    def _spec(self, task: Task, placement: Placement, work: Work) -> AttemptSpec:
        folder, profile = self.folders.attempt(task.id, task.attempt), placement.profile
        return AttemptSpec(
            task_id=task.id,
            attempt=task.attempt,
            argv=self._argv(task, placement, folder),
            folder=str(folder),
            results=str(self.folders.result(task.id, task.attempt)),
            slot_locks=[str(lock) for lock in self._slot_locks(placement.gpus, placement.slot)],
            lock_folder=str(self.folders.data),
            wake=str(self.folders.wake),
            profile=f"{task.engine}/{profile.name}",
            plan=task.plan,
            params=task.params,
            adjusted=any(adjustment.reason == OOM_REASON for adjustment in task.adjustments),
            oom_sizes=list(profile.oom_sizes),
            retry_on=[str(code) for code in profile.retry_on if task.attempt < self.max_attempts],
            progress=profile.progress,
            extra_frames=profile.extra_frames,
            seconds_tolerance=profile.seconds_tolerance,
            estimate=profile.estimate,
            expected_load=work.load,
            expected_generate=work.generate,
            grace_seconds=profile.grace_seconds,
            run_timeout_seconds=profile.run_timeout_seconds,
            silence_timeout_seconds=profile.silence_timeout_seconds,
            first_clip_silence_seconds=profile.first_clip_silence_seconds,
            heartbeat_seconds=self.heartbeat_seconds,
            poll_seconds=self.poll_seconds,
            limits=self.limits,
        )

    def _argv(self, task: Task, placement: Placement, folder: Path) -> list[str]:
        """The engine contract's arguments: one element each, `--name=value`, so that a prompt is never a flag."""
        params, inputs, profile = task.params, self.folders.inputs(task.id), placement.profile
        argv = [
            str(ROOT / profile.script),
            f"--prompt={params.prompt}",
            f"--image={inputs / 'image.png'}",
            f"--audio={inputs / 'audio.wav'}",
            f"--size={params.size}",
            f"--num_clip={params.num_clip}",
            f"--sample_steps={params.sample_steps}",
            f"--seed={params.seed}",
            f"--output_dir={folder / OUTPUT_FOLDER}",
        ]
        if params.enable_online_decode:
            argv.append("--enable_online_decode")
        if params.output_format in profile.output_formats:
            argv.append(f"--output_format={params.output_format}")
        return [*argv, *profile.args, *(placement.build.args if placement.build else ())]


def _promised(plan: VideoPlan) -> dict[str, str]:
    """What the client was told of the video, for scripts of engines that do not reckon as Live Avatar does."""
    told = {"WIDTH": plan.width, "HEIGHT": plan.height, "SECONDS": plan.video_seconds}
    return {f"AVATAR_PLAN_{name}": str(value) for name, value in told.items()}
