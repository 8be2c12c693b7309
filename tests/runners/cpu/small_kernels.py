"""A minimal source folder that compiles fast, with the real layout: kernels.c per variant, dispatch.c once."""

from __future__ import annotations

from pathlib import Path

from edgekit.runners.cpu import build

KERNELS = """
#define JOIN(a, b) a##b
#define NAME(a, b) JOIN(a, b)
int NAME(answer_, EK_VARIANT)(void);
int NAME(answer_, EK_VARIANT)(void) { return 42; }
"""
DISPATCH = """
#define EXPORT __attribute__((visibility("default")))
#define DECLARE(name) int answer_##name(void);
EK_VARIANTS(DECLARE)
#define ADD(name) + answer_##name()
EXPORT int answers(void);
EXPORT const char *ek_variants(void);
EXPORT const char *ek_best(void);
int answers(void) { return 0 EK_VARIANTS(ADD); }
#define SPELL(name) #name " "
const char *ek_variants(void) { return EK_VARIANTS(SPELL); }
const char *ek_best(void) { return "plain"; }
"""


def write(folder: Path, *, kernels: str = KERNELS, dispatch: str = DISPATCH) -> Path:
    """Write the sources into `folder`, laid out as in edgekit/runners/cpu, and return their folder."""
    sources = folder / build.SOURCES
    sources.mkdir(parents=True, exist_ok=True)
    (sources / "kernels.c").write_text(kernels, encoding="ascii")
    (sources / "dispatch.c").write_text(dispatch, encoding="ascii")
    return sources
