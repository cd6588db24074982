"""The boundary to TVM's code generation: its failures become one kind of error, which nothing else raises."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from tvm.error import InternalError

from graphopt.errors import CodegenError


@contextlib.contextmanager
def codegen() -> Iterator[None]:
    """Turn the errors that TVM raises inside into `CodegenError`; errors of ours, and of Python, pass.

    Raises:
        CodegenError: TVM failed.
        KeyboardInterrupt: TVM's error has no text, because Ctrl-C came while TVM called Python.
    """
    try:
        yield
    except RuntimeError as error:
        if not _of_tvm(error):
            raise
        if not str(error):
            raise KeyboardInterrupt from error
        raise CodegenError(str(error)) from error


def _of_tvm(error: RuntimeError) -> bool:
    """Whether TVM raised `error`: its C++ part marks errors, those of its Python part come from its files."""
    if hasattr(error, "__tvm_ffi_error__") or isinstance(error, InternalError):
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__", "")).partition(".")[0] == "tvm"
