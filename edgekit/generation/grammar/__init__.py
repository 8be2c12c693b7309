"""Answers held to a grammar, token by token: JSON schemas, regular expressions, Lark grammars, lists of choices.

What cannot be enforced is refused before the first token, with the place in the schema. docs/structured-output.md says
what is enforced, what is refused, and where the limits are; llguidance does the parsing.
"""

from edgekit.generation.grammar.compiler import Grammar, GrammarCompiler
from edgekit.generation.grammar.lark import lark_json, lark_text
from edgekit.generation.grammar.matcher import Matcher
from edgekit.generation.grammar.vocabulary import token_bytes

__all__ = ["Grammar", "GrammarCompiler", "Matcher", "lark_json", "lark_text", "token_bytes"]
