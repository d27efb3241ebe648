"""Random tasks and random kills against a real service, in an order that a seed decides; then the checker's verdict.

One thread acts, another looks at all tasks the while. Everything done and seen goes into a history, which is written to
a file. The clock jumps by more than results are kept, and by more than the week after which a service that starts waits
with removing: who went by age without asking whether the clock is right would lose all results.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import urllib3

from tests.chaos import hook, rig
from tests.chaos.checker import ENDED, FULL, LIMITED, Event, Final, Outcome, violations
from tests.e2e.conftest import Service
from utils.process import is_alive, marked

MAX_ATTEMPTS = 3
_CALL_SECONDS = 10.0
_QUIET_SECONDS = 240.0
_GONE_SECONDS = 60.0
"""What was killed, or is on its way out, is gone by then."""
_ENGINES = (("short", 8), ("long", 4), ("deaf", 2), ("gang", 5), ("failing", 1), ("preview", 1))
_SETTINGS = {
    "AVATAR_ENV": "test", "AVATAR_SLOTS__CPU": "3", "AVATAR_RUNNER__MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    "AVATAR_RUNNER__HEARTBEAT_SECONDS": "0.5", "AVATAR_RUNNER__LEASE_SECONDS": "4",
    "AVATAR_RUNNER__POLL_SECONDS": "0.1", "AVATAR_RETENTION__SWEEP_SECONDS": "1",
    "AVATAR_DISK__RESERVE_BYTES": str(32 * 2**20), **hook.SETTINGS,
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    seed: int
    kills: Counter[str]
    others: Counter[str]
    tasks: Counter[str]
    seconds: float
    skipped: list[str]
    violations: list[str]
    history: Path

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        ends = ", ".join(f"{name} {count}" for name, count in sorted(self.tasks.items()))
        lines = [
            f"{self.kills.total()} kills ({kinds})",
            ", ".join(f"{name} {count} times" for name, count in sorted(self.others.items())),
            f"{self.tasks.total()} tasks ({ends})",
            f"{self.seconds:.0f} seconds, seed {self.seed}",
            *(f"skipped: {line}" for line in self.skipped),
        ]
        verdict = [f"VIOLATION: {line}" for line in self.violations] or ["no violation"]
        return "\n".join([*lines, *verdict, *([f"history: {self.history}"] if self.violations else [])])


@dataclass
class Chaos:
    """One round in `folder`, which must be empty."""

    folder: Path
    seed: int
    workers: int = 3
    mount: bool = True
    history: list[Event] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, dict[str, Any]] = field(default_factory=dict)  # key -> body of a submit without an answer
    locker: sqlite3.Connection | None = None
    due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def run(self, kills: int) -> Report:
        """Kill that often, wait until all is quiet, and judge."""
        self.began, self.random, self.calm = time.monotonic(), random.Random(self.seed), threading.Event()
        self.names = [f"{self.seed}-{number}" for number in range(100_000)][::-1]
        with ExitStack() as stack:
            data = self.folder / "data"
            self.not_mounted = stack.enter_context(rig.small_disk(data, self.mount))
            self.clock = rig.SteeredClock(self.folder)
            environment, no_gpus = rig.simulated_gpus(self.folder)
            self.engines = [each for each in _ENGINES if not (no_gpus and each[0] == "gang")]
            settings = {
                **_SETTINGS, **environment, **self.clock.environment,
                "AVATAR_ENGINES__TABLE": str(rig.engines(self.folder)),
                "AVATAR_INPUTS__FOLDERS": str(self.folder / "in"),
            }  # fmt: skip
            self.clients = stack.enter_context(ThreadPoolExecutor(4, "client"))
            self.image, self.audio = map(str, rig.inputs(self.folder / "in"))
            self.service = Service(self.folder, settings, self.workers)
            self.http = urllib3.PoolManager(maxsize=8, retries=False, timeout=_CALL_SECONDS)
            self.hook = stack.enter_context(closing(hook.Hook(self.note, self._row)))
            stack.callback(self.clean_up)
            self.service.start()
            self._act_until(kills)
            outcome = self._quiet()
        skipped = [f"full disk, files limited instead: {self.not_mounted}"] if self.not_mounted else []
        skipped += [f"clock: {self.clock.problem}"] if self.clock.problem else []
        skipped += [f"GPU tasks: {no_gpus}"] if no_gpus else []
        history = self.folder / "history.jsonl"
        history.write_text("".join(json.dumps(asdict(event)) + "\n" for event in self.history))
        ends = Counter(final.status for final in outcome.tasks.values()) + Counter(deleted=len(outcome.gone))
        found = violations(self.history, outcome)
        return Report(self.seed, self.kills, self.others, ends, time.monotonic() - self.began, skipped, found, history)

    def note(self, what: str, **facts: Any) -> None:
        self.history.append(Event(round(time.monotonic() - self.began, 3), what, facts))

    # --- acting --------------------------------------------------------------------------------------------------

    def _act_until(self, kills: int) -> None:
        acts: list[tuple[Callable[[], None], int]] = [
            (self.submit, 30), (self.cancel, 5), (self.delete, 3), (self.submit_again, 3), (self.kill_runner, 8),
            (self.kill_engine, 4), (self.kill_spawner, 3), (self.kill_worker, 3), (self.kill_scheduler, 3),
            (self.kill_master, 2), (self.kill_all_web, 2), (self.kill_runner_and_scheduler, 3), (self.stop_runner, 2),
            (self.stop_worker, 1), (self.kill_everything, 1), (self.stop_spawner_and_kill_scheduler, 1),
            (self.limit_files if self.not_mounted else self.fill_disk, 1),
            (self.jump_clock, 0 if self.clock.problem else 2), (self.lock_database, 1), (self.fail_receiver, 1),
        ]  # fmt: skip
        looker = threading.Thread(target=self._look, name="look")
        looker.start()
        try:
            while self.kills.total() < kills:
                self._do_what_is_due()
                (act,) = self.random.choices([act for act, _ in acts], [weight for _, weight in acts])
                act()
                self._restart_if_dead()
                threading.Event().wait(self.random.expovariate(1 / 0.15))
            self._do_what_is_due(all_of_it=True)
        finally:
            self.calm.set()
            looker.join()

    def submit(self) -> None:
        (engine,) = self.random.choices([name for name, _ in self.engines], [weight for _, weight in self.engines])
        body = {
            "prompt": "a person speaks", "image_path": self.image, "audio_path": self.audio, "size": "384*256",
            "engine": engine, "seed": self.random.randrange(2**31),
        }  # fmt: skip
        key = self.names.pop()
        if self.random.random() < 0.7:
            body["webhook_url"] = self.hook.url(f"/{key}")
        self.clients.submit(self._submit, key, body)

    def submit_again(self) -> None:
        again = self._pick(sorted(self.unanswered.items(), key=lambda item: item[0]))
        if again is not None:
            self.clients.submit(self._submit, *again)

    def _submit(self, key: str, body: dict[str, Any]) -> None:
        """Submit, perhaps beside others and perhaps again; a client keeps asking until it is answered."""
        self.unanswered[key] = body
        status, answer = self._call("POST", "/api/v1/generate", json=body, headers={"Idempotency-Key": key})
        if status == 201:
            self.unanswered.pop(key, None)
            self.note("accepted", key=key, task=answer["task_id"], engine=body["engine"], hooked="webhook_url" in body)
        else:
            self.note("not-accepted", key=key, status=status)

    def cancel(self) -> None:
        """Cancel a task; one that ended by itself meanwhile must stay."""
        task = self._pick_of("queued", "processing")
        if task is not None:
            self.note("cancel", task=task)  # also without an answer it may have been taken
            self._call("POST", f"/api/v1/task/{task}/cancel")

    def delete(self) -> None:
        task = self._pick_of(*ENDED)
        if task is None:
            return
        status, _ = self._call("DELETE", f"/api/v1/task/{task}")
        self.note("deleted" if status in (204, 410) else "not-deleted", task=task, status=status)

    def _pick_of(self, *statuses: str) -> str | None:
        return self._pick([task for task, status in self._last_seen().items() if status in statuses])

    def _note_late_deletes(self) -> None:
        """Note the tasks that were deleted after the client had given up on an answer; they must be told as gone."""
        for event in list(self.history):
            if event.what == "not-deleted" and event.facts["status"] is None and self._row(event.facts["task"]) is None:
                self.note("deleted", task=event.facts["task"])

    def fill_disk(self) -> None:
        """Leave no room for a second, with what is running."""
        filler = self.service.data / "filler"
        self._note_other(FULL)
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**20))
        self._later(1.0, lambda: (filler.unlink(missing_ok=True), self.note("disk", full=False)))

    def limit_files(self) -> None:
        """Let no process of the service write a large file for a second; where no disk can be mounted to be filled."""
        self._note_other(LIMITED)
        rig.limit_files(self._ours(), limited=True)
        self._later(1.0, lambda: rig.limit_files(self._ours(), limited=False))

    def _ours(self) -> list[psutil.Process]:
        """The processes of the service and of its tasks."""
        with suppress(psutil.NoSuchProcess):
            engines = [child for runner in self._runners() for child in runner.children(recursive=True)]
            return [*marked({"AVATAR_DATA_DIR": str(self.service.data)}), *engines]
        return self._ours()

    def jump_clock(self) -> None:
        """Set the clock off by more than a week, and right again some seconds later."""
        days = self.random.choice((-400, -30, 30, 400))
        self._note_other("clock jumped")
        self.clock.jump(days)
        self._later(self.random.uniform(1.5, 4.0), lambda: self.clock.jump(0))

    def lock_database(self) -> None:
        """Let nobody write a row for longer than a runner may be silent."""
        if self.locker is not None:
            return
        with suppress(sqlite3.OperationalError):  # where the disk has no room for the write-ahead log's index
            self.locker = sqlite3.connect(self.service.data / "avatar.db", timeout=0.5, isolation_level=None)
            self.locker.execute("BEGIN IMMEDIATE")
            self._note_other("database locked")
        self._later(float(_SETTINGS["AVATAR_RUNNER__LEASE_SECONDS"]) + 1.0, self._unlock)

    def _unlock(self) -> None:
        if self.locker is not None:
            self.locker.close()
            self.locker = None

    def fail_receiver(self) -> None:
        """Let no webhook arrive for a while."""
        self.hook.down = True
        self._note_other("receiver failed")
        self._later(self.random.uniform(1.0, 3.0), lambda: setattr(self.hook, "down", False))

    def _note_other(self, what: str) -> None:
        self.others[what] += 1
        self.note(what)

    # --- killing -------------------------------------------------------------------------------------------------

    def kill_runner(self) -> None:
        self._kill("runner", self._pick(self._runners()))

    def kill_engine(self) -> None:
        runner = self._pick(self._runners())
        with suppress(psutil.NoSuchProcess):
            self._kill("engine", self._pick(runner.children() if runner else []))

    def kill_worker(self) -> None:
        self._kill("worker", self._pick(self._workers()))

    def kill_scheduler(self) -> None:
        self._kill("scheduler", self._spawner_and_parent()[1])

    def kill_spawner(self) -> None:
        self._kill("spawner", self._spawner_and_parent()[0])

    def kill_master(self) -> None:
        """The workers notice by themselves; until they do, they serve on beside the next ones."""
        self._kill("master", psutil.Process(self.service.process.pid))
        self.service.process.wait(_GONE_SECONDS)

    def kill_all_web(self) -> None:
        for process in self.service.processes():
            self._kill("web", process, count=1 if process.pid == self.service.process.pid else 0)
        self.service.process.wait(_GONE_SECONDS)

    def kill_everything(self) -> None:
        """All at once, as the end of a container or of the power does: nobody sees another die."""
        ours = self._ours()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in ours:
                self._signal(process, number)
        self.kills["everything"] += 1
        self.note("kill", kind="everything", pids=[process.pid for process in ours])
        self.service.process.wait(_GONE_SECONDS)

    def kill_runner_and_scheduler(self) -> None:
        runner, scheduler = self._pick(self._runners()), self._spawner_and_parent()[1]
        if runner is not None and scheduler is not None:
            self._kill("runner", runner)
            self._kill("scheduler", scheduler)

    def stop_runner(self) -> None:
        """It is killed by the scheduler once its lease is over."""
        self._kill("runner stopped", self._pick(self._runners()), signal.SIGSTOP)

    def stop_worker(self) -> None:
        worker = self._pick(self._workers())
        self._kill("worker stopped", worker, signal.SIGSTOP)
        if worker is not None:
            self._later(self.random.uniform(0.5, 2.0), lambda: self._signal(worker, signal.SIGKILL))

    def stop_spawner_and_kill_scheduler(self) -> None:
        spawner, scheduler = self._spawner_and_parent()
        if spawner is not None and self._ends_with_its_parent(spawner):
            self._signal(spawner, signal.SIGSTOP)
            self._kill("scheduler", scheduler)

    @staticmethod
    def _ends_with_its_parent(spawner: psutil.Process) -> bool:
        """Say whether it has asked for that, which it does first of all: by what it imports behind that."""
        with suppress(OSError):
            return "libavcodec" in Path(f"/proc/{spawner.pid}/maps").read_text()
        return False

    def _kill(self, kind: str, process: psutil.Process | None, number: int = signal.SIGKILL, count: int = 1) -> None:
        if process is not None and self._signal(process, number):
            self.kills[kind] += count
            if count and self.kills.total() % 20 == 0:
                print(f"{self.kills.total()} kills after {time.monotonic() - self.began:.0f} s", flush=True)
            self.note("kill", kind=kind, pid=process.pid)

    @staticmethod
    def _signal(process: psutil.Process, number: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            return True
        return False

    def _later(self, seconds: float, do: Callable[[], object]) -> None:
        self.due.append((time.monotonic() + seconds, lambda: do() and None))

    def _do_what_is_due(self, all_of_it: bool = False) -> None:
        for at, do in list(self.due):
            if all_of_it or at <= time.monotonic():
                self.due.remove((at, do))
                do()

    def _restart_if_dead(self) -> None:
        if self.service.process is not None and self.service.process.poll() is not None:
            self._do_what_is_due(all_of_it=True)  # a stopped worker holds the port, a full disk health
            self.service.start()
            self.note("started")

    # --- looking -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Follow all tasks until all is calm."""
        last: dict[str, tuple[str, int]] = {}
        while not self.calm.wait(0.1):
            _, answer = self._call("GET", "/api/v1/tasks?limit=100")
            for task in (answer or {}).get("tasks", []):
                self._see(task["task_id"], (task["status"], task["attempt"]), last)

    def _see(self, task: str, now: tuple[str, int], last: dict[str, tuple[str, int]]) -> None:
        if last.get(task) == now:
            return
        last[task] = now
        self.note("seen", task=task, status=now[0], attempt=now[1])
        left = [process.pid for process in marked({"AVATAR_TASK_ID": task})] if now[0] == "cancelled" else []
        if left:
            self.note("left", task=task, pids=left)

    def _last_seen(self) -> dict[str, str]:
        seen = {event.facts["task"]: event.facts["status"] for event in list(self.history) if event.what == "seen"}
        gone = {event.facts["task"] for event in list(self.history) if event.what == "deleted"}
        return {task: status for task, status in seen.items() if task not in gone}

    def _call(self, method: str, path: str, **options: Any) -> tuple[int | None, Any]:
        """Return status and body; None where there was no answer."""
        try:
            answer = self.http.request(method, self.service.url + path, **options)
        except urllib3.exceptions.HTTPError:
            return None, None
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(answer.data) if is_json else answer.data

    def _pick(self, among: list[Any]) -> Any:
        return self.random.choice(among) if among else None

    def _query(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.service.data}/avatar.db?mode=ro", uri=True, timeout=60) as db:
            return db.execute(query, values).fetchall()

    def _row(self, task: str) -> tuple[Any, ...] | None:
        return next(iter(self._query("SELECT status FROM tasks WHERE id = ?", task)), None)

    def _runners(self) -> list[psutil.Process]:
        rows = self._query("SELECT runner FROM tasks WHERE status = 'processing' AND runner IS NOT NULL ORDER BY seq")
        told = [runner for (text,) in rows if (runner := json.loads(text))]
        found = []
        for runner in told:
            with suppress(psutil.NoSuchProcess):
                if is_alive(runner["pid"], runner["start_time"]):
                    found.append(psutil.Process(runner["pid"]))
        return found

    def _workers(self) -> list[psutil.Process]:
        return psutil.Process(self.service.process.pid).children()

    def _spawner_and_parent(self) -> tuple[psutil.Process | None, psutil.Process | None]:
        for worker in self._workers():
            with suppress(psutil.Error):
                for child in worker.children():
                    if "tasks.spawner" in child.cmdline():
                        return child, worker
        return None, None

    # --- the end -------------------------------------------------------------------------------------------------

    def _quiet(self) -> Outcome:
        """Wait until every task has ended, sweep as if hours had gone by, and look at all."""
        self.clients.shutdown(cancel_futures=True)
        self._until("every submit is answered", self._all_answered)
        self._until("every task has ended", lambda: not self._open_tasks())
        self._until("every end is told", lambda: not self._query("SELECT 1 FROM webhooks WHERE status = 'pending'"))
        rig.sweep_later(self.service.data, self.folder / "engines.yaml")
        self._note_late_deletes()
        deleted = {event.facts["task"] for event in self.history if event.what == "deleted"}
        gone = frozenset(task for task in deleted if self._answer(f"/api/v1/task/{task}")[0] == 410)
        tasks = {task: self._final(task) for (task,) in self._query("SELECT id FROM tasks")}
        starts = [tuple(line.split()[1:3]) for line in (self.folder / "starts.txt").read_text().splitlines()]
        twice = self.folder / "claims" / "taken-twice"
        return Outcome(
            tasks, gone, [(task, int(attempt)) for task, attempt in starts],
            twice.read_text().splitlines() if twice.exists() else [], self._left(), MAX_ATTEMPTS,
        )  # fmt: skip

    def _all_answered(self) -> bool:
        for key, body in list(self.unanswered.items()):
            self._submit(key, body)
        return not self.unanswered

    def _open_tasks(self) -> list[tuple[Any, ...]]:
        return self._query("SELECT id, status FROM tasks WHERE status IN ('queued', 'processing')")

    def _until(self, what: str, holds: Callable[[], bool], seconds: float = _QUIET_SECONDS) -> None:
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while not holds():
            assert time.monotonic() < deadline, (
                f"not in {seconds} s: {what}; {self._open_tasks()}; {self.service.log()}"
            )
            self._restart_if_dead()
            pause.wait(0.1)

    def _answer(self, path: str) -> tuple[int, Any]:
        """Return the status and the body of what is there, once it is answered.

        A worker whose master was killed serves on until it notices, and what it has not answered then is not.
        """
        deadline = time.monotonic() + _QUIET_SECONDS
        while True:
            status, body = self._call("GET", path)
            if status is not None:
                return status, body
            assert time.monotonic() < deadline, f"no answer in {_QUIET_SECONDS} s: {path}; {self.service.log()}"

    def _final(self, task_id: str) -> Final:
        _, task = self._answer(f"/api/v1/task/{task_id}")
        return Final(task["status"], task["attempt"], self._fetched(task), task["error_code"], task["error"])

    def _fetched(self, task: dict[str, Any]) -> bool:
        """Say whether the video can be fetched, as it was described."""
        video = task["video"] or {"sha256": ""}
        status, data = self._answer(f"/results/{task['task_id']}/video.mp4")
        poster, _ = self._answer(f"/results/{task['task_id']}/poster.jpg")
        return (status, poster) == (200, 200) and hashlib.sha256(data).hexdigest() == video["sha256"]

    def _left(self) -> list[str]:
        """Return all files that belong to no row, of dead attempts, or half made, and all processes of tasks."""
        data = self.service.data
        rows = dict(self._query("SELECT id, CASE status WHEN 'completed' THEN attempt END FROM tasks"))
        uploads = {path for (path,) in self._query("SELECT path FROM uploads")}
        left = [path for path in (data / "tasks").iterdir() if path.name not in rows]
        left += [path for path in (data / "results").glob("*/*") if str(rows.get(path.parent.name)) != path.name]
        left += [path for path in data.glob("tasks/*/attempts/*/*/*") if path.parent.name in ("out", "publish")]
        left += [*(data / "tmp").iterdir()]
        left += [path for path in data.glob("uploads/*/*") if f"/uploads/{path.parent.name}/{path.name}" not in uploads]
        left += [path for path in data.rglob(".*") if path.is_file()]
        return [str(path.relative_to(data)) for path in left] + self._lasting_strays()

    def _lasting_strays(self) -> list[str]:
        """Return the strays that stay: a runner leaves after its last write, a worker once it misses its master."""
        deadline, pause = time.monotonic() + _GONE_SECONDS, threading.Event()
        while (found := self._strays()) and time.monotonic() < deadline:
            pause.wait(0.1)
        return found

    def _strays(self) -> list[str]:
        """Return the processes of the service and of its tasks that do not descend from the server that runs now."""
        lines = (self.folder / "starts.txt").read_text().splitlines()
        tasks, found = {line.split()[1] for line in lines}, []
        serving = {p.pid for p in psutil.Process(self.service.process.pid).children(recursive=True)}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                told = process.environ()
                ours = told.get("AVATAR_DATA_DIR") == str(self.service.data) or told.get("AVATAR_TASK_ID") in tasks
                if ours and process.pid not in serving | {self.service.process.pid}:
                    found.append(f"process {process.pid} {process.name()} {process.status()}")
        return found

    def clean_up(self) -> None:
        if self.service.process is not None:
            for process in self.service.processes() if self.service.process.poll() is None else []:
                self._signal(process, signal.SIGCONT)
        self.service.clean_up()
