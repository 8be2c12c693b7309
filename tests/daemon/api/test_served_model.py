from __future__ import annotations

import pytest

from edgekit.daemon.api import check_model
from edgekit.daemon.api.served_model import find_name
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


def test_an_alias_names_the_model_as_its_own_name_does_and_the_hint_lists_it() -> None:
    aliased = ModelInfo("tiny", 0, 64, aliases=("gpt-4o", "org/model:8b", "tiny"))
    assert aliased.names == ("tiny", "gpt-4o", "org/model:8b")
    for name, meant in {"tiny:latest": "tiny", "gpt-4o": "gpt-4o", "gpt-4o:latest": "gpt-4o"}.items():
        check_model(name, aliased)
        assert find_name(name, aliased) == meant
    check_model("org/model:8b", aliased)
    for name in ("org/model", "org/model:8b:latest", "gpt-4"):
        with pytest.raises(RequestError) as caught:
            check_model(name, aliased)
        assert caught.value.hint == "this daemon serves `tiny`, also as `gpt-4o`, `org/model:8b`"
