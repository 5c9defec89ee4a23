"""Element types of tensors and slots."""

from enum import StrEnum
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class DType(StrEnum):
    """An element type; the value is the name that recipes and manifests use."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I8 = "i8"
    U8 = "u8"
    I4 = "i4"
    F8E4M3 = "f8e4m3"
    BOOL = "bool"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type that holds one element (`ml_dtypes` where NumPy has none)."""
        return _NUMPY[self]

    @property
    def bits(self) -> int:
        """Size of one element as stored: an `i4` takes half a byte."""
        return 4 if self is DType.I4 else self.numpy.itemsize * 8

    @property
    def is_float(self) -> bool:
        """Whether ops compute in it. e4m3 is what weights are stored in, as integers are."""
        return self in (DType.F64, DType.F32, DType.F16, DType.BF16)

    @property
    def is_index(self) -> bool:
        """Whether it counts things: positions, rows, lengths."""
        return self in (DType.I64, DType.I32)


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.F64: np.dtype(np.float64),
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.I64: np.dtype(np.int64),
    DType.I32: np.dtype(np.int32),
    DType.I8: np.dtype(np.int8),
    DType.U8: np.dtype(np.uint8),
    DType.I4: np.dtype(ml_dtypes.int4),
    DType.F8E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.BOOL: np.dtype(np.bool_),
}
