"""The key of a build: everything that an engine folder depends on, in parts a person can read."""

import hashlib
import json
from collections.abc import Mapping

from paddock.graph import Graph
from paddock.graph.serialize import to_json

Parts = Mapping[str, str]

# Parts that are hashes, and follow from others as a rule: (part, what is said of it alone).
HASHED = {
    "graph": "the graph that the model and Paddock's layers give",
    "code": "Paddock's own code for graphs",
    "weights": "the bound weights",
    "plugins": "the plugins' code",
    "checkpoint": "the checkpoint's content",
}
CONSEQUENCES = ("weights", "graph")  # told only where no other part explains them


def key_of(parts: Parts) -> str:
    """Sixteen hexadecimal digits: 64 bits, for a cache of at most thousands."""
    text = json.dumps(dict(sorted(parts.items())), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def graph_hash(graph: Graph) -> str:
    """Of what the graph computes: line numbers of the code that made it are left out."""
    kept = [(node, node.source) for node in graph.nodes]
    try:
        for node in graph.nodes:
            node.source = ""
        return hashlib.sha256(to_json(graph).encode()).hexdigest()[:16]
    finally:
        for node, source in kept:
            node.source = source


def differences(old: Parts, new: Parts) -> list[str]:
    """What changed from one key to another, one line a part, causes without their consequences."""
    changed = [name for name in new if old.get(name) != new[name]]
    changed += [name for name in old if name not in new]
    causes = [name for name in changed if name not in CONSEQUENCES] or changed
    return [_told(name, old.get(name), new.get(name)) for name in causes]


def _told(name: str, old: str | None, new: str | None) -> str:
    if name in HASHED:
        return f"{HASHED[name]} changed"
    return f"{name}: was {old or 'not known'}, now {new or 'not known'}"
