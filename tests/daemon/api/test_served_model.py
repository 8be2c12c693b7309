from __future__ import annotations

import pytest

from edgekit.daemon.api import check_model
from edgekit.errors import RequestError
from edgekit.generation.model import ModelInfo

TINY = ModelInfo("tiny", 0, 64)
TAGGED = ModelInfo("tiny:8b", 0, 64)


@pytest.mark.parametrize(
    ("name", "info"), [(None, TINY), ("tiny", TINY), ("tiny:latest", TINY), ("tiny:8b", TAGGED), (None, TAGGED)]
)
def test_the_served_model_is_named_with_or_without_latest_or_left_out(name: str | None, info: ModelInfo) -> None:
    check_model(name, info)


@pytest.mark.parametrize(
    ("name", "info"), [("other", TINY), ("tiny:8b", TINY), ("", TINY), ("tiny", TAGGED), ("tiny:8b:latest", TAGGED)]
)
def test_any_other_model_is_refused_with_the_served_one_as_a_hint(name: str, info: ModelInfo) -> None:
    with pytest.raises(RequestError, match=f"model `{name}` is not served here") as caught:
        check_model(name, info)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert info.name in (caught.value.hint or "")
