"""Mistakes that are planted in lowerings, to see that tests find them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paddock.engines.tensorrt.lowering import TABLE, Lowering
from paddock.graph import Node

Patch = pytest.MonkeyPatch


def changed_op(kind: type, change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Lower another op in the place of one."""

    def plant(patch: Patch) -> None:
        own = TABLE[kind]

        def wrong(state: Lowering, node: Node, inputs: list[Any]) -> Any:
            other = Node(change(node.op), node.inputs, node.path, node.source, node.outputs)
            return own(state, other, inputs)

        patch.setitem(TABLE, kind, wrong)

    return plant
