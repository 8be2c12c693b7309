from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from edgekit.errors import ConfigError
from edgekit.yaml_lines import Between, Matches, OneOf, Source, load


@dataclass(frozen=True)
class Wheel:
    size: Annotated[int, Between(1, 30)]
    note: str | None = None


@dataclass(frozen=True)
class Cart:
    name: Annotated[str, Matches(r"[a-z]+", "must be small letters")] = "cart"
    load: Annotated[float, Between(low=0)] = 0.5
    open: bool = True
    colour: Literal["red", "green"] = "red"
    place: Path | None = None
    tags: tuple[str, ...] = ()
    gears: Annotated[int, OneOf((2, 4))] = 2
    front: Wheel = field(default_factory=lambda: Wheel(4))
    wheels: tuple[Wheel, ...] = ()


def read(text: str) -> Cart:
    return load(text, Cart, Source("cart.yaml"))


def test_every_kind_of_field_is_read() -> None:
    cart = read(
        "name: abc\nload: 2\nopen: off\ncolour: green\nplace: /x\ntags: [a, '1', 2]\n"
        "front: {size: 7, note: 007}\nwheels:\n- size: 1\n- {size: 2, note: hi}\n"
    )
    assert cart == Cart(
        name="abc",
        load=2.0,
        open=False,
        colour="green",
        place=Path("/x"),
        tags=("a", "1", "2"),
        front=Wheel(7, "007"),
        wheels=(Wheel(1), Wheel(2, "hi")),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_an_empty_file_gives_the_defaults(text: str) -> None:
    assert read(text) == Cart()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("name: abc\nlaod: 2\n", "cart.yaml:2: unknown key `laod`", "did you mean `load`?"),
        ("front:\n  size: 1\n  nota: x\n", "cart.yaml:3: unknown key `nota` in `front`", "did you mean `note`?"),
        ("zzz: 1\n", "cart.yaml:1: unknown key `zzz`", "known keys: colour"),
        ("name: a\n\nname: b\n", "cart.yaml:3: `name` is given twice", None),
        ("load: heavy\n", "cart.yaml:1: `load` must be a number, not `heavy`", None),
        ("load: -1\n", "cart.yaml:1: `load` must be at least 0, not `-1`", None),
        ("load: .nan\n", "`load` must be a number", None),
        ("front: {size: 31}\n", "cart.yaml:1: `front.size` must be between 1 and 30, not `31`", None),
        ("front: {size: 1.5}\n", "`front.size` must be a whole number, not `1.5`", None),
        ("front: {size: 1_0}\n", "`front.size` must be a whole number", None),
        ("front: {size: 99999999999999999999999999}\n", "`front.size` must be a whole number", None),
        ("front: {note: x}\n", "cart.yaml: `front.size` is missing", None),
        ("wheels: [{size: 1}, {note: x}]\n", "cart.yaml: `wheels[1].size` is missing", None),
        ("gears: 3\n", "cart.yaml:1: `gears` must be one of 2, 4, not `3`", None),
        ("open: maybe\n", "`open` must be true or false, not `maybe`", None),
        ("colour: gren\n", "`colour` must be one of red, green, not `gren`", "did you mean `green`?"),
        ("name: ABC\n", "`name` must be small letters, not `ABC`", None),
        ("name:\n", "cart.yaml:1: `name` must not be empty", None),
        ("name: [a]\n", "`name` must be a single value, not a list", None),
        ("tags: a\n", "`tags` must be a list (`[a, b]`), not `a`", None),
        ("front: 3\n", "`front` must be a mapping (`name: value`), not `3`", None),
        (
            "wheels:\n- {size: 1}\n- {sise: 1}\n",
            "cart.yaml:3: unknown key `sise` in `wheels[1]`",
            "did you mean `size`?",
        ),
        ("- a\n- b\n", "cart.yaml:1: the file must be a mapping (`name: value`), not a list", None),
        ("? [a]\n: b\n", "cart.yaml:1: a key must be a string, not a list", None),
        ("name: 'a\n", "cart.yaml:2: not valid YAML", None),
        ("a: 1\n---\nb: 2\n", "not valid YAML: but found another document", None),
        ("name: a\n\tload: 2\n", "not valid YAML", None),
        ("name: \x07\n", "cart.yaml: not valid YAML", None),
        ('name: "a\\0"\n', "`name` contains a NUL character", None),
        ("tags: &t [a]\nname: *t\n", "cart.yaml:2: aliases (`*name`) are not supported", "write it out"),
        ("tags: " + "[" * 5000, "nested more than 20 deep", None),
        ("name: " + "a" * 2_000_000, "larger than 1048576 bytes", None),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    if hint is not None:
        assert (caught.value.hint or "").startswith(hint)


def test_a_billion_laughs_are_refused_before_they_are_expanded() -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10))
    with pytest.raises(ConfigError, match="aliases"):
        read("l0: &l0 [lol]\n" + levels)
