"""The web application: what answers at which address, and how the parts are wired. It starts nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import click
from flask import Flask, Response, current_app

from api_schema import NoQuery
from config_loader import ConfigError, Settings, load_engines, load_settings
from task_manager import TaskManager
from tasks import drain
from tasks.trouble import DataRefused
from utils.failpoint import arm
from web import (
    answers,
    callers,
    command_app,
    commands,
    docs,
    errors,
    events,
    generate,
    headers,
    requests,
    results,
    tasks,
)  # fmt: skip
from web.answers import Shown
from web.auth import Authenticator
from web.callers import Need
from web.inputs import Inputs
from web.limits import Limits
from web.links import Links
from web.metrics import Metrics
from web.page import Page
from web.parse import parse_query
from web.proxies import TrustedProxies
from web.waiting import Waiting
from web.webhooks import body


@dataclass(frozen=True, slots=True)
class Parts:
    """What handlers work with."""

    settings: Settings
    manager: TaskManager
    inputs: Inputs
    waiting: Waiting[Shown]
    links: Links
    page: Page
    metrics: Metrics


def parts() -> Parts:
    """Return the parts of the application that handles the request."""
    found: Parts = current_app.extensions["parts"]
    return found


def post_generate() -> Response:
    parse_query(NoQuery)
    return generate.generate(parts().manager, parts().inputs)


def post_upload() -> Response:
    parse_query(NoQuery)
    return generate.upload(parts().manager, parts().inputs)


def get_task(task_id: str) -> Response:
    return tasks.show(parts().manager, parts().waiting, parts().links, task_id)


def delete_task(task_id: str) -> Response:
    parse_query(NoQuery)
    return tasks.delete(parts().manager, parts().links, task_id)


def cancel_task(task_id: str) -> Response:
    parse_query(NoQuery)
    return tasks.cancel(parts().manager, parts().links, task_id)


def get_log(task_id: str) -> Response:
    return tasks.log(parts().manager, task_id)


def get_events(task_id: str) -> Response:
    parse_query(NoQuery)
    return events.stream(parts().manager, parts().waiting, parts().settings.http.heartbeat_seconds, task_id)


def get_tasks() -> Response:
    return tasks.page(parts().manager, parts().links)


def get_result(task_id: str, name: str) -> Response:
    return results.send(parts().manager, parts().links, parts().settings.http.accel_prefix, task_id, name)


def get_health() -> Response:
    parse_query(NoQuery)
    manager = parts().manager
    on = manager.store.condition.ask(partial(drain.current, manager.store.state))
    answer = answers.health_answer(manager.health(), on)
    unknown = parts().settings.auth.enabled and callers.current_caller() is None
    return answers.respond(answers.summary(answer) if unknown else answer, 503 if answer.reasons else 200)


def get_metrics() -> Response:
    parse_query(NoQuery)
    return parts().metrics.answer()


def get_page() -> Response:
    return parts().page.index()


def get_page_file(name: str) -> Response:
    return parts().page.asset(name)


def get_openapi() -> Response:
    return docs.openapi(parts().manager, parts().settings.auth.enabled)


def get_docs() -> Response:
    return docs.page()


def get_docs_file(name: str) -> Response:
    return docs.asset(name)


ROUTES: tuple[tuple[str, str, Need, Callable[..., Response]], ...] = (
    ("POST", "/api/v1/generate", "generate", post_generate),
    ("POST", "/api/v1/upload", "generate", post_upload),
    ("GET", "/api/v1/task/<task_id>", "read", get_task),
    ("DELETE", "/api/v1/task/<task_id>", "generate", delete_task),
    ("POST", "/api/v1/task/<task_id>/cancel", "generate", cancel_task),
    ("GET", "/api/v1/task/<task_id>/log", "read", get_log),
    ("GET", "/api/v1/task/<task_id>/events", "read", get_events),
    ("GET", "/api/v1/tasks", "read", get_tasks),
    ("GET", "/results/<task_id>/<name>", "link", get_result),
    ("GET", "/api/v1/health", "open", get_health),
    ("GET", "/metrics", "metrics", get_metrics),
    ("GET", "/", "open", get_page),
    ("GET", "/static/<path:name>", "open", get_page_file),
    ("GET", "/api/v1/openapi.json", "open", get_openapi),
    ("GET", "/docs", "open", get_docs),
    ("GET", "/docs/<name>", "open", get_docs_file),
)
"""Method, address, what it asks of its caller, handler."""

RULES = tuple(dict.fromkeys(rule for _, rule, _, _ in ROUTES))
"""The addresses, each once."""


_UMASK = 0o027
"""What the service writes is for its user, and to be read by its group: nginx sends results."""

CANNOT_START = 3
"""Exit status of a process that must not be started again as it is; gunicorn's master ends when a worker ends so."""


def create_app(settings: Settings | None = None, manager: TaskManager | None = None) -> Flask:
    """Return the application. Raises ConfigError and DataRefused where the service must not start.

    Without settings this is the entry of a process: it reads the environment, and ends the process with status 3 and
    one sentence where the service must not start. For `flask --app app` it makes no more than the commands need.
    """
    if settings is not None:
        return _serve(settings, manager)
    os.umask(_UMASK)
    try:
        settings = load_settings()
        return _with_commands(settings) if command_app.is_looked_through() else _serve(settings, manager)
    except (ConfigError, DataRefused) as error:
        click.echo(f"the service cannot start: {error}", err=True)
        raise SystemExit(CANNOT_START) from None


def _with_commands(settings: Settings) -> Flask:
    app = Flask("live_avatar", static_folder=None)
    commands.register(app, settings)
    return app


def _serve(settings: Settings, manager: TaskManager | None) -> Flask:
    callers.refuse_unsafe_settings(settings)
    requests.configure_logging(settings.log_level)
    arm(settings.failpoint)
    manager = manager or TaskManager(settings, load_engines(settings))
    callers.refuse_without_credentials(settings.auth, manager.store.keys)
    app = _with_commands(settings)
    app.url_map.merge_slashes = False
    app.config.update(TRUSTED_HOSTS=list(settings.http.trusted_hosts) or None, BODY_SECONDS=settings.http.body_seconds)
    metrics = Metrics(app, manager, settings, RULES)
    inputs = Inputs(settings.inputs, manager, metrics.during, many_tenants=settings.auth.enabled)
    links = _links(settings, manager)
    waiting = _waiting(manager, links, settings)
    app.extensions |= {"task_manager": manager, "waiting": waiting, "metrics": metrics}
    manager.tell_with(partial(body, manager, links))
    page = Page(app, settings, manager.engine_titles().items())
    app.extensions["parts"] = Parts(settings, manager, inputs, waiting, links, page, metrics)
    for part in (errors, requests, generate):
        part.register(app)
    limits = Limits(app, settings) if settings.auth.enabled else None
    needs: dict[str, Need] = {handler.__name__: need for _, _, need, handler in ROUTES}
    callers.register(app, settings, Authenticator(settings.auth, manager.store.keys), needs)
    headers.register(app, settings)
    for method, rule, need, handler in ROUTES:
        view = limits.guard(handler, need, rule) if limits else handler
        app.add_url_rule(rule, view_func=view, methods=[method], provide_automatic_options=False)
    if settings.auth.enabled or settings.auth.allow_anonymous:  # else whoever comes through a proxy is refused
        app.wsgi_app = TrustedProxies(app.wsgi_app, settings.http.trusted_proxies)  # type: ignore[method-assign]
    return app


def _waiting(manager: TaskManager, links: Links, settings: Settings) -> Waiting[Shown]:
    """Who waits for a task may see it: that is found out before. Without authentication there is one tenant."""
    return Waiting(
        manager.store.changes, manager.tags, lambda task_id: Shown(manager.view(task_id, None), links),
        settings.http.max_waiters, settings.auth.enabled,
    )  # fmt: skip


def _links(settings: Settings, manager: TaskManager) -> Links:
    """Links are signed where reading needs credentials, with a key that all processes of the service share."""
    if not settings.auth.enabled:
        return Links(None, 0.0)
    key = manager.store.state.get_or_set("link_key", {"key": secrets.token_hex(32)})
    return Links(bytes.fromhex(key["key"]), settings.auth.link_seconds)
