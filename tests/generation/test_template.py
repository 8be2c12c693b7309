from __future__ import annotations

import sys
import time

import pytest

from edgekit.errors import BundleError, RequestError
from edgekit.generation.template import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
DOUBLED = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"
HUGE = "{% set s = 'x' * 100000 %}"


def test_blocks_leave_no_whitespace_as_in_training() -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m['content'] }}\n    {% endif %}\n{% endfor %}\nend"
    assert ChatTemplate(source).render(USER) == "Hi\nend"


def test_the_names_that_templates_expect_are_there() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ strftime_now('%Y') | length }}{{ messages | tojson }}{{ tools is none }}"
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}"
        "{% generation %}{{ add_generation_prompt }}{% endgeneration %}",
        {"bos_token": "<s>"},
    )
    assert template.render([{"role": "user", "content": "é<b>"}]) == (
        '<s>4[{"role": "user", "content": "é<b>"}]TrueTrue'
    )


def test_a_template_that_refuses_is_the_callers_mistake() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ChatTemplate("{{ raise_exception('roles must\nalternate') }}").render(USER)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% unknown %}", "x" * 300_000, "{{ " + "(" * 5000])
def test_what_is_not_a_template_is_a_bundle_error(source: str) -> None:
    with pytest.raises(BundleError, match="chat template"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ messages[0]['content'].missing.deeper }}",
        "{{ 1 / 0 }}",
        "{% include 'other' %}",
        "{{ messages[0].update(role='x') }}",
        "{{ (messages | attr('append'))(1) }}",
        "{{ messages | map(attribute='__class__') | list | string | length // 0 }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ raise_exception.__code__.co_consts[0] }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    ],
)
def test_a_template_cannot_reach_out_of_the_sandbox(source: str) -> None:
    with pytest.raises(BundleError, match="the chat template failed"):
        ChatTemplate(source).render(USER)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**9 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 10**10**10 }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ 'x\ny' | indent(1000000000) }}",
        "{{ '%1000000000s' % 'x' }}",
        "{{ '%1000000000s' | format('x') }}",
        "{{ '%*s' % (1000000000, 'x') }}",
        "{{ '{:1000000000}'.format('x') }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(9000) %}{{ 'x' * 9000 }}{% endfor %}",
        # One call that makes much of little.
        HUGE + "{{ s.replace('x', s) }}",
        HUGE + "{{ s.replace('', s) }}",
        HUGE + "{{ s | replace('x', s) }}",
        HUGE + "{{ s.join(s) }}",
        HUGE + "{{ s | list | join(s) }}",
        HUGE + "{{ ('%s' * 9000) % ((s,) * 9000) }}",
        HUGE + "{{ ('%(a)s' * 9000) % {'a': s} }}",
        HUGE + "{{ (s | replace('x', '\n')) | indent(s) }}",
        HUGE + "{{ ('\t' * 900000).expandtabs(9999) }}",
        HUGE + "{{ s.translate({120: s}) }}",
        HUGE + "{{ range(9000) | map('replace', '', s) | join }}",
        HUGE + "{{ range(9000) | map('replace', '', s) | list }}",
        HUGE + "{% set x %}{% for i in range(9000) %}{{ s }}{% endfor %}{% endset %}{{ x | length }}",
        HUGE + "{% macro m() %}{% for i in range(9000) %}{{ s }}{% endfor %}{% endmacro %}{{ m() | length }}",
        HUGE + "{% set ns = namespace(l=[]) %}{% for i in range(9000) %}{% set ns.l = ns.l + [s ~ i] %}{% endfor %}",
        "{{ ''['format'] }}{{ '{:1000000000}' | attr('format')('x') }}",
        "{{ lipsum(n=9000, min=9000, max=9999) }}",
    ],
)
def test_little_source_cannot_make_much_text(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(BundleError, match="the chat template failed"):
        ChatTemplate(source).render(USER)
    assert time.monotonic() - started < 2


def test_endless_loops_are_interrupted_and_the_thread_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.generation.template._MAX_SECONDS", 0.3)
    before = sys.gettrace()
    nested = "{% for a in r %}{% for b in r %}{% for c in r %}{% set x = a %}{% endfor %}{% endfor %}{% endfor %}"
    with pytest.raises(BundleError, match=r"ran longer than 0\.3 s"):
        ChatTemplate("{% set r = range(9000) %}" + nested).render(USER)
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    "step",
    [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "'%s%s' % (ns.x, ns.x)",
        "'%s%s' | format(ns.x, ns.x)",
        "[ns.x, ns.x] | join",
        "''.join([ns.x, ns.x])",
        "ns.x.replace('x', 'xx')",
        "ns.x | replace('x', 'xx')",
        "[ns.x, ns.x]",
        "(ns.x, ns.x)",
        "{'a': ns.x, 'b': ns.x}",
        "dict(a=ns.x, b=ns.x)",
        "[ns.x] * 2",
        "[ns.x] + [ns.x]",
        "[ns.x, ns.x] | list",
        "[ns.x, ns.x] | string",
        "[ns.x, ns.x] | tojson",
    ],
)
def test_what_doubles_ends_by_size_or_time(step: str) -> None:
    with pytest.raises(BundleError, match=r"makes more than|ran longer than"):
        ChatTemplate(DOUBLED.replace("NEXT", step)).render(USER)


def test_recursion_ends() -> None:
    with pytest.raises(BundleError, match="the chat template failed"):
        ChatTemplate("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").render(USER)


def test_the_budget_is_each_rendering_s_own() -> None:
    template = ChatTemplate("{% for i in range(30) %}{% set x = messages[0]['content'] ~ i %}{% endfor %}")
    for _ in range(5):
        template.render([{"role": "user", "content": "x" * 1_000_000}])


def test_a_long_chat_is_far_from_the_limits() -> None:
    source = (
        "{% set ns = namespace(kept=[]) %}{% for m in messages %}{% set ns.kept = ns.kept + [m] %}{% endfor %}"
        "{% for m in ns.kept %}{{ '<|im_start|>' + m['role'] + (m['content'] | trim) + '<|im_end|>' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 200}] * 1000
    assert len(ChatTemplate(source).render(messages)) > 1_000_000


def test_tools_are_rendered_as_the_template_likes() -> None:
    template = ChatTemplate("{% for t in tools %}{{ t | tojson }};{{ t.function.name }}{% endfor %}")
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    assert template.render(USER, tools=[tool]) == (
        '{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}};now'
    )


def test_arguments_are_variables_and_cannot_take_another_s_place() -> None:
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
        assert caught.value.param == "template_arguments"
    with pytest.raises(RequestError, match="at most 32"):
        template.render(USER, arguments={f"x{number}": 1 for number in range(33)})
