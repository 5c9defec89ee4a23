"""Rewrites of the graph."""

from paddock.graph.passes.expand import expand
from paddock.graph.passes.pattern import Match, Pattern, Rule, any_, op, rewrite
from paddock.graph.passes.pipeline import STANDARD, Pass, run_passes

__all__ = [
    "STANDARD",
    "Match",
    "Pass",
    "Pattern",
    "Rule",
    "any_",
    "expand",
    "op",
    "rewrite",
    "run_passes",
]
