"""Who may ask over HTTP: keys, scopes, limits, in the words of each API, and never a key in a log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from starlette.routing import Route

from edgekit.config import HttpConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.access.key_file import revoke_key
from edgekit.daemon.access.keys import timestamp
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.key_metrics import MAX_KEYS
from edgekit.daemon.metrics import Metrics
from edgekit.errors import ConfigError, UnavailableError
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.types import ChatRequest
from tests.daemon.access.served import ASK, CHAT, Guarded, guarded
from tests.daemon.http.conftest import MODEL
from tests.daemon.mqtt.conftest import eventually
from tests.daemon.mqtt.scripted import WORDS, Playing

REPOSITORY = Path(__file__).parents[3]
OPEN = {"/", "/healthz", "/readyz", "/health", "/v1/health"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Guarded]:
    with guarded(tmp_path) as running:
        yield running


def test_every_path_but_the_probes_needs_a_key(served: Guarded) -> None:
    routes = [route for route in served.server._application().routes if isinstance(route, Route)]
    asked = {(method, route.path.replace("{name:path}", "x")) for route in routes for method in route.methods or ()}
    asked |= {
        ("GET", "/no/such/path"),
        ("OPTIONS", "/metrics"),
        ("GET", "/healthz/x"),
        ("GET", "/metrics/"),
    }
    for method, path in sorted(asked):
        response = served.http.request(method, path)
        if path in OPEN:
            assert response.status_code in {200, 405}, path
            continue
        assert response.status_code == 401, (method, path, response.text)
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert served.http.get("/readyz").text == "ready\n"
    assert not served.worker.played


def test_a_key_is_taken_from_the_headers_of_openai_anthropic_and_azure(served: Guarded) -> None:
    secret = served.add("ann")
    for name, value in (
        ("Authorization", f"Bearer {secret}"),
        ("authorization", f"bearer  {secret}"),
        ("x-api-key", secret),
        ("api-key", secret),
    ):
        assert served.http.get("/v1/models", headers={name: value}).status_code == 200, name
    # Claude Code and proxies may send a second one that is not ours.
    both = {"x-api-key": "placeholder", "Authorization": f"Bearer {secret}"}
    assert served.http.get("/v1/models", headers=both).status_code == 200
    for name, value in (("Authorization", secret[:-1]), ("Authorization", f"Basic {secret}"), ("cookie", secret)):
        assert served.http.get("/v1/models", headers={name: value}).status_code == 401, (name, value)
    assert served.http.get(f"/v1/models?api_key={secret}").status_code == 401


def test_openais_client_works_with_a_key_and_raises_its_own_errors_without(served: Guarded) -> None:
    secret = served.add("ann", models=(MODEL.name,))
    foreign = served.add("prom", scopes=("metrics",))
    other = served.add("bob", models=("qwen",))

    def client(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{served.server.url}/v1", api_key=key, max_retries=0)

    messages = [{"role": "user", "content": "Hello"}]
    with client(secret) as one:
        reply = one.chat.completions.create(model=MODEL.name, messages=messages)  # type: ignore[arg-type]
        assert reply.choices[0].message.content == "".join(WORDS)
    for key, error, code in (
        ("sk-wrong", openai.AuthenticationError, "invalid_api_key"),
        (foreign, openai.PermissionDeniedError, "scope_missing"),
        (other, openai.PermissionDeniedError, "model_not_allowed"),
    ):
        with client(key) as one, pytest.raises(error) as caught:
            one.chat.completions.create(model=MODEL.name, messages=messages)  # type: ignore[arg-type]
        assert caught.value.code == code


def test_ollamas_client_works_with_a_key_and_raises_its_own_error_without(served: Guarded) -> None:
    secret = served.add("ann")
    messages = [{"role": "user", "content": "Hello"}]
    with ollama.Client(served.server.url, headers={"Authorization": f"Bearer {secret}"}) as client:
        reply = client.chat(MODEL.name, messages)
    assert reply.message.content == "".join(WORDS)
    with (
        ollama.Client(served.server.url) as client,
        pytest.raises(ollama.ResponseError, match="needs an API key") as caught,
    ):
        client.chat(MODEL.name, messages)
    assert caught.value.status_code == 401


def test_a_refusal_has_the_shape_of_the_paths_api(served: Guarded) -> None:
    body = served.http.post("/v1/responses", json={}).json()
    assert (body["error"]["code"], body["error"]["type"]) == ("api_key_missing", "invalid_request_error")
    body = served.http.post("/api/chat", json={}).json()
    assert (body["code"], type(body["error"])) == ("api_key_missing", str)
    body = served.http.post("/v1/messages", json={}, headers={"x-api-key": "no"}).json()
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    metrics = served.add("prom", scopes=("metrics",))
    body = served.http.post("/v1/messages", json={}, headers={"x-api-key": metrics}).json()
    assert body["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("inference", {"/v1/models"}), ("metrics", {"/metrics", "/slots"}), ("admin", {"/api/delete"})],
)
def test_a_key_has_its_scopes_and_no_other(served: Guarded, scope: str, allowed: set[str]) -> None:
    secret = served.add("k", scopes=(scope,))
    for path in ("/v1/models", "/metrics", "/slots", "/slots/1", "/api/delete", "/api/blobs/sha256:0", "/props"):
        response = served.get(secret, path)
        mine = path in allowed or path.rpartition("/")[0] in allowed
        mine |= (scope, path) in {("admin", "/api/blobs/sha256:0"), ("inference", "/props")}
        assert (response.status_code == 403) != mine, (path, response.text)
        assert response.status_code < 500
    assert (served.http.post("/props", headers={"api-key": secret}).status_code == 403) == (scope != "admin")


def test_a_running_daemon_sees_added_and_revoked_keys_with_the_next_request(served: Guarded) -> None:
    for name in ("ann", "bob", "ann"):
        secret = served.add(name)
        assert served.get(secret, "/v1/models").status_code == 200
        revoke_key(served.file, name)
        assert served.get(secret, "/v1/models").status_code == 401
    for name in ("first",):
        revoke_key(served.file, name)
    # No keys are left: that opens nothing.
    assert served.http.get("/v1/models").status_code == 401
    served.file.unlink()
    assert served.http.get("/v1/models").status_code == 200


def test_on_loopback_the_first_key_ends_free_access(tmp_path: Path) -> None:
    with guarded(tmp_path, keys=False) as served:
        assert served.get("anything", "/v1/models").status_code == 200
        secret = served.add("ann")
        assert served.http.get("/v1/models").status_code == 401
        assert served.get(secret, "/v1/models").status_code == 200


def test_an_expired_key_says_so_and_is_refused(served: Guarded) -> None:
    secret = served.add("old", expires=timestamp(datetime.now(timezone.utc) - timedelta(seconds=1)))
    response = served.ask(secret)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "api_key_expired")
    assert not served.worker.played


def test_a_request_is_bound_to_its_key(served: Guarded) -> None:
    secrets = [
        served.add("ann", share=2.0, priority=-5),
        served.add("bob"),
        served.add("team1", tenant="team"),
        served.add("team2", tenant="team"),
    ]
    for path, body in (
        (CHAT, ASK),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/api/chat", {"model": MODEL.name, **ASK, "stream": False}),
        ("/api/generate", {"model": MODEL.name, "prompt": "Hello", "stream": False}),
    ):
        served.worker.played.clear()
        for secret in secrets:
            assert served.ask(secret, path, body).status_code == 200
        ann, bob, one, two = (playing.request for playing in served.worker.played)
        assert len({"", ann.tenant, bob.tenant, one.tenant}) == 4, path
        assert one.tenant == two.tenant
        assert len({ann.client, bob.client, one.client, two.client}) == 4
        assert (ann.share, bob.share) == (2.0, 1.0)
    # A key's requests may give way, and jump the queue only as far as the key allows.
    for wanted, got in ((-1000, -5), (-5, -5), (7, 7)):
        served.ask(secrets[0], body={**ASK, "priority": wanted})
        assert served.worker.played[-1].request.priority == got
    served.ask(secrets[1], body={**ASK, "priority": -1000})
    assert served.worker.played[-1].request.priority == 0


def test_a_new_key_of_an_old_name_is_another_tenant(served: Guarded) -> None:
    served.ask(served.add("ann"))
    revoke_key(served.file, "ann")
    served.ask(served.add("ann"))
    first, second = (playing.request.tenant for playing in served.worker.played)
    assert first != second


def test_only_the_access_layer_submits_requests_so_that_none_is_unbound() -> None:
    submitting = [
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "edgekit/daemon").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "worker.submit" in line and ".bound(" not in line
    ]
    assert submitting == []


def test_a_keys_rate_is_limited_with_an_honest_retry_after(served: Guarded) -> None:
    ann, bob = served.add("ann", requests_per_minute=2), served.add("bob", tokens_per_minute=30)
    assert [served.ask(ann).status_code for _ in range(2)] == [200, 200]
    refused = served.ask(ann)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["type"] == "rate_limit_error"
    # Others are not affected. Of 30 tokens, an answer of 20 reserves 27.5 with its prompt, and then used 11 + 8.
    assert [served.ask(bob, body={**ASK, "max_tokens": count}).status_code for count in (20, 20, 1)] == [200, 429, 200]
    with (
        openai.OpenAI(base_url=f"{served.server.url}/v1", api_key=ann, max_retries=0) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(model=MODEL.name, messages=[{"role": "user", "content": "Hello"}])
    assert served.ask(ann, "/api/chat", {"model": MODEL.name, **ASK}).json()["code"] == "rate_limited"


def test_a_batch_that_is_refused_costs_its_key_nothing(served: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = served.add("ann", requests_per_minute=5)

    def complete(prompts: int) -> tuple[int, str]:
        body = {"model": MODEL.name, "prompt": ["a"] * prompts, "max_tokens": 2, "n": 2, "best_of": 3}
        reply = served.ask(ann, "/v1/completions", body)
        assert ("retry-after" in reply.headers) == (reply.status_code == 429)
        return reply.status_code, "" if reply.is_success else reply.json()["error"]["code"]

    assert complete(6) == (400, "too_many_prompts")
    submit = served.worker.submit

    def second_has_no_place(request: ChatRequest, on_event: OnEvent) -> Playing:
        if len(served.worker.played) == 1:
            raise UnavailableError("full", hint="ask again", code="overloaded", retry_after_s=1.0)
        return submit(request, on_event)

    with monkeypatch.context() as patch:
        patch.setattr(served.worker, "submit", second_has_no_place)
        assert complete(5) == (429, "overloaded")
    # All five are still there; and the fifth after a batch that would have needed more.
    assert complete(4)[0] == 200
    assert complete(4) == (429, "rate_limited")
    assert complete(1)[0] == 200
    assert complete(1) == (429, "rate_limited")


def test_a_missed_deadline_does_not_give_tokens_back(served: Guarded) -> None:
    from edgekit.errors import RequestError
    from edgekit.generation.types import Failure

    ann = served.add("ann", tokens_per_minute=30)
    served.worker.script = lambda playing: playing.on_event(Failure(RequestError("late", code="deadline_exceeded")))
    assert [served.ask(ann, body={**ASK, "max_tokens": 20}).status_code for _ in range(2)] == [504, 429]


def test_failed_attempts_are_limited_and_a_right_key_still_gets_in(served: Guarded) -> None:
    secret = served.add("ann")
    seen = [served.ask("ek-wrong").status_code for _ in range(40)]
    assert set(seen) == {401, 429}
    assert seen[:20] == [401] * 20
    limited = served.ask("ek-wrong")
    if limited.status_code == 429:
        assert int(limited.headers["retry-after"]) >= 1
    assert served.ask(secret).status_code == 200


@pytest.mark.parametrize("where", ["log", "file"])
def test_no_log_has_a_key_or_what_was_asked_or_answered(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with guarded(tmp_path, access={"audit": where, "audit_file": tmp_path / "audit.jsonl"}) as served:
        right, foreign = served.add("ann"), served.add("prom", scopes=("metrics",))
        wrong = right[:-3] + "AAA"
        for secret in (right, foreign, wrong):
            served.ask(secret)
            served.ask(secret, **{"X-Request-Id": secret})
            served.ask(secret, **{"x-api-key": secret, "User-Agent": secret})
            served.get(secret, f"/v1/models/{secret}")
            served.get(secret, f"/v1/models?key={secret}")
            served.get("none", f"/{secret}")
            served.ask(secret, "/api/chat", {"model": secret, **ASK})
            served.ask(secret, body={"messages": [], secret: 1})
            served.ask(secret, "/v1/messages")
        served.http.request("POST", CHAT, content=b"{", headers={"Authorization": f"Bearer {right}\t{wrong}"})
        assert served.get(foreign, "/metrics").status_code == 200
        metrics = served.get(foreign, "/metrics").text
    # The clients of this process log their requests too.
    ours = [record for record in caplog.records if not record.name.startswith(("http", "openai", "ollama"))]
    assert ours
    written = "\n".join(record.getMessage() for record in ours) + metrics + served.file.read_text()
    if where == "file":
        written += (tmp_path / "audit.jsonl").read_text()
        assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    else:
        assert '"name":"ann"' in caplog.text
    for secret in (right, foreign, wrong):
        assert secret not in written
        assert secret[3:20] not in written
    assert "capital of" not in written
    assert "Paris" not in written


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_audit_log_has_a_line_for_each_request_and_none_for_probes(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with guarded(tmp_path, access={"audit": "file", "audit_file": file}) as served:
        secret = served.add("ann")
        for path in ("/healthz", "/readyz", "/"):
            served.http.get(path)
        served.ask(secret, **{"X-Request-Id": "job-1"})
        served.ask(secret, body={**ASK, "stream": True})
        served.ask(secret, body={"messages": []})
        served.ask("ek-wrong")
        served.get(secret, "/v1/models")
        assert eventually(lambda: len(lines(file)) == 5)
    first, stream, bad, wrong, models = lines(file)
    documented = json.loads(
        re.findall(r"```json\n(\{\"time.*?)```", (REPOSITORY / "docs/http.md").read_text(), re.DOTALL)[0]
    )
    assert list(first) == list(documented)
    assert {type(value) for value in first.values()} == {type(value) for value in documented.values()}
    assert (first["request"], first["name"], first["address"]) == ("job-1", "ann", "127.0.0.1")
    assert (first["what"], first["status"], first["outcome"]) == (f"POST {CHAT}", 200, "stop")
    for line in (first, stream):
        assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (11, 4, 8)
    assert (bad["status"], bad["outcome"], bad["completion_tokens"]) == (400, "invalid_request", 0)
    assert (wrong["status"], wrong["outcome"], wrong["name"], wrong["key"]) == (
        401,
        "invalid_api_key",
        "anonymous",
        None,
    )
    assert (models["status"], models["outcome"], models["what"]) == (200, None, "GET /v1/models")


def test_the_audit_file_is_rotated_and_opened_anew_after_it_was_moved(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with guarded(tmp_path, access={"audit": "file", "audit_file": file, "audit_mib": 1}) as served:
        served.get("no", "/a")
        assert eventually(lambda: len(lines(file)) == 1)
        file.rename(tmp_path / "moved")
        served.access.reload()
        served.get("no", "/b")
        assert eventually(lambda: [line["what"] for line in lines(file)] == ["GET /b"])
        for _ in range(6):
            served.access.audit.write({"filler": "x" * 1_000_000})
    assert sorted(path.name for path in tmp_path.glob("audit*")) == [
        "audit.jsonl",
        *(f"audit.jsonl.{n}" for n in (1, 2, 3, 4)),
    ]


def test_metrics_count_each_key_within_a_bound(tmp_path: Path) -> None:
    with guarded(tmp_path) as served:
        prom = served.add("prom", scopes=("metrics",))
        for number in range(MAX_KEYS + 3):
            assert served.ask(served.add(f"k{number}")).status_code == 200
        limited = served.add("limited", requests_per_minute=1)
        served.ask(limited)
        served.ask(limited)
        text = served.get(prom, "/metrics").text
    counted = dict(
        re.findall(r'edgekit_key_requests_total\{key="([^"]+)",model="tiny",outcome="stop"\} ([0-9.]+)', text)
    )
    assert len(counted) == MAX_KEYS + 1
    assert (counted["k0"], counted["other"]) == ("1.0", "4.0")
    assert 'edgekit_key_requests_total{key="other",model="tiny",outcome="rate_limited"} 1.0' in text
    assert 'edgekit_key_tokens_total{key="k0",kind="completion",model="tiny"} 8.0' in text
    assert 'edgekit_key_queue_seconds_total{key="k0",model="tiny"} 0.25' in text


def refused(tmp_path: Path, **config: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught, guarded(tmp_path, keys=False, **config):
        pass
    return caught.value


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])  # noqa: S104  what is tested
def test_without_keys_it_does_not_listen_beyond_loopback(tmp_path: Path, host: str) -> None:
    error = refused(tmp_path, host=host) if host else None
    if error is not None:
        assert (error.code, error.exit_status) == ("keys_required", 2)
        assert all(word in str(error.hint) for word in ("edgekit key add", "--insecure", "127.0.0.1"))
    with pytest.raises(ConfigError):
        HttpServer(HttpConfig(host=host, port=0), None, None, Metrics()).start()


def test_a_keys_file_without_keys_does_not_let_it_listen_beyond_loopback(tmp_path: Path) -> None:
    with guarded(tmp_path):
        pass
    revoke_key(tmp_path / "keys.json", "first")
    assert refused(tmp_path, host="0.0.0.0").code == "keys_required"  # noqa: S104  as above


def test_beyond_loopback_keys_stay_required_when_their_file_is_removed(tmp_path: Path) -> None:
    with guarded(tmp_path, host="0.0.0.0") as served:  # noqa: S104  as above
        secret = served.add("ann")
        assert served.get(secret, "/v1/models").status_code == 200
        served.file.unlink()
        assert [served.get(key, "/v1/models").status_code for key in (secret, "x")] == [401, 401]
        assert served.http.get("/readyz").text == "ready\n"


def test_insecure_answers_everyone_until_there_are_keys(tmp_path: Path) -> None:
    with guarded(tmp_path, keys=False, host="0.0.0.0", insecure=True) as served:  # noqa: S104  as above
        assert served.http.get("/v1/models").status_code == 200
        served.add("ann")
        assert served.http.get("/v1/models").status_code == 401


def test_the_client_of_edgekit_sends_its_key_and_understands_a_refusal(
    served: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.client import describe_http
    from edgekit.errors import EdgekitError

    with pytest.raises(EdgekitError) as caught:
        describe_http(served.server.url)
    assert caught.value.code == "api_key_missing"
    monkeypatch.setenv("EDGEKIT_API_KEY", served.add("ann"))
    assert describe_http(served.server.url)["id"] == MODEL.name


def test_without_configuration_there_are_no_keys_and_no_audit_log() -> None:
    access = Access()
    access.start()
    assert access.identify([b"x"], "", required=False).key is None
    access.reload()
    access.stop()


def test_a_fault_in_a_handler_is_500_in_the_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "audit.jsonl"
    with guarded(tmp_path, access={"audit": "file", "audit_file": file}) as served:
        prom = served.add("prom", scopes=("metrics",))
        monkeypatch.setattr(Metrics, "render", lambda _: 1 // 0)
        assert served.get(prom, "/metrics").status_code == 500
        assert eventually(lambda: [line["status"] for line in lines(file)] == [500])


def test_a_client_that_disconnects_is_499_with_the_tokens_of_its_answer(tmp_path: Path) -> None:
    from tests.daemon.mqtt.scripted import wait_for_cancel

    file = tmp_path / "audit.jsonl"
    with guarded(tmp_path, access={"audit": "file", "audit_file": file}) as served:
        served.worker.script = wait_for_cancel
        secret = served.add("ann")
        with pytest.raises(httpx.ReadTimeout):
            served.http.post(CHAT, json=ASK, headers={"api-key": secret}, timeout=httpx.Timeout(10, read=0.3))
        assert eventually(lambda: len(lines(file)) == 1)
    (line,) = lines(file)
    assert (line["status"], line["outcome"]) == (499, "cancelled")
    assert line["completion_tokens"]


def test_a_key_for_an_alias_may_use_the_model_by_any_of_its_names(served: Guarded) -> None:
    served.server._info = replace(MODEL, aliases=("gpt-4o",))
    for allowed, status in (("gpt-4o", 200), (MODEL.name, 200), ("gpt-4", 403)):
        secret = served.add(f"for-{allowed}", models=(allowed,))
        for name in (MODEL.name, "gpt-4o"):
            assert served.ask(secret, body={**ASK, "model": name}).status_code == status, (allowed, name)
