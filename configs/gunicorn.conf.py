"""gunicorn's settings: threads for long polls and event streams, made when they are needed, and a scheduler thread in
each worker, of which one at a time works.

The application is not preloaded: a scheduler started in the master would be a dead thread in its workers. Its modules
are, though: importing them takes longer than all else of a start, and the master's are shared by all workers, also by
one that replaces a dead one. No max_requests: it would end the worker that schedules.
"""

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import app  # makes nothing; see above
from config_loader import ConfigError, load_settings
from web.tally import shared

gc.freeze()  # what was imported stays: no collection touches it, so it stays shared, and a worker ends sooner

try:
    _settings = load_settings()
except ConfigError as error:  # which gunicorn would tell with a traceback, and with a status upon which systemd retries
    sys.stderr.write(f"the service cannot start: {error}\n")
    sys.exit(app.CANNOT_START)

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
workers = _settings.workers
worker_class = "web.worker.Worker"
threads = _settings.http.max_waiters + 32
timeout = 60
graceful_timeout = 5
keepalive = 5
preload_app = False
control_socket_disable = True
limit_request_line = 8190
limit_request_fields = 64
# What is said of a client counts from http.trusted_proxies alone. gunicorn by itself would believe any program on this
# machine, and whoever comes through a socket: that the connection is TLS, and that the address asked for is another.
secure_scheme_headers = {}
forwarder_headers = ""
# Lines below this would quote what clients send; the application's own level is not meant here.
loglevel = "info" if _settings.log_level == "DEBUG" else _settings.log_level.lower()

_tally = shared(app.RULES)  # in memory that is shared with every worker that is forked


def pre_fork(server, worker):
    """Keep a place for what the worker counts; without one it counts for itself."""
    worker.seat = _tally.seat()


def child_exit(server, worker):
    """Give the place of a dead worker to the next, with what was counted there."""
    if worker.seat is not None:
        worker.seat.leave()


def post_worker_init(worker):
    """Start scheduling where a server runs, and nowhere else: `flask --app app` commands start nothing."""
    parts = worker.app.wsgi().extensions
    if worker.seat is not None:
        parts["metrics"].sit(worker.seat)

    def closing():
        return not worker.alive

    parts["waiting"].stop_when(closing)  # else a ?wait= would hold the shutdown up
    parts["task_manager"].start(closing)  # else a slow request would leave it time to start a task or two


def worker_exit(server, worker):
    """Leave the runners alone; the next scheduler adopts them."""
    application = worker.app.callable
    if application is not None:  # else it could not start, and shall not try again only to be stopped
        application.extensions["task_manager"].stop()
