"""Buckets of relative positions: Raffel et al. 2019 (T5), arxiv.org/abs/1910.10683, section 2.1."""

import math

import numpy as np

from paddock.graph.dtype import Array


def distance_bucket(distances: Array, buckets: int, max_distance: int) -> Array:
    """The bucket, of `buckets`, of each distance from 0 up.

    Near distances have one each, farther ones share, in logarithmic widths, and from
    `max_distance` on all are in the last.
    """
    exact = buckets // 2
    # In f32, as models are trained with it: a logarithm may lie on the edge of a bucket.
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    wide = ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    shared = np.minimum(exact + wide.astype(np.int64), buckets - 1)
    return np.where(distances < exact, distances, shared)
