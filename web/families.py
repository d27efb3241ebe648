"""What the metrics are called, and how a survey and the tally become them. Every name, label and help text is here.

No label is an id or a tenant's: what a label can be is fixed by the code, the engine table and the GPUs of the host.
Where the engine table says what can happen, a number is told as 0 before it has: else the first increase is no increase
to whoever asks for rates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from tasks.census import Census, Webhooks
from tasks.model import ErrorCode, Priority, Status
from tasks.scheduler import Office
from tasks.survey import GpuLook, Room, Survey
from tasks.totals import BOUNDS, Cause, Growth, Key, Spread, Total, sum_of
from web import tally
from web.tally import Open, Tally

PREFIX = "live_avatar_"
GPU_STATES = ("free", "busy", "settling", "held")
_GIB = 2**30
_PROFILE = ("engine", "profile")
_Of = TypeVar("_Of", bound=tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings and the engine table fix. `decoders` and `waiters` are of one worker."""

    version: str
    profiles: Sequence[tuple[str, str]]
    max_queued: int
    cpu_slots: int
    decoders: int
    waiters: int
    threads: int


def families(survey: Survey, counted: Tally, limits: Limits) -> Iterator[Metric]:
    """Yield all metrics."""
    yield _gauge("build_info", "1; the label tells the version.", ("version",), {(limits.version,): 1})
    yield from _http(counted, limits)
    yield _one("database_up", "1 while the database can be read.", survey.census is not None)
    yield _one("database_writable", "1 while it can be written, too.", survey.writable)
    if survey.census is not None:
        yield from _now(survey.census, limits)
        yield from _in_all(survey.census.totals, limits.profiles)
        yield from _slots(survey.census, survey.hardware, limits)
        yield from _webhooks(survey.census.webhooks, survey.census.totals)
    yield from _scheduler(survey.office)
    yield from _gpus(survey.hardware)
    yield from _disk(survey.room, survey.census)


# --- requests ---------------------------------------------------------------------------------------------------------


def _http(counted: Tally, limits: Limits) -> Iterator[Metric]:
    labels = ("method", "route", "status")
    requests = CounterMetricFamily(
        PREFIX + "http_requests",
        "Requests that were answered; what gunicorn could not read is not counted.",
        labels=labels,
    )
    for *kind, number in counted.requests():
        requests.add_metric(kind, number)
    yield requests
    took = HistogramMetricFamily(
        PREFIX + "http_request_duration_seconds",
        "Seconds until the head of an answer was ready; without long polls, whose length is their caller's.",
        labels=("method", "route"),
    )
    bounds = [*map(floatToGoString, tally.BOUNDS), "+Inf"]
    for method, route, durations in counted.durations():
        took.add_metric(
            [method, route], list(zip(bounds, accumulate(durations.counts), strict=True)), durations.seconds
        )
    yield took
    workers = counted.workers()
    yield _one("web_workers", "Web worker processes.", workers)
    yield _gauge(
        "in_progress", "What goes on in the web workers now.", ("kind",), {(str(o),): counted.open(o) for o in Open}
    )
    most = {Open.REQUEST: limits.threads, Open.LONG_POLL: limits.waiters, Open.DECODER: limits.decoders}
    yield _gauge(
        "in_progress_limit", "How much of it there can be at once.", ("kind",),
        {(str(kind),): number * workers for kind, number in most.items()},
    )  # fmt: skip


# --- tasks ------------------------------------------------------------------------------------------------------------


def _now(census: Census, limits: Limits) -> Iterator[Metric]:
    kinds = {(priority, engine) for priority in Priority for engine, _ in limits.profiles} | census.waiting.keys()
    labelled = {(priority.name.lower(), engine): census.waiting.get((priority, engine)) for priority, engine in kinds}
    labels = ("priority", "engine")
    yield _gauge(
        "queue_tasks",
        "Tasks that wait.",
        labels,
        {kind: found.tasks if found else 0 for kind, found in labelled.items()},
    )
    yield _gauge(
        "queue_oldest_seconds", "Seconds that the first of them has waited.", labels,
        {kind: found.oldest_seconds if found else 0 for kind, found in labelled.items()},
    )  # fmt: skip
    yield _one("queue_limit", "Tasks that may wait (queue.max_queued).", limits.max_queued)
    running, silent = Counter(dict.fromkeys(limits.profiles, 0)), dict.fromkeys(limits.profiles, 0.0)
    for task in census.running:
        running[task.engine, task.profile] += 1
        silent[task.engine, task.profile] = max(silent.get((task.engine, task.profile), 0.0), task.silent_seconds)
    yield _gauge("running_tasks", "Tasks that run.", _PROFILE, running)
    yield _gauge("runner_silent_seconds", "Seconds since the last word of the most silent runner.", _PROFILE, silent)
    draining = census.draining_seconds
    yield _one("draining", "1 while the service drains: it takes and starts nothing new.", draining is not None)
    yield _one("draining_seconds", "How long it has drained; 0 while it does not.", draining or 0)
    yield _one(
        "retention_stopped",
        "1 while nothing that expired is removed, because the clock jumped.",
        census.sweeping_stopped,
    )


def _slots(census: Census, hardware: GpuLook, limits: Limits) -> Iterator[Metric]:
    held = {uuid for task in census.running for uuid in task.gpus}
    on_cpu = sum(not task.gpus for task in census.running)
    there = {("cpu",): limits.cpu_slots, ("gpu",): len(hardware.gpus)}
    yield _gauge("slots", "Slots for CPU tasks, and GPUs.", ("kind",), there)
    yield _gauge("slots_in_use", "Those that tasks hold.", ("kind",), {("cpu",): on_cpu, ("gpu",): len(held)})


_COUNTERS = (
    (Total.STARTED, "attempts", "Attempts that were started.", "", ()),
    (Total.REQUEUED, "attempts_repeated", "Attempts that ended so that another is made.", "cause", tuple(Cause)),
    (Total.ENDED, "tasks_finished", "Tasks that ended.", "status", tuple(s for s in Status if s.ended)),
    (Total.FAILED, "task_failures", "Tasks that failed, by why.", "error_code", tuple(ErrorCode)),
    (Total.VIDEO_SECONDS, "video_seconds", "Seconds of published video.", "", ()),
)
_SPREADS = {
    Spread.WAITING: ("attempt_waiting_seconds", "Seconds that attempts waited for their slot."),
    Spread.LOADING: ("task_loading_seconds", "Seconds that completed tasks took to their first frame."),
    Spread.RENDERING: ("task_rendering_seconds", "Seconds that completed tasks took from there to their end."),
    Spread.REALTIME: ("task_realtime_factor", "Seconds of processing for each second of video."),
}


def _in_all(grown: Growth, profiles: Sequence[tuple[str, str]]) -> Iterator[Metric]:
    submitted = CounterMetricFamily(
        PREFIX + "tasks_submitted", "Tasks that were accepted.", labels=("engine", "priority")
    )
    zeros = [Key(Total.SUBMITTED, e, "", p.name.lower()) for e in {engine for engine, _ in profiles} for p in Priority]
    for key, value in _told(grown, Total.SUBMITTED, zeros):
        submitted.add_metric([key.engine, key.label], value)
    yield submitted
    for total, name, says, label, values in _COUNTERS:
        labels = (*_PROFILE, label) if label else _PROFILE
        family = CounterMetricFamily(PREFIX + name, says, labels=labels)
        zeros = [Key(total, *profile, value) for profile in profiles for value in values or ("",)]
        for key, value in _told(grown, total, zeros):
            family.add_metric(key[1 : 1 + len(labels)], value)
        yield family
    for spread in Spread:
        yield _spread(spread, grown, profiles)


def _told(grown: Growth, name: str, zeros: Iterable[Key]) -> list[tuple[Key, float]]:
    return sorted((dict.fromkeys(zeros, 0.0) | {k: v for k, v in grown.items() if k.name == name}).items())


def _spread(spread: Spread, grown: Growth, profiles: Sequence[tuple[str, str]]) -> Metric:
    name, says = _SPREADS[spread]
    family = HistogramMetricFamily(PREFIX + name, says, labels=_PROFILE)
    counts = {key: value for key, value in grown.items() if key.name == spread}
    bounds = sorted({*BOUNDS[spread], *(float(key.label) for key in counts), float("inf")})
    for profile in sorted({*profiles, *((key.engine, key.profile) for key in counts)}):
        under = accumulate(counts.get(Key(spread, *profile, str(float(bound))), 0.0) for bound in bounds)
        buckets = list(zip(map(floatToGoString, bounds), under, strict=True))
        family.add_metric(profile, buckets, grown.get(Key(sum_of(spread), *profile), 0.0))
    return family


def _webhooks(found: Webhooks, grown: Growth) -> Iterator[Metric]:
    states = {("pending",): found.pending, ("delivered",): found.delivered, ("failed",): found.failed}
    yield _gauge("webhooks", "Messages to webhooks that are kept, by state.", ("state",), states)
    yield _one(
        "webhook_oldest_pending_seconds", "Seconds that the oldest pending one has waited.", found.oldest_seconds
    )
    yield _one("webhook_overdue_seconds", "Seconds that one is due and not sent.", found.overdue_seconds)
    attempts = CounterMetricFamily(
        PREFIX + "webhook_attempts", "Attempts to deliver, by the state of the message after it.", labels=("state",)
    )
    for key, value in _told(grown, Total.WEBHOOKS, [Key(Total.WEBHOOKS, "", "", state) for (state,) in states]):
        attempts.add_metric([key.label], value)
    yield attempts


# --- the host ---------------------------------------------------------------------------------------------------------


def _scheduler(office: Office) -> Iterator[Metric]:
    yield _one("scheduler_held", "1 while a process schedules tasks.", office.held)
    known = {} if office.silent_seconds is None else {(): office.silent_seconds}
    yield _gauge("scheduler_silent_seconds", "Seconds since it last looked at the tasks.", (), known)


def _gpus(look: GpuLook) -> Iterator[Metric]:
    labels, by = ("gpu", "uuid"), {gpu: (str(gpu.index), gpu.uuid) for gpu in look.gpus}
    total = {by[gpu]: gpu.total_gib * _GIB for gpu in look.gpus}
    free = {by[gpu]: gpu.free_gib * _GIB for gpu in look.gpus}
    load = {by[gpu]: gpu.load for gpu in look.gpus if gpu.load is not None}
    yield _gauge("gpu_memory_bytes", "Memory of a GPU.", labels, total)
    yield _gauge("gpu_memory_free_bytes", "What of it is free.", labels, free)
    yield _gauge("gpu_utilization_ratio", "Share of time in which the GPU computed, 0 to 1.", labels, load)
    states = {
        (*by[gpu], state): state == look.states.get(gpu.uuid, GPU_STATES[0])
        for gpu in look.gpus
        for state in GPU_STATES
    }
    told = "1 for the state of the GPU: held is one whose memory did not come back after its task."
    yield _gauge("gpu_state", told, (*labels, "state"), states)
    yield _one("gpus_lost", "GPUs that are there and cannot be used.", look.lost)
    yield _one("gpu_look_stale", "1 while NVML gives no new answer, or there is none yet.", look.stale)
    yield _one("gpu_look_age_seconds", "Seconds since NVML was asked for what is told here.", look.age_seconds)


def _disk(room: Room, census: Census | None) -> Iterator[Metric]:
    yield _one("disk_free_bytes", "Room on the disk of the data folder.", room.free)
    yield _one("disk_reserve_bytes", "What must stay free (disk.reserve_bytes).", room.reserve)
    if census is not None:
        yield _one("disk_demand_bytes", "What open tasks may still write at most.", census.demand_bytes)
    yield _one("disk_ballast_bytes", "What is there of the last reserve.", room.ballast)
    yield _one("disk_ballast_full_bytes", "What should be (disk.ballast_bytes).", room.full_ballast)


def _one(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, says, value=value)


def _gauge(name: str, says: str, labels: Sequence[str], values: Mapping[_Of, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, says, labels=labels)
    for of, value in sorted(values.items()):
        family.add_metric(of, value)
    return family
