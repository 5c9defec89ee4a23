"""Names for the content of cache blocks, so that equal prefixes find each other's blocks."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paddock.runtime.images.prepared import PlacedImage, content

DIGEST_BYTES = 32


class PrefixHasher:
    """Digests of full blocks, chained: a block's digest stands for every token up to its end.

    The chain starts from a secret drawn for this process, so nobody can prepare two prompts with
    one digest, and 256 bits leave no room for an accident: equal digests mean equal prefixes.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._secret = os.urandom(DIGEST_BYTES)

    def root(self, salt: bytes = b"") -> bytes:
        """The parent of first blocks. Requests share blocks only where their salts are equal."""
        return hashlib.blake2b(salt, key=self._secret, digest_size=DIGEST_BYTES).digest()

    def block(self, parent: bytes, token_ids: npt.NDArray[np.int64], beside: bytes = b"") -> bytes:
        """The digest of one block: `token_ids` [block_size] after the prefix `parent`.

        `beside`: what they stand for beside themselves (see `paddock.runtime.images.prepared`).
        """
        own = parent + token_ids.tobytes() + beside
        return hashlib.blake2b(own, digest_size=DIGEST_BYTES).digest()

    def blocks(
        self,
        root: bytes,
        token_ids: npt.NDArray[np.int64],
        images: Sequence[PlacedImage] = (),
    ) -> list[bytes]:
        """The digests of all the full blocks of `token_ids` [T]; about 1 us a block."""
        size = self.block_size
        digests: list[bytes] = []
        parent = root
        for end in range(size, len(token_ids) + 1, size):
            beside = content(images, end - size, end) if images else b""
            parent = self.block(parent, token_ids[end - size : end], beside)
            digests.append(parent)
        return digests
