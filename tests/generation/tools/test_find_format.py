from __future__ import annotations

import pytest

from edgekit.generation.tools import find_format
from edgekit.generation.tools.hermes import Hermes
from edgekit.generation.tools.llama3 import Llama3
from edgekit.generation.tools.mistral import Mistral
from edgekit.generation.tools.qwen3 import Qwen3
from tests.models import CHATML

HERMES = """{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>{% endif %}"""
QWEN3 = HERMES + "{% if '</think>' in message.content %}{% endif %}"
LLAMA3 = """{{ '<|start_header_id|>' }}{% if tools is not none %}{"name": function name, "parameters": …}{% endif %}
{% if 'tool_calls' in message %}{% endif %}"""
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}{{ '[TOOL_CALLS] [' }}"
XML = "{% if tools %}<tool_call>\n<function=example><parameter=x>{{ tool_call.arguments }}</tool_call>{% endif %}"
GLM = "{% if tools %}<tool_call>{function-name}\n<arg_key>{{ tool_call.arguments }}</tool_call>{% endif %}"


@pytest.mark.parametrize(
    ("source", "kind"),
    [(HERMES, Hermes), (QWEN3, Qwen3), (LLAMA3, Llama3), (MISTRAL, Mistral), (CHATML, None), (XML, None), (GLM, None)],
)
def test_a_template_is_recognised_by_its_calls(source: str, kind: type | None) -> None:
    found = find_format(source, {})
    assert type(found) is (kind or type(None))


def test_only_markers_that_are_special_tokens_must_be_made_visible() -> None:
    special = {"[TOOL_CALLS]": 5, "<s>": 1}
    mistral = find_format(MISTRAL, special)
    hermes = find_format(HERMES, special)
    assert mistral is not None
    assert hermes is not None
    assert (mistral.markers, hermes.markers) == (frozenset({"[TOOL_CALLS]"}), frozenset())


def test_ids_are_new_each_time_and_a_caller_s_id_stays() -> None:
    hermes = find_format(HERMES, {})
    assert hermes is not None
    assert len({hermes.new_id() for _ in range(100)}) == 100
    assert hermes.new_id().startswith("call_")
    assert hermes.prompt_id("x") == "x"
