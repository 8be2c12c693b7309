"""Constrained decoding with llguidance: JSON Schema, regular expressions, Lark and GBNF grammars, choices.

What cannot be enforced is rejected before the first token, with its path in the schema. docs/structured-output.md lists
what is enforced, what is rejected, and the limits.
"""

from edgekit.generation.grammar.compiler import Grammar, GrammarCompiler
from edgekit.generation.grammar.lark import lark_json, lark_text
from edgekit.generation.grammar.matcher import Matcher
from edgekit.generation.grammar.vocabulary import token_bytes

__all__ = ["Grammar", "GrammarCompiler", "Matcher", "lark_json", "lark_text", "token_bytes"]
