"""Products of float32 matrices that have the same bits on every x86-64 with AVX2, at AVX2's speed.

MKL, which comes with torch, gives Intel and AMD the same bits only in a mode that leaves AVX2 out on
Intel.  OpenBLAS takes its kernels and the sizes of its blocks from `OPENBLAS_CORETYPE` and from the
shapes, so torch's products on a CPU are handed to it.  Each thread computes a part of the result of
its own: OpenBLAS's threads wait for each other busily, which stands still beside other work.
"""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CORE = "Haswell"
"""What `OPENBLAS_CORETYPE` must be when the process starts: the oldest core with AVX2."""

MACHINES = ("x86_64", "AMD64")
"""The architectures that have this core, by their names in `platform`."""

_ROW_MAJOR, _AS_IS, _TRANSPOSED = 101, 111, 112  # of CBLAS
_FEWEST_ROWS = 16  # of fewer, as in decoding, MKL is faster: it copies no matrix into blocks first
_WORTH_A_THREAD = 4_000_000  # multiply-adds; less is done before another thread has woken up
_TILE = (12, 16)  # rows and columns of OpenBLAS's kernel, between which a result is cut

_installed: _Products | None = None


def install(threads: int) -> None:
    """Have torch compute `mm`, `addmm` and `addmm_` of float32 on a CPU here, in this process, from now
    on.  The bits depend on the shapes and on `threads`.  Elsewhere than on x86-64 nothing is done.

    Raises:
        RuntimeError: when OpenBLAS was loaded for another core, or another number of threads is asked
            for than before.
    """
    global _installed
    if platform.machine() not in MACHINES:
        return
    if _installed is None:
        _installed = _Products(threads)
    elif _installed.threads != threads:
        raise RuntimeError(
            f"products are computed by {_installed.threads} threads in this process, not by {threads}"
        )


def installed() -> bool:
    return _installed is not None


class _Products:
    def __init__(self, threads: int) -> None:
        import torch

        self.threads = threads
        self.sgemm = _sgemm()
        self.others = self._pool()
        if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
            os.register_at_fork(after_in_child=self._forked)
        make: Any = torch.library.Library  # has no annotations
        self.override = make("aten", "IMPL")  # holds as long as it lives
        with warnings.catch_warnings():  # of replacing what torch brings, which is meant
            warnings.simplefilter("ignore", UserWarning)
            for name in ("mm", "addmm", "addmm_"):
                self.override.impl(name, getattr(self, name), "CPU")

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="products")

    def _forked(self) -> None:
        self.others = self._pool()

    def mm(self, left: Tensor, right: Tensor) -> Tensor:
        import torch

        if not _ours(left, right):
            return torch.mm(left, right, out=left.new_empty(0))
        result = left.new_empty(left.shape[0], right.shape[1])
        self._into(result, left, right, 1.0, 0.0)
        return result

    def addmm(
        self, added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        import torch

        if not _ours(added, left, right):
            out = left.new_empty(0)
            return torch.addmm(added, left, right, beta=beta, alpha=alpha, out=out)
        shape = (left.shape[0], right.shape[1])
        result = added.expand(shape).clone(memory_format=torch.contiguous_format)
        self._into(result, left, right, float(alpha), float(beta))
        return result

    def addmm_(
        self, added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        import torch

        if (
            not _ours(added, left, right)
            or added.shape != (left.shape[0], right.shape[1])
            or not added.is_contiguous()
        ):
            return torch.addmm(added, left, right, beta=beta, alpha=alpha, out=added)
        self._into(added, left, right, float(alpha), float(beta))
        return added

    def _into(self, result: Tensor, left: Tensor, right: Tensor, alpha: float, beta: float) -> None:
        """result = alpha * left @ right + beta * result, where result is contiguous."""
        rows, inner = left.shape
        columns = right.shape[1]
        left, left_order, left_step = _layout(left)
        right, right_order, right_step = _layout(right)
        at = (left.data_ptr(), right.data_ptr(), result.data_ptr())
        held = (left, right, result)

        def part(row: int, column: int, height: int, width: int, _: Any = held) -> None:
            # It holds the tensors: a signal's exception may leave the caller while this is at work.
            self.sgemm(
                _ROW_MAJOR, left_order, right_order, height, width, inner, alpha,
                at[0] + 4 * row * (left_step if left_order == _AS_IS else 1), left_step,
                at[1] + 4 * column * (1 if right_order == _AS_IS else right_step), right_step,
                beta, at[2] + 4 * (row * columns + column), columns,
            )  # fmt: skip

        parts = min(self.threads, rows * columns * inner // _WORTH_A_THREAD)
        if rows >= columns:
            pieces = [(cut, 0, end - cut, columns) for cut, end in _cuts(rows, parts, _TILE[0])]
        else:
            pieces = [(0, cut, rows, end - cut) for cut, end in _cuts(columns, parts, _TILE[1])]
        waiting: list[Future[None]] = []
        for piece in pieces[1:]:
            try:
                waiting.append(self.others.submit(part, *piece))
            except RuntimeError:  # no thread begins while Python ends
                part(*piece)
        part(*pieces[0])
        for other in waiting:
            other.result()


def _ours(*factors: Tensor) -> bool:
    """Whether the last two are matrices to multiply here, and what is added is float32 as well."""
    import torch

    left, right = factors[-2:]
    return (
        all(factor.dtype == torch.float32 for factor in factors)
        and left.dim() == right.dim() == 2
        and left.shape[0] >= _FEWEST_ROWS
        and left.shape[1] == right.shape[0] > 0
        and right.shape[1] > 0
    )


def _layout(matrix: Tensor) -> tuple[Tensor, int, int]:
    """The matrix, copied when BLAS cannot read it where it lies, its order and its step in numbers."""
    rows, columns = matrix.shape
    down, across = matrix.stride()
    if across == 1 and down >= columns:
        return matrix, _AS_IS, down
    if down == 1 and across >= rows:
        return matrix, _TRANSPOSED, across
    return matrix.contiguous(), _AS_IS, columns


def _cuts(length: int, parts: int, tile: int) -> list[tuple[int, int]]:
    """Beginning and end of about equal parts, whole tiles but for the last."""
    step = -(-length // max(parts, 1) // tile) * tile if parts > 1 else length
    return [(begin, min(begin + step, length)) for begin in range(0, length, step)]


def _sgemm() -> Any:
    import scipy_openblas64

    library = ctypes.CDLL(
        str(Path(scipy_openblas64.get_lib_dir()) / scipy_openblas64.get_library(fullname=True))
    )
    core = library.scipy_openblas_get_corename64_
    core.restype = ctypes.c_char_p
    if core().decode() != CORE:
        raise RuntimeError(
            f"OpenBLAS computes for {core().decode()}; start the process with OPENBLAS_CORETYPE={CORE}"
        )
    library.scipy_openblas_set_num_threads64_(1)
    sgemm = library.scipy_cblas_sgemm64_
    place, size = ctypes.c_void_p, ctypes.c_int64
    sgemm.restype = None
    sgemm.argtypes = [
        *[ctypes.c_int] * 3, *[size] * 3, ctypes.c_float,
        place, size, place, size, ctypes.c_float, place, size,
    ]  # fmt: skip
    return sgemm
