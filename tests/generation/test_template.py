from __future__ import annotations

import sys
import time

import pytest

from edgekit.errors import BundleError, RequestError
from edgekit.generation.template import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]


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
