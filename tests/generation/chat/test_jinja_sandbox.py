"""What a template cannot do, and the sandbox's limits at their exact values."""

from __future__ import annotations

import sys
import time

import pytest

from edgekit.errors import BundleError
from edgekit.generation.chat.jinja_sandbox import MAX_CHARACTERS, LimitError, Limits
from edgekit.generation.chat.template import ChatTemplate

pytestmark = pytest.mark.serial

USER = [{"role": "user", "content": "Hi"}]
DOUBLED = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"
HUGE = "{% set s = 'x' * 100000 %}"


def _render(source: str, content: str = "") -> str:
    return ChatTemplate(source).render([{"role": "user", "content": content}])


def test_a_prompt_may_have_as_many_characters_as_the_limit() -> None:
    assert len(_render("{{ messages[0]['content'] }}", "x" * MAX_CHARACTERS)) == MAX_CHARACTERS
    with pytest.raises(BundleError, match=f"produces more than {MAX_CHARACTERS} characters"):
        _render("{{ messages[0]['content'] }}", "x" * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        # The two operands of a sum, and nothing is printed.
        ("{% set x = half + half %}", "{% set x = half + half + 'x' %}"),
        ("{% set x = half * 2 %}", "{% set x = half * 3 %}"),
        ("{% set x = half ~ half %}", "{% set x = half ~ half ~ 'x' %}"),
        ("{% set x = [0] * (half | length // 8) %}", "{% set x = [0] * (half | length // 7) %}"),
        ("{% set x = [half, half[32:]] %}", "{% set x = [half, half] %}"),
        ("{{ 2 ** 64 }}", "{{ 2 ** 65 }}"),
        ("{{ 10000 ** 1 }}", "{{ 10001 ** 1 }}"),
        ("{{ 'a'.ljust(10000) }}", "{{ 'a'.ljust(10001) }}"),
        ("{{ 'a' | center(10000) }}", "{{ 'a' | center(10001) }}"),
        ("{{ '%999s' % 'a' }}", "{{ '%1000s' % 'a' }}"),
    ],
)
def test_an_operation_may_reach_the_limit_and_not_exceed_it(allowed: str, refused: str) -> None:
    half = "x" * (MAX_CHARACTERS // 2)
    _render("{% set half = messages[0]['content'] %}" + allowed, half)
    with pytest.raises(BundleError, match=r"produces more than|too large a|passes a number above"):
        _render("{% set half = messages[0]['content'] %}" + refused, half)


def test_intermediate_values_share_one_budget() -> None:
    half = "x" * (MAX_CHARACTERS // 2)
    sums = "{% set half = messages[0]['content'] %}" + "{% set x = half + half %}"
    assert _render(sums * 8, half) == ""
    with pytest.raises(BundleError, match=f"more than {8 * MAX_CHARACTERS} characters in intermediate values"):
        _render(sums * 8 + "{% set x = 'a' + 'b' %}", half)


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
        # A single call with a large result.
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
def test_a_short_template_cannot_produce_much_text(source: str) -> None:
    started = time.thread_time()
    with pytest.raises(BundleError, match="the chat template failed"):
        ChatTemplate(source).render(USER)
    assert time.thread_time() - started < 2


LONG = "{% set n = ('f' * 4000000) | int(0, 16) %}"
INTEGER = "{% set n = (1).from_bytes(('f' * 4000000).encode(), 'big') %}"
WRITTEN = f"{{% set n = 0x{'f' * 120_000} %}}{{% set m = 0x{'7' * 60_000} %}}"


@pytest.mark.parametrize(
    "source",
    [
        LONG + "{{ n // 3 > 1 }}",
        LONG + "{{ n % (n // 3) > 1 }}",
        LONG + "{{ n is divisibleby(n - 1) }}",
        INTEGER + "{{ n // (n // 7) }}",
        INTEGER + "{{ n - n }}",
        *(
            WRITTEN + "{{ " + " + ".join([step] * 40) + " }}"
            for step in ("n // m", "n % m", "(n is divisibleby(m))|int")
        ),
        WRITTEN + "{{ (n / m) + (n / m) }}",
        WRITTEN + "{{ '%d' % n }}",
        WRITTEN + "{{ n | string }}",
        WRITTEN + "{{ n | abs }}",
        "{{ ('9' * 4000000) | int }}",
    ],
)
def test_arithmetic_on_long_integers_is_refused_before_it_takes_long(source: str) -> None:
    started = time.thread_time()
    with pytest.raises(BundleError, match=r"the chat template (failed|is not valid)"):
        ChatTemplate(source).render(USER)
    assert time.thread_time() - started < 2


def test_arithmetic_on_the_integers_of_a_request_works() -> None:
    most = 10**4299
    template = ChatTemplate("{{ x // 3 % 1000 }} {{ x is even }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 7 - 2 }} {{ -7 % 4 }}")
    assert template.render(USER, arguments={"x": most}) == f"{most // 3 % 1000} True 3 3.5 5 1"


def test_endless_loops_are_interrupted_and_the_thread_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.generation.chat.template._MAX_SECONDS", 0.3)
    before = sys.gettrace()
    nested = "{% for a in r %}{% for b in r %}{% for c in r %}{% set x = a %}{% endfor %}{% endfor %}{% endfor %}"
    with pytest.raises(BundleError, match=r"ran longer than 0\.3 s"):
        ChatTemplate("{% set r = range(9000) %}" + nested).render(USER)
    assert sys.gettrace() is before


def test_time_without_a_processor_does_not_count() -> None:
    """As where many programs run, or a laptop is closed meanwhile."""

    def run(limit_s: float) -> None:
        began = time.thread_time()
        while time.thread_time() - began < limit_s:
            pass

    with Limits(0.3):
        time.sleep(0.6)
        run(0.05)
        with pytest.raises(LimitError):
            run(30)


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
def test_doubling_ends_at_a_size_or_time_limit(step: str) -> None:
    with pytest.raises(BundleError, match=r"produces more than|ran longer than"):
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


FIRST = "{% set half = messages[0]['content'] %}"


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        # The characters of the result, or what the estimate of them charges: 16 for an item of a list.
        ("{% set x = half.replace('y', 'xxx') %}", "{% set x = half.replace('x', 'xxx') %}"),
        ("{% set x = (half, half[32:]) %}", "{% set x = (half, half) %}"),
        ("{% set x = {'a': half, 'b': half[34:]} %}", "{% set x = {'a': half, 'b': half[33:]} %}"),
        ("{% set x = [half] + [half] %}", "{% set x = [0] * (half | length // 8) + [0] %}"),
        ("{% set x = half * -3 %}", "{% set x = 3 * half %}"),
        ("{% set x = 2 * half %}", "{% set x = [half] * 3 %}"),
        ("{% set x = [half, half[33:]] | join('') %}", "{% set x = [half, half] | join('') %}"),
        ("{% set x = '-'.join([half, half[34:]]) %}", "{% set x = '-'.join([half, half]) %}"),
        ("{% set x = half | replace('x', 'y') %}", "{% set x = half | replace('x', 'xx') %}"),
        ("{% set x = '%s' % half[:4000000 // 2] %}", "{% set x = '%s%s%s' % (half, half, half) %}"),
        ("{{ -10000 ** 1 }}", "{{ (-10001) ** 1 }}"),
        ("{{ 2 ** -64 }}", "{{ 2 ** -65 }}"),
        ("{{ (2 ** 64 // 1).bit_length() }}", "{{ (2 ** 65) }}"),
        ("{{ range(10000) | length }}", "{{ range(10001) | length }}"),
        ("{{ 'a' | indent(10000) }}", "{{ 'a' | indent(-10001) }}"),
        ("{{ '%-999d' % 1 }}", "{{ '%-1000d' % 1 }}"),
        ("{{ '%.999f' % 1 }}", "{{ '%.1000f' % 1 }}"),
        ("{{ '100%' ~ '%' }}", "{{ '%*d' % (5, 1) }}"),
    ],
)
def test_each_kind_of_operation_is_charged(allowed: str, refused: str) -> None:
    half = "x" * (MAX_CHARACTERS // 2)
    _render(FIRST + allowed, half)
    with pytest.raises(BundleError, match=r"produces more than|too large a|passes a number above"):
        _render(FIRST + refused, half)


def test_integers_may_have_as_many_bits_as_the_limit() -> None:
    template = ChatTemplate("{{ x is even }} {{ (x - 1) // 3 > 1 }} {{ [x] | length }} {{ x | abs > 1 }}")
    assert template.render(USER, arguments={"x": 2**16_384 - 1}) == "False True 1 True"
    for source in ("{{ x is even }}", "{{ x - 1 > 1 }}", "{{ x | abs > 1 }}", "{{ 3 % x }}"):
        with pytest.raises(BundleError, match="more than 16384 bits"):
            ChatTemplate(source).render(USER, arguments={"x": 2**16_384})


def test_products_may_have_4096_bits() -> None:
    template = ChatTemplate("{{ x * y > 1 }}")
    assert template.render(USER, arguments={"x": 2**2048 - 1, "y": 2**2048 - 1}) == "True"
    with pytest.raises(BundleError, match="multiplies numbers that are too large"):
        template.render(USER, arguments={"x": 2**2048, "y": 2**2048 - 1})


def test_methods_and_filters_that_no_prompt_needs_are_missing() -> None:
    for source in (
        "{{ 'a'.format(1) }}",
        "{{ 'a'.expandtabs() }}",
        "{{ 'a'.maketrans({}) }}",
        "{{ 'a'.translate({}) }}",
    ):
        with pytest.raises(BundleError, match="which is not available"):
            _render(source)
    for name in ("forceescape", "pprint", "striptags", "urlize", "wordwrap", "xmlattr"):
        with pytest.raises(BundleError, match="chat template"):
            _render(f"{{{{ 'a' | {name} }}}}")
    # An object's own entry of that name is not the method.
    assert ChatTemplate("{{ x.format }}{{ x.get('format') }}").render(USER, arguments={"x": {"format": "a"}}) == "aa"


def test_ordinary_operations_give_what_jinja_gives() -> None:
    template = ChatTemplate(
        "{{ 'ab'.replace('a', 'c') }}{{ ['a', 1] | join('-') }}{{ '-'.join(['a', 'b']) }}{{ 'a' ~ 1 ~ none }}"
        "{{ ['b', 'a'] | sort | first }}{{ [1, 2] | map('string') | list | last }}{{ 'a\nb' | indent(2) }}"
        "{{ '%s-%d' | format('a', 5) }}{{ '%(k)s' % {'k': 'v'} }}{{ (1, 2) + (3,) }}{{ {'a': 1} | items | list }}"
        "{{ '12' | int + 1 }}{{ 'x' * 3 }}{{ 3 * 'y' }}{{ 7 is divisibleby 7 }}{{ '%d%%' % 5 }}{{ -5 | abs }}"
    )
    assert template.render(USER) == ("cba-1a-ba1Nonea2a\n  ba-5v(1, 2, 3)[('a', 1)]13xxxyyyTrue5%5")
