"""Whatever fits the description of the server, in whatever order: no answer is a fault of ours, none has a traceback.

Schemathesis plays visitors, API clients and operators by the app's own description; ids go from one call to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.serve.conftest import Running, chat_with, client_for
from warmline.serve.app import create_app
from warmline.serve.auth import Gate
from warmline.serve.conversations import Conversations
from warmline.serve.keys import Keys
from warmline.serve.limits import Limits
from warmline.serve.openai import description

STEPS = 10


def whole(app: FastAPI) -> dict[str, Any]:
    """All routes of the server, and how an id goes from the one that gives it to those that take it."""
    schema = get_openapi(title="all", version="1", routes=app.routes)
    api = description()
    schema["paths"] |= api["paths"]
    schema.setdefault("components", {}).setdefault("schemas", {}).update(api["components"]["schemas"])
    links = {
        f"{method} {path}": {"operationId": one["operationId"], "parameters": {"id": "$response.body#/id"}}
        for path, methods in schema["paths"].items()
        if "{id}" in path
        for method, one in methods.items()
    }
    opened = schema["paths"]["/api/conversations"]["post"]["responses"]
    opened["201"] = {"description": "opened", "links": links}
    return schema


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    gate = Gate(Keys(), limits=Limits("100000/minute", "100000/minute"))
    # Room for all that is opened, so that a 503 is never right.
    app = create_app(chat_with()[0], gate=gate, conversations=Conversations(most=100_000))
    with Running(app) as server:
        yield server


@pytest.mark.parametrize("runs", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_order_of_calls_makes_the_server_fail(server: Running, runs: int) -> None:
    schema = schemathesis.openapi.from_dict(whole(create_app(chat_with()[0])))
    schema.config.update(base_url=server.url)
    calls: list[tuple[str, int]] = []

    class Machine(schema.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            self.session = requests.Session()  # the visitor's cookie goes along

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"session": self.session, "timeout": 60}

        def validate_response(self, response: Any, case: Any, additional_checks: Any = None, **_: Any) -> None:
            calls.append((f"{case.method} {case.operation.path}", response.status_code))
            assert b"Traceback" not in response.content
            case.validate_response(response, checks=[not_a_server_error])

    Machine.run(
        settings=settings(
            max_examples=runs,
            stateful_step_count=STEPS,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=runs < 100,
        )
    )
    assert len(calls) >= runs
    # The chain holds: some of the calls found the conversation that an earlier one had opened.
    assert any("{id}" in where and status < 300 for where, status in calls)
    if runs >= 1000:
        statuses = Counter(status for _, status in calls)
        print(f"{len(calls):,} calls, {len({where for where, _ in calls})} routes, {dict(statuses)}")
        assert len(calls) >= 10_000


@pytest.mark.parametrize("examples", [2, pytest.param(300, marks=pytest.mark.slow)])
def test_no_single_call_makes_the_server_fail(server: Running, examples: int) -> None:
    """Every route by itself, the API's too; above are only those that take an id from one another."""
    schema = schemathesis.openapi.from_dict(whole(create_app(chat_with()[0])))
    schema.config.update(base_url=server.url)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def call(case: Any) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500 or response.status_code == 503, case.operation.path
            assert b"Traceback" not in response.content

        call()


def test_the_description_has_every_route_of_the_api_and_no_other() -> None:
    with client_for(chat_with()[0]) as client:
        schema = client.get("/v1/openapi.json").json()
        page = client.get("/v1/docs")
        app = client.app
    assert isinstance(app, FastAPI)
    described = {(method, path) for path, methods in schema["paths"].items() for method in methods}
    assert described == {
        ("post", "/v1/chat/completions"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model}"),
    }
    assert page.status_code == 200
    for _, path in described:
        assert path in page.text
    for field in schema["components"]["schemas"]["Completion"]["properties"]:
        assert f"<code>{field}</code>" in page.text
    assert "<script" not in page.text
    assert "http://" not in page.text + str(schema)
