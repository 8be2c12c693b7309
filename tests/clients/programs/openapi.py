"""Validates the OpenAPI document of a daemon, and sends requests that schemathesis makes from it.

    openapi.py URL CASES

CASES is the number of requests for each operation. Prints the faults of the document, the number of requests, and the
replies that are a server error: a status from 500 on, with a code that is not one of those that a request may cause.
"""

import collections
import contextlib
import json
import sys

import hypothesis
import requests
import schemathesis
from openapi_spec_validator import OpenAPIV31SpecValidator

# Refused always, after a deadline that the request sets, or because others wait.
EXPECTED = {"not_implemented", "deadline_exceeded"}

url, cases = sys.argv[1], int(sys.argv[2])
document = requests.get(f"{url}/openapi.json", timeout=60).json()
model = requests.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
faults = [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]
schema = schemathesis.openapi.from_dict(document)
statuses: collections.Counter[int] = collections.Counter()
errors: list[str] = []


def code_of(response: requests.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return ""
    error = body.get("error") if isinstance(body, dict) else None
    return str((error if isinstance(error, dict) else body).get("code"))


def send(case: schemathesis.Case) -> None:
    body = case.body
    if isinstance(body, dict):
        # Another model's name is refused before anything else is read.
        if isinstance(body.get("model"), str):
            body["model"] = model
        # Some answers would be as long as the context.
        for name in ("max_tokens", "n_predict", "max_output_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int) and body[name] > 8:
                body[name] = 8
    response = case.call(base_url=url, timeout=60)
    statuses[response.status_code] += 1
    if response.status_code >= 500 and code_of(response) not in EXPECTED:
        errors.append(f"{response.status_code} {response.text[:300]}: {case.as_curl_command()[:1500]}")


def send_all(strategy: hypothesis.strategies.SearchStrategy[schemathesis.Case]) -> None:
    settings = hypothesis.settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    # Unsatisfiable: an operation without anything that could be wrong.
    with contextlib.suppress(hypothesis.errors.Unsatisfiable):
        settings(hypothesis.given(strategy)(send))()


for result in schema.get_all_operations():
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
        send_all(result.ok().as_strategy(generation_mode=mode))

print(json.dumps({"faults": faults, "cases": sum(statuses.values()), "statuses": statuses, "errors": errors[:20]}))
