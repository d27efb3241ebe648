"""The web application: what answers at which address, and how the parts are wired. It starts nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask, Response, current_app

from api_schema import NoQuery
from config_loader import Settings, load_engines, load_settings
from task_manager import TaskManager
from tasks import drain
from web import answers, callers, commands, docs, errors, generate, requests, results, tasks
from web.inputs import Inputs
from web.parse import parse_query
from web.waiting import Waiting


@dataclass(frozen=True, slots=True)
class Parts:
    """What handlers work with."""

    manager: TaskManager
    inputs: Inputs
    waiting: Waiting


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
    return tasks.show(parts().manager, parts().waiting, task_id)


def delete_task(task_id: str) -> Response:
    parse_query(NoQuery)
    return tasks.delete(parts().manager, task_id)


def get_log(task_id: str) -> Response:
    return tasks.log(parts().manager, task_id)


def get_tasks() -> Response:
    return tasks.page(parts().manager)


def get_result(task_id: str, name: str) -> Response:
    return results.send(parts().manager, task_id, name)


def get_health() -> Response:
    parse_query(NoQuery)
    manager = parts().manager
    answer = answers.health_answer(manager.health(), drain.current(manager.store.state))
    return answers.respond(answer, 503 if answer.reasons else 200)


def get_openapi() -> Response:
    return docs.openapi(parts().manager)


def get_docs() -> Response:
    return docs.page()


def get_docs_file(name: str) -> Response:
    return docs.asset(name)


ROUTES: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("POST", "/api/v1/generate", post_generate),
    ("POST", "/api/v1/upload", post_upload),
    ("GET", "/api/v1/task/<task_id>", get_task),
    ("DELETE", "/api/v1/task/<task_id>", delete_task),
    ("GET", "/api/v1/task/<task_id>/log", get_log),
    ("GET", "/api/v1/tasks", get_tasks),
    ("GET", "/results/<task_id>/<name>", get_result),
    ("GET", "/api/v1/health", get_health),
    ("GET", "/api/v1/openapi.json", get_openapi),
    ("GET", "/docs", get_docs),
    ("GET", "/docs/<name>", get_docs_file),
)


def create_app(settings: Settings | None = None, manager: TaskManager | None = None) -> Flask:
    """Return the application. Raises ConfigError for settings that cannot be served safely."""
    settings = settings or load_settings()
    callers.refuse_open_address(settings)
    requests.configure_logging(settings.log_level)
    manager = manager or TaskManager(settings, load_engines(settings))
    app = Flask("live_avatar", static_folder=None)
    app.url_map.merge_slashes = False
    waiting = Waiting(manager.store.changes, settings.http.max_waiters)
    app.extensions |= {"task_manager": manager, "waiting": waiting}
    app.extensions["parts"] = Parts(manager, Inputs(settings.inputs, manager), waiting)
    for part in (errors, requests, callers, generate, commands):
        part.register(app)
    for method, rule, handler in ROUTES:
        app.add_url_rule(rule, view_func=handler, methods=[method], provide_automatic_options=False)
    return app
