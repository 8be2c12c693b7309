from __future__ import annotations

import pytest

from edgekit.errors import BundleError, RequestError
from edgekit.generation.chat.template import _MAX_ARGUMENTS, _MAX_SOURCE, ChatTemplate

USER = [{"role": "user", "content": "Hi"}]


def test_blocks_leave_no_whitespace_as_in_training() -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m['content'] }}\n    {% endif %}\n{% endfor %}\nend"
    assert ChatTemplate(source).render(USER) == "Hi\nend"


def test_the_variables_that_templates_expect_exist() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ strftime_now('%Y') | length }}{{ messages | tojson }}{{ tools is none }}"
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}"
        "{% generation %}{{ add_generation_prompt }}{% endgeneration %}",
        {"bos_token": "<s>"},
    )
    assert template.render([{"role": "user", "content": "é<b>"}]) == (
        '<s>4[{"role": "user", "content": "é<b>"}]TrueTrue'
    )


def test_a_template_that_refuses_is_a_request_error() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ChatTemplate("{{ raise_exception('roles must\nalternate') }}").render(USER)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% unknown %}", "x" * 300_000, "{{ " + "(" * 5000])
def test_what_is_not_a_template_is_a_bundle_error(source: str) -> None:
    with pytest.raises(BundleError, match="chat template"):
        ChatTemplate(source)


def test_a_template_may_have_as_many_characters_as_the_limit() -> None:
    assert len(ChatTemplate("x" * _MAX_SOURCE).render(USER)) == _MAX_SOURCE
    with pytest.raises(BundleError, match=f"has {_MAX_SOURCE + 1} characters; the limit is {_MAX_SOURCE}"):
        ChatTemplate("x" * (_MAX_SOURCE + 1))


def test_json_is_written_as_in_training_and_indented_a_little_at_most() -> None:
    def written(arguments: str) -> str:
        return ChatTemplate(f"{{{{ {{'b': 'é', 'a': [1]}} | tojson({arguments}) }}}}").render(USER)

    assert written("") == '{"b": "é", "a": [1]}'
    assert written("ensure_ascii=true") == '{"b": "\\u00e9", "a": [1]}'
    assert written("sort_keys=true, separators=(',', ':')") == '{"a":[1],"b":"é"}'
    assert written("indent=0") == '{\n"b": "é",\n"a": [\n1\n]\n}'
    assert written("indent=16").startswith("{\n" + " " * 16 + '"b"')
    for indent in (-1, 17):
        with pytest.raises(BundleError, match="too large an indent"):
            written(f"indent={indent}")


def test_the_template_decides_how_tools_are_rendered() -> None:
    template = ChatTemplate("{% for t in tools %}{{ t | tojson }};{{ t.function.name }}{% endfor %}")
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    assert template.render(USER, tools=[tool]) == (
        '{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}};now'
    )


def test_arguments_are_variables_and_cannot_replace_others() -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ bos_token }}", {"bos_token": "<s>"})
    assert template.render(USER, arguments={"enable_thinking": False}) == "False<s>"
    for name in (
        "messages",
        "tools",
        "bos_token",
        "add_generation_prompt",
        "raise_exception",
        "range",
        "_x",
        "a b",
        "",
    ):
        with pytest.raises(RequestError) as caught:
            template.render(USER, arguments={name: 1})
        assert caught.value.param == "chat_template_kwargs"
    with pytest.raises(RequestError, match="at most 32"):
        template.render(USER, arguments={f"x{number}": 1 for number in range(33)})


def test_a_template_takes_as_many_arguments_as_the_limit() -> None:
    template = ChatTemplate("{{ a0 }}")
    most = {f"a{number}": number for number in range(_MAX_ARGUMENTS)}
    assert template.render(USER, arguments=most) == "0"
    with pytest.raises(RequestError, match=f"at most {_MAX_ARGUMENTS} arguments") as caught:
        template.render(USER, arguments={**most, "one_more": 1})
    assert caught.value.param == "chat_template_kwargs"
    for name in ("_private", "a b", "1a", ""):
        with pytest.raises(RequestError, match="not a valid template variable name"):
            template.render(USER, arguments={name: 1})


def test_whether_it_renders_a_question_tells_whose_fault_a_failure_is() -> None:
    assert ChatTemplate("{{ messages[0]['content'] }}").renders_a_question
    assert not ChatTemplate("{{ messages[1]['content'].x }}").renders_a_question
    assert not ChatTemplate("{{ raise_exception('no') }}").renders_a_question
