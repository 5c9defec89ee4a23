"""An opened engine of one rank among several: compiled pieces, and collectives between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from paddock.engines.openvino.lowering import BLOCK_SIZE
from paddock.engines.openvino.pieces import Piece, cut
from paddock.engines.openvino.session import OpenVINOSession, one_token
from paddock.engines.protocol import StepInputs, WeightSource
from paddock.graph import Array, DType, Graph, Node, Tensor
from paddock.graph.ops import Collective, Communicator, Input, Receive


class RankSession:
    """Implements `paddock.engines.protocol.Session` for a graph with collectives.

    Between the pieces every float is f32, whatever the arithmetic inside, and so is what ranks
    exchange: partial sums are not rounded before they are added.
    """

    block_size = BLOCK_SIZE

    def __init__(
        self,
        graph: Graph,
        weights: WeightSource,
        options: Mapping[str, Any],
        communicator: Communicator,
    ) -> None:
        """Runs a step of one token, and so do all other ranks when they open."""
        self._output, self._communicator = graph.outputs[0], communicator
        self.vocab_size = self._output.type.size(-1)
        self._pieces: list[tuple[Piece, OpenVINOSession | None]] = []
        for piece in cut(graph):
            session = None
            if piece.graph is not None:
                session = OpenVINOSession(piece.graph, weights, options, piece_of=graph)
            self._pieces.append((piece, session))
        sessions = [session for _, session in self._pieces if session is not None]
        self.block_bytes = sum(session.block_bytes for session in sessions)
        self.state_bytes = sum(session.state_bytes for session in sessions)
        self.allocate_cache(1)
        self.run(one_token(graph))

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        for _, session in self._pieces:
            if session is not None:
                session.allocate_cache(blocks, slots)

    def run(self, step: StepInputs) -> Array:
        """The logits on the last stage; what was sent on, elsewhere."""
        values: dict[Tensor, Any] = {}  # arrays that collectives made, and tensors of pieces
        for piece, session in self._pieces:
            if session is not None:
                given = {name: values[tensor] for name, tensor in piece.given.items()}
                values.update(zip(piece.gives, session.outputs(step, given), strict=True))
            if piece.exchange is not None:
                values[piece.exchange.outputs[0]] = self._exchange(piece.exchange, values, step)
        return _array(values[self._output])

    def close(self) -> None:
        for _, session in self._pieces:
            if session is not None:
                session.close()
        self._pieces.clear()

    def _exchange(self, node: Node, values: Mapping[Tensor, Any], step: StepInputs) -> Array:
        operand, collective = node.inputs[0], node.op
        assert isinstance(collective, Collective)
        if isinstance(operand.node.op, Input):
            given = getattr(step, operand.node.op.key)
        else:
            given = _array(values[operand])
        if isinstance(collective, Receive):
            collective = replace(collective, dtype=DType.F32)
        return collective.exchange(self._communicator, given)


def _array(value: Any) -> Array:
    array: Array = value if isinstance(value, np.ndarray) else value.data
    return array
