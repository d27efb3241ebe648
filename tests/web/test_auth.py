"""Who may: keys, tokens, scopes, tenants, links; and the one answer for all who may not."""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from app import ROUTES, create_app
from config_loader import ConfigError, load_engines, load_settings
from task_manager import TaskManager
from tests.web.conftest import Serve, Service, form
from web import jwks
from web.links import Links
from web.openapi import OPERATIONS

SECRET = "0123456789abcdef0123456789abcdef"
ISSUER, AUDIENCE = "https://issuer.example", "live-avatar"


def claims(**changes: Any) -> dict[str, Any]:
    """Return good claims; `changes` replace some, None removes one."""
    good = {"exp": int(time.time()) + 60, "sub": "u1", "tenant": "acme", "iss": ISSUER, "aud": AUDIENCE}
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(secret: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm, headers)


def bearer(credentials: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials}"}


@pytest.fixture
def secured(serve: Serve) -> Service:
    auth = {"enabled": True, "jwt_secret": SECRET, "issuer": ISSUER, "audience": AUDIENCE}
    return serve(auth=auth)


@pytest.fixture
def key_of(secured: Service) -> Callable[..., str]:
    """Return a function that makes a key."""

    def make(tenant: str = "acme", *scopes: str, days: float | None = None) -> str:
        given = frozenset(scopes or ("generate", "read"))
        return secured.manager.store.keys.create(tenant, given, days)[1]

    return make


def status(service: Service, credentials: dict[str, str], path: str = "/api/v1/tasks") -> int:
    return service.client.get(path, headers=credentials).status_code


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_opens_in_either_header(secured: Service, key_of: Callable[..., str]) -> None:
    key = key_of()
    assert status(secured, bearer(key)) == 200
    assert status(secured, {"X-API-Key": key}) == 200
    assert status(secured, {"Authorization": f"bearer {key}"}) == 200


def test_of_the_requests_with_a_key_one_alone_waits_for_a_locked_database(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve(auth={"enabled": True}, database_busy_seconds=1.0)
    _, key = service.manager.store.keys.create("acme")
    waited = []  # whoever waits for a lock that never comes free says so
    with closing(sqlite3.connect(service.settings.data_dir / "avatar.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for _ in range(3):
            assert service.client.get("/api/v1/tasks", headers={"X-API-Key": key}).status_code == 200
            waited.append(caplog.text.count("is not noted: database is locked"))
        assert time.monotonic() - began >= 0.9
    assert waited == [1, 1, 1]


def test_only_a_hash_of_a_key_is_kept_and_its_use_is_noted(secured: Service, key_of: Callable[..., str]) -> None:
    key = key_of()
    assert secured.manager.store.keys.all()[0].last_used_at is None
    assert status(secured, bearer(key)) == 200
    assert secured.manager.store.keys.all()[0].last_used_at is not None
    secret = key.split("_", 2)[2].encode()
    kept = b"".join(path.read_bytes() for path in secured.settings.data_dir.rglob("avatar.db*"))
    assert b"api_keys" in kept
    assert secret not in kept


def test_a_revoked_and_an_expired_key_open_nothing(secured: Service, key_of: Callable[..., str]) -> None:
    revoked, expired = key_of(), key_of(days=-1)
    secured.manager.store.keys.revoke(revoked.split("_")[1])
    assert (status(secured, bearer(revoked)), status(secured, bearer(expired))) == (401, 401)


REFUSED = {
    "nothing": lambda key: {},
    "empty": lambda key: {"X-API-Key": ""},
    "basic": lambda key: {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"},
    "no word before it": lambda key: {"Authorization": key},
    "bearer of nothing": lambda key: {"Authorization": "Bearer "},
    "both headers": lambda key: {"Authorization": f"Bearer {key}", "X-API-Key": key},
    "another secret": lambda key: bearer(key[:-1] + ("A" if key[-1] != "A" else "B")),
    "another id": lambda key: bearer("la_000000000000_" + key.split("_", 2)[2]),
    "longer": lambda key: bearer(key + "A"),
    "a line break after it": lambda key: bearer(key + "%0A"),
    "not ASCII": lambda key: {"X-API-Key": "la_é" + key[4:]},
    "the hash": lambda key: bearer("la_" + key.split("_")[1] + "_" + "0" * 43),
    "a word": lambda key: bearer("admin"),
    "alg none": lambda key: bearer(jwt.encode(claims(), None, "none")),
    "none in capitals": lambda key: bearer(unsigned("NONE")),
    "another jwt secret": lambda key: bearer(token(SECRET.upper())),
    "another algorithm of secrets": lambda key: bearer(token(SECRET * 2, "HS512")),
    "no exp": lambda key: bearer(token(exp=None)),
    "expired": lambda key: bearer(token(exp=int(time.time()) - 60)),
    "not yet": lambda key: bearer(token(nbf=int(time.time()) + 600)),
    "no sub": lambda key: bearer(token(sub=None)),
    "no tenant": lambda key: bearer(token(tenant=None)),
    "a list of tenants": lambda key: bearer(token(tenant=["acme"])),
    "a tenant with a slash": lambda key: bearer(token(tenant="../acme")),
    "an empty tenant": lambda key: bearer(token(tenant="")),
    "another issuer": lambda key: bearer(token(iss="https://elsewhere.example")),
    "no issuer": lambda key: bearer(token(iss=None)),
    "another audience": lambda key: bearer(token(aud="other")),
    "no audience": lambda key: bearer(token(aud=None)),
    "scope as a list": lambda key: bearer(token(scope=["read"])),
    "an embedded key": lambda key: bearer(token(headers={"jwk": {"kty": "oct", "k": "AAAA"}}, secret="A" * 32)),
    "a key by address": lambda key: bearer(token("B" * 32, headers={"jku": "http://127.0.0.1:9/keys", "kid": "1"})),
    "a path for a key": lambda key: bearer(token("C" * 32, headers={"kid": "../../dev/null"})),
    "a critical extension": lambda key: bearer(token(headers={"crit": ["b64"], "b64": False})),
    "deep JSON": lambda key: bearer(
        ".".join(base64.urlsafe_b64encode(b"[" * 5000).decode() for _ in range(1)) + ".e.s"
    ),
}


def unsigned(algorithm: str) -> str:
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": algorithm, "typ": "JWT"}, claims())
    )
    return f"{head}.{body}."


@pytest.mark.parametrize("how", REFUSED)
def test_every_bad_credential_gets_the_same_401(secured: Service, key_of: Callable[..., str], how: str) -> None:
    answer = secured.client.get("/api/v1/tasks", headers=REFUSED[how](key_of()))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    body = dict(answer.json)
    del body["request_id"]
    assert body == {
        "type": "about:blank", "title": "Unauthorized", "status": 401, "error_code": "unauthorized",
        "detail": "credentials are missing or not valid", "error": "credentials are missing or not valid",
    }  # fmt: skip


def test_a_key_in_the_query_is_none(secured: Service, key_of: Callable[..., str]) -> None:
    assert secured.client.get(f"/api/v1/tasks?api_key={key_of()}").status_code == 401


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_opens_and_names_the_tenant(secured: Service) -> None:
    secured.submit(1, tenant="acme")
    secured.submit(2, tenant="other")
    page = secured.client.get("/api/v1/tasks", headers=bearer(token())).json
    assert [task["task_id"][-1] for task in page["tasks"]] == ["1"]


@pytest.mark.parametrize(
    ("scope", "reads", "submits"),
    [(None, 200, 400), ("read", 200, 403), ("generate", 403, 400), ("", 403, 403), ("admin", 200, 400)],
)
def test_a_scope_opens_what_it_says(secured: Service, scope: str | None, reads: int, submits: int) -> None:
    sent = bearer(token(scope=scope))
    assert status(secured, sent) == reads
    assert secured.client.post("/api/v1/generate", json={}, headers=sent).status_code == submits
    cancelled = secured.client.post("/api/v1/task/gen_20261122_ffffffffffffffff/cancel", headers=sent)
    assert cancelled.status_code == (403 if submits == 403 else 404)


class Issuer:
    """A token issuer on a loopback port: its keys, how often it was asked, and whether it answers."""

    def __init__(self) -> None:
        self.private = {"rsa": rsa.generate_private_key(65537, 2048), "ec": ec.generate_private_key(ec.SECP256R1())}
        self.asked, self.answers, self.drips = 0, True, False
        self.shown = ("rsa", "ec", "others")
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(ConnectionError):  # it was left
                    self.answer()

            def answer(self) -> None:
                issuer.asked += 1
                while issuer.drips:
                    self.wfile.write(b"X")
                    time.sleep(0.02)
                body = json.dumps({"keys": issuer.public()}).encode()
                self.send_response(200 if issuer.answers else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        self.thread = Thread(target=self.server.serve_forever)
        self.thread.start()

    def public(self) -> list[dict[str, Any]]:
        made = []
        for name, algorithm in (("rsa", jwt.algorithms.RSAAlgorithm), ("ec", jwt.algorithms.ECAlgorithm)):
            made.append({**algorithm.to_jwk(self.private[name].public_key(), as_dict=True), "kid": name, "use": "sig"})
        made[0]["alg"] = "RS256"
        secret = base64.urlsafe_b64encode(b"x" * 32).decode().rstrip("=")
        others = [{"kty": "oct", "kid": "secret", "k": secret}, {"kty": "RSA", "kid": "broken"}, {"kid": 7}]
        return [key for key in made if key["kid"] in self.shown] + (others if "others" in self.shown else [])

    def close(self) -> None:
        self.drips = False
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer on a busy machine may take its time."""
    monkeypatch.setattr(jwks, "_TIMEOUT_SECONDS", 60.0)


@pytest.fixture
def by_issuer(serve: Serve, issuer: Issuer, patient: None) -> Service:
    return serve(auth={"enabled": True, "jwks_url": issuer.url, "issuer": ISSUER, "audience": AUDIENCE})


def signed(issuer: Issuer, key: str, algorithm: str, kid: str = "", **changes: Any) -> dict[str, str]:
    return bearer(token(issuer.private[key], algorithm, {"kid": kid or key}, **changes))


def test_tokens_of_an_issuer_open_and_its_keys_are_fetched_once(by_issuer: Service, issuer: Issuer) -> None:
    assert [status(by_issuer, signed(issuer, "rsa", "RS256")) for _ in range(3)] == [200] * 3
    assert status(by_issuer, signed(issuer, "ec", "ES256")) == 200
    assert issuer.asked == 1


def test_what_the_issuer_did_not_sign_opens_nothing(
    by_issuer: Service, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_PAUSE_SECONDS", 3600.0)  # longer than this takes, on any machine
    public = issuer.private["rsa"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    confused = forged_with(pem)
    stranger = rsa.generate_private_key(65537, 2048)
    attempts = [
        bearer(confused), bearer(token(stranger, "RS256", {"kid": "rsa"})), signed(issuer, "rsa", "RS256", "unknown"),
        signed(issuer, "rsa", "PS256"), signed(issuer, "rsa", "RS256", "ec"), signed(issuer, "rsa", "RS256", iss="x"),
        bearer(token("x" * 32, "HS256", {"kid": "secret"})), bearer(token(issuer.private["rsa"], "RS256")),
    ]  # fmt: skip
    assert [status(by_issuer, sent) for sent in attempts] == [401] * len(attempts)
    assert issuer.asked == 1, "tokens of strangers must not make this service ask again and again"


def forged_with(pem: bytes) -> str:
    """Return an HS256 token whose secret is the issuer's public key; PyJWT itself refuses to make one."""
    import hashlib
    import hmac

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    signed_part = part(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()) + b"." + part(json.dumps(claims()).encode())
    return (signed_part + b"." + part(hmac.digest(pem, signed_part, hashlib.sha256))).decode()


def test_the_last_good_keys_serve_while_the_issuer_is_away(
    by_issuer: Service, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(by_issuer, signed(issuer, "rsa", "RS256")) == 200
    issuer.answers = False
    monkeypatch.setattr(jwks, "_FRESH_SECONDS", -1.0)
    monkeypatch.setattr(jwks, "_PAUSE_SECONDS", 0.0)
    assert status(by_issuer, signed(issuer, "rsa", "RS256")) == 200
    assert issuer.asked == 2


def test_an_issuer_that_never_answered_is_a_503(by_issuer: Service, issuer: Issuer) -> None:
    issuer.answers = False
    answer = by_issuer.client.get("/api/v1/tasks", headers=signed(issuer, "rsa", "RS256"))
    assert (answer.status_code, answer.json["error_code"]) == (503, "busy")
    assert answer.headers["Retry-After"]


@pytest.fixture
def key_set(issuer: Issuer, patient: None, monkeypatch: pytest.MonkeyPatch) -> jwks.KeySet:
    """The issuer's keys, fetched, and asked for as often as there is a reason."""
    monkeypatch.setattr(jwks, "_PAUSE_SECONDS", 0.0)
    made = jwks.KeySet(issuer.url)
    assert made.key("rsa") is not None
    return made


def test_an_issuer_that_drips_delays_nobody_whose_key_is_known(key_set: jwks.KeySet, issuer: Issuer) -> None:
    issuer.drips = True
    key_set._fetched_at -= jwks._FRESH_SECONDS + 1
    assert key_set.key("rsa") is not None
    assert not key_set._answered.is_set(), "a known key waited for the issuer"
    issuer.drips = False
    assert key_set._answered.wait(60)
    assert issuer.asked == 2


def test_an_issuer_that_drips_is_left_at_the_deadline(
    key_set: jwks.KeySet, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_TIMEOUT_SECONDS", 1.0)
    key_set._policy = replace(key_set._policy, deadline_seconds=1.0)
    issuer.drips = True
    began = time.monotonic()
    assert key_set.key("new") is None
    key_set._fetched_at -= 2 * jwks._FRESH_SECONDS + 1
    assert key_set.key("rsa") is not None, "the last good keys were given up"
    assert key_set._answered.wait(60), "the issuer is still being asked"
    assert time.monotonic() - began < 60, "the header's drip, of minutes, was waited for"


def test_rotated_keys_are_found_when_they_are_named_and_those_withdrawn_open_nothing_once_that_is_known(
    key_set: jwks.KeySet, issuer: Issuer
) -> None:
    issuer.shown = ("ec",)
    key_set._fetched_at -= 2 * jwks._FRESH_SECONDS + 1
    assert (key_set.key("rsa"), key_set.key("ec") is not None) == (None, True)
    issuer.shown = ("rsa", "ec")
    assert key_set.key("rsa") is not None


def test_an_answer_without_a_key_that_signs_replaces_no_good_one(key_set: jwks.KeySet, issuer: Issuer) -> None:
    issuer.shown = ()
    assert key_set.key("unknown") is None
    assert key_set.key("rsa") is not None
    assert issuer.asked == 2


# --- tenants ----------------------------------------------------------------------------------------------------------


def test_another_tenants_things_are_as_if_they_were_not(secured: Service, key_of: Callable[..., str]) -> None:
    done = secured.complete(secured.start(secured.submit(1, tenant="acme")))
    attempt = secured.manager.folders.attempt(done.id, done.attempt)
    attempt.mkdir(parents=True)
    (attempt / "engine.log").write_text("nothing to tell")
    mine, theirs = bearer(key_of("acme")), bearer(key_of("evil"))
    paths = [f"/api/v1/task/{done.id}", f"/api/v1/task/{done.id}/log", f"/results/{done.id}/video.mp4"]
    assert [status(secured, mine, path) for path in paths] == [200] * 3
    unknown = secured.client.get("/api/v1/task/gen_20261122_ffffffffffffffff", headers=theirs).json
    for path in paths:
        answer = secured.client.get(path, headers=theirs)
        assert (answer.status_code, answer.json["detail"]) == (404, unknown["detail"])
    assert secured.client.delete(paths[0], headers=theirs).status_code == 404
    assert secured.client.post(f"{paths[0]}/cancel", headers=theirs).status_code == 404
    assert secured.client.get("/api/v1/tasks", headers=theirs).json["tasks"] == []
    assert secured.client.delete(paths[0], headers=mine).status_code == 204
    assert (status(secured, theirs, paths[0]), status(secured, mine, paths[0])) == (404, 410)


def test_another_tenants_upload_and_idempotency_key_are_ones_own_to_choose(
    secured: Service, key_of: Callable[..., str]
) -> None:
    image, audio = secured.put("image"), secured.put("audio")  # of the tenant `default`
    body = {"prompt": "p", "image_path": image, "audio_path": audio, "engine": "preview"}
    answer = secured.client.post("/api/v1/generate", json=body, headers=bearer(key_of("acme")))
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "image_path")
    made = [
        secured.client.post(
            "/api/v1/generate", data=form(), headers=bearer(key_of(tenant)) | {"Idempotency-Key": "same"}
        ).json["task_id"]
        for tenant in ("acme", "evil")
    ]
    assert made[0] != made[1]


def test_an_administrator_sees_and_ends_the_tasks_of_all(secured: Service, key_of: Callable[..., str]) -> None:
    tasks = [secured.submit(number, tenant=tenant).id for number, tenant in ((1, "acme"), (2, "other"))]
    admin = bearer(key_of("operators", "admin"))
    page = secured.client.get("/api/v1/tasks", headers=admin).json
    assert {task["task_id"] for task in page["tasks"]} == set(tasks)
    assert secured.client.post(f"/api/v1/task/{tasks[0]}/cancel", headers=admin).status_code == 200
    assert secured.client.delete(f"/api/v1/task/{tasks[1]}", headers=admin).status_code == 200


# --- links ------------------------------------------------------------------------------------------------------------


def link_of(service: Service, key: str) -> str:
    done = service.complete(service.start(service.submit(1, tenant="acme")))
    url: str = service.client.get(f"/api/v1/task/{done.id}", headers=bearer(key)).json["output_video_url"]
    return url


def test_a_signed_link_plays_without_credentials_and_is_stable(
    secured: Service, key_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = time.time()  # which stays, so that no new step of the expiry begins meanwhile
    monkeypatch.setattr("web.links.time", SimpleNamespace(time=lambda: moment))
    key = key_of("acme")
    url = link_of(secured, key)
    task = urlsplit(url).path.split("/")[2]
    assert secured.client.get(url, headers={"Range": "bytes=0-3"}).data == b"0123"
    assert secured.client.head(url).headers["Content-Length"] == "10"
    assert [secured.client.open(url, method=method).status_code for method in ("DELETE", "POST")] == [405, 405]
    assert secured.client.get(f"/api/v1/task/{task}", headers=bearer(key)).json["output_video_url"] == url
    expires = int(parse_qs(urlsplit(url).query)["expires"][0])
    assert 3600 <= expires - moment <= 3600 + 300


@pytest.mark.parametrize(
    "tamper",
    [
        lambda url: url.partition("?")[0],
        lambda url: url.replace("video.mp4", "poster.jpg"),
        lambda url: url.replace("expires=", "expires=9"),
        lambda url: url[:-1] + ("A" if url[-1] != "A" else "B"),
        lambda url: url.partition("signature=")[0] + "signature=",
        lambda url: url.partition("signature=")[0] + "signature=%C3%A9",
        lambda url: url.partition("?")[0] + "?" + url.partition("&")[2],
    ],
)
def test_a_link_that_was_changed_opens_nothing(
    secured: Service, key_of: Callable[..., str], tamper: Callable[[str], str]
) -> None:
    assert secured.client.get(tamper(link_of(secured, key_of("acme")))).status_code == 401


def test_a_link_is_for_one_service_and_for_what_is_still_there(secured: Service, key_of: Callable[..., str]) -> None:
    key = key_of("acme")
    url = link_of(secured, key)
    task, name = urlsplit(url).path.split("/")[2:]
    other = Links(b"k" * 32, 3600).link(task, name)
    for refused in (other, url + "&signature=A", url.replace("signature=", "signature=A&signature="), f"{url}%0A"):
        assert secured.client.get(refused).status_code in (400, 401), refused
    assert secured.client.delete(f"/api/v1/task/{task}", headers=bearer(key)).status_code == 204
    assert (secured.client.get(url).status_code, secured.client.head(url).status_code) == (410, 410)


def test_a_link_expires(secured: Service, key_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, now = link_of(secured, key_of("acme")), time.time()
    monkeypatch.setattr("web.links.time.time", lambda: now + 3600 + 301)
    assert secured.client.get(url).status_code == 401


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_every_route_asks_for_what_the_document_says(secured: Service) -> None:
    needs = {(method, rule.replace("<", "{").replace(">", "}")): need for method, rule, need, _ in ROUTES}
    assert {key: operation.need for key, operation in OPERATIONS.items()} == {
        key: need for key, need in needs.items() if key in OPERATIONS
    }
    for method, rule, need, _ in ROUTES:
        path = rule.replace("<task_id>", "gen_20261122_0000000000000001").replace("<name>", "start.js")
        answer = secured.client.open(path, method=method)
        assert (answer.status_code == 401) == (need != "open"), (method, path, answer.status_code)
    security = secured.client.get("/api/v1/openapi.json").json["paths"]["/api/v1/tasks"]["get"]["security"]
    assert security == [{"key": []}, {"token": []}]


def test_health_tells_the_anonymous_nothing_of_the_machine(secured: Service, key_of: Callable[..., str]) -> None:
    anonymous = secured.client.get("/api/v1/health").json
    assert set(anonymous) == {"status", "model_loaded", "version"}
    assert "gpus" in secured.client.get("/api/v1/health", headers=bearer(key_of())).json


def test_anonymous_callers_are_let_in_where_the_settings_say_so(serve: Serve) -> None:
    service = serve(auth={"enabled": True, "allow_anonymous": True, "jwt_secret": SECRET})
    assert status(service, {}) == 200
    assert status(service, bearer("wrong")) == 401
    assert status(service, bearer(token())) == 200


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env": "production"}, "keys create"),
        ({"host": "0.0.0.0"}, "AVATAR_HOST"),
        ({"http": {"trusted_proxies": ["127.0.0.1"]}}, "trusted_proxies"),
        ({"auth": {"enabled": True, "jwt_secret": "short"}}, "32 bytes"),
        ({"auth": {"enabled": True, "jwks_url": "http://issuer.example/keys"}}, "https"),
        ({"auth": {"enabled": True, "jwks_url": "file:///etc/passwd"}}, "https"),
    ],
)
def test_settings_that_let_strangers_in_are_refused_with_what_to_do(
    serve: Serve, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(**settings)


@pytest.mark.parametrize(
    "way", [{"jwt_secret": SECRET}, {"jwks_url": "https://i.example/k"}, {"allow_anonymous": True}]
)
def test_authentication_without_a_way_in_is_refused_and_each_way_in_is_enough(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    def start(**auth: Any) -> None:
        settings = load_settings({"data_dir": str(tmp_path), "auth": {"enabled": True, **auth}})
        manager = TaskManager(settings, load_engines(settings))
        try:
            create_app(settings, manager).extensions["waiting"].stop()
        finally:
            manager.store.close()

    with pytest.raises(ConfigError, match="keys create --tenant NAME"):
        start()
    start(**way)


def test_a_service_whose_last_key_has_ended_starts_and_says_so(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    keys = serve(auth={"enabled": True}).manager.store.keys
    keys.create("acme", days=-1)
    keys.revoke(keys.all()[0].id)
    serve(auth={"enabled": True})
    assert "every API key is revoked or has expired" in caplog.text


def test_the_override_has_a_name_of_its_own(serve: Serve) -> None:
    service = serve(env="production", host="0.0.0.0", auth={"allow_anonymous": True})
    sent = {"Host": "avatar.example", "X-Forwarded-For": "203.0.113.9"}
    assert service.client.get("/api/v1/tasks", headers=sent).status_code == 200


def test_a_page_of_another_origin_cannot_submit_while_authentication_is_off(serve: Serve) -> None:
    service = serve()
    for origin in ("https://evil.example", "null", "http://localhost:3000"):
        assert service.client.post("/api/v1/generate", data=form(), headers={"Origin": origin}).status_code == 403
    own = service.client.post("/api/v1/generate", data=form(), headers={"Origin": "http://localhost"})
    assert own.status_code == 201


def test_the_commands_make_list_and_revoke_keys(secured: Service) -> None:
    run = secured.app.test_cli_runner().invoke
    made = run(args=["keys", "create", "--tenant", "acme", "--scope", "read", "--days", "7"])
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert status(secured, bearer(key)) == 200
    assert secured.client.post("/api/v1/generate", json={}, headers=bearer(key)).status_code == 403
    listed = run(args=["keys", "list"]).stdout
    assert key.split("_")[1] in listed
    assert key.split("_", 2)[2] not in listed
    assert run(args=["keys", "revoke", key.split("_")[1]]).exit_code == 0
    assert status(secured, bearer(key)) == 401
    assert run(args=["keys", "revoke", key.split("_")[1]]).exit_code == 1
    assert run(args=["keys", "create", "--tenant", "../acme"]).exit_code == 2
