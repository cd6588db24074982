"""Sharing tensors without a copy: the DLPack protocol, written with ctypes.

Format and rules: https://dmlc.github.io/dlpack/latest/ (the structures of `dlpack.h`, the capsule "dltensor"), and the
meaning of `stream` in https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import FeedError
from graphopt.program.program import ITEM_BYTES
from graphopt.program.weights import Array, numpy_dtype

if TYPE_CHECKING:
    from graphopt.runtime.devices.device import Device

CPU, CUDA, PINNED = 1, 2, 3
"""DLDeviceType: host memory, memory of an NVIDIA GPU, page-locked host memory."""

LEGACY_STREAM, NO_ORDER = 1, -1
"""Values of `stream` on CUDA: the default stream, which None means too, and no ordering."""

_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6
_NAME = b"dltensor"
_CODES = {
    name: (_BOOL if name == "bool" else _BFLOAT if name == "bfloat16" else _FLOAT if "float" in name
           else _UINT if name.startswith("u") else _INT, 8 * size)
    for name, size in ITEM_BYTES.items()
}  # fmt: skip
_DTYPES = {code: name for name, code in _CODES.items()}


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("rank", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A private copy of a function of the C API: `ctypes.pythonapi` is shared by all its users."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = _function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer_of = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_is_valid = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_dying_pointer = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_dying_is_valid = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_keep = _function("Py_IncRef", None, ctypes.py_object)
_drop = _function("Py_DecRef", None, ctypes.c_void_p)


# The functions below bind what they use as defaults: tensors may die after this module, when Python exits.


def _delete_now(managed: int, at: Any = _Managed.from_address, drop: Any = _drop) -> None:
    """The consumer of the tensor has released it: drop the reference that `_Exported` holds to itself."""
    drop(at(managed).context)


_delete = _Deleter(_delete_now)


def _forget_now(
    capsule: int, valid: Any = _dying_is_valid, pointer: Any = _dying_pointer, delete: Any = _delete_now
) -> None:
    """Destructor of a capsule: deletes the tensor if no consumer took it over (and renamed the capsule)."""
    if valid(capsule, b"dltensor"):
        delete(pointer(capsule, b"dltensor"))


_forget = _Destructor(_forget_now)


class _Exported:
    """One exported tensor: its C structure, and the owner of the memory. It lives until the deleter runs."""

    def __init__(self, tensor: DeviceTensor, place: tuple[int, int]) -> None:
        """Args: place: (DLDeviceType, number) of the memory."""
        rank = len(tensor.shape)
        strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(rank)]
        self._owner, self._functions = tensor, (_delete, _forget)
        self._shape = (ctypes.c_int64 * max(rank, 1))(*tensor.shape)
        self._strides = (ctypes.c_int64 * max(rank, 1))(*strides)
        code, bits = _CODES[tensor.dtype]
        self.managed = _Managed(
            _Tensor(
                tensor.pointer,
                _Device(*place),
                rank,
                _DataType(code, bits, 1),
                ctypes.cast(self._shape, ctypes.POINTER(ctypes.c_int64)),
                ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64)),
                0,
            ),
            id(self),
            _delete,
        )


class DeviceTensor:
    """An output in the program's own memory: `torch.from_dlpack(tensor)` shows it without copying.

    It keeps the memory of its session alive. The session's next run overwrites it: copy what must stay, on the stream
    that is passed to the next `run_device`.

    Attributes:
        dtype, shape: those of the program's port.
        pointer: the address on the device, of contiguous elements in row-major order.
    """

    def __init__(self, pointer: int, dtype: str, shape: tuple[int, ...], device: Device, owner: object) -> None:
        """Args: owner: kept alive as long as this tensor, because it owns the memory."""
        self.pointer, self.dtype, self.shape = pointer, dtype, shape
        self._device, self._owner = device, owner

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def __dlpack_device__(self) -> tuple[int, int]:
        """The device as (DLDeviceType, number).

        Raises:
            BufferError: other libraries cannot access the device's memory.
        """
        if self._device.dlpack is None:
            raise BufferError(f"the memory of {self._device.name} cannot be shared; copy it with numpy.asarray")
        return self._device.dlpack

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The capsule "dltensor" (of the unversioned protocol, which every consumer supports).

        Args:
            stream: the consumer's stream, which waits for the program; the host does not. On CUDA None is the default
                stream and -1 requests no ordering; on a CPU it must be None.

        Raises:
            BufferError: a copy or another device is requested, or the memory cannot be shared.
            ValueError: no such stream.
        """
        place = self.__dlpack_device__()
        if copy or (dl_device is not None and tuple(dl_device) != place):
            raise BufferError("a session's output is shared where it is; copy it afterwards")
        if place[0] == CPU:
            if stream is not None:
                raise ValueError("a tensor in host memory has no stream; pass None")
            self._device.synchronize()
        else:
            if stream is not None and (stream == 0 or stream < NO_ORDER):
                raise ValueError(f"{stream} is no CUDA stream: 1 is the default one, -1 asks for no order")
            if stream != NO_ORDER:
                self._device.activate()
                self._device.precede(LEGACY_STREAM if stream is None else stream)
        exported = _Exported(self, place)
        capsule = _new_capsule(ctypes.addressof(exported.managed), _NAME, ctypes.cast(_forget, ctypes.c_void_p))
        _keep(exported)
        return capsule

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """A copy in host memory."""
        array = np.empty(self.shape, numpy_dtype(self.dtype))
        self._device.activate()
        self._device.download(array.reshape(-1).view(np.uint8), self.pointer)
        self._device.synchronize()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        """Shape, dtype and device, without elements."""
        return f"DeviceTensor(shape={self.shape}, dtype={self.dtype}, device={self._device.name})"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A tensor of another library on the device; its memory is valid while `capsule` lives."""

    pointer: int
    dtype: str
    shape: tuple[int, ...]
    capsule: object


def outside(tensor: object) -> tuple[int, int] | None:
    """(DLDeviceType, number) of a tensor that the host cannot read; None for everything else."""
    if isinstance(tensor, np.ndarray) or not hasattr(tensor, "__dlpack_device__"):
        return None
    kind, number = tensor.__dlpack_device__()
    return None if int(kind) in (CPU, PINNED) else (int(kind), int(number))


def take(name: str, tensor: Any, stream: int | None) -> Foreign:
    """View another library's tensor; work enqueued on `stream` from now on waits for its producer.

    Args:
        name: name of the input, for errors.

    Raises:
        FeedError: the tensor cannot be shared, has an unsupported dtype, or is not contiguous.
    """
    try:
        capsule = tensor.__dlpack__(stream=stream)
    except (BufferError, RuntimeError, ValueError) as error:
        raise FeedError(f"input {name!r} cannot be shared ({' '.join(str(error).split())[:200]}): detach it") from error
    if not _is_valid(capsule, _NAME):
        raise FeedError(f"input {name!r} does not share its memory by DLPack: feed a numpy array")
    view = _Managed.from_address(_pointer_of(capsule, _NAME)).tensor
    shape = tuple(view.shape[axis] for axis in range(view.rank))
    dtype = _DTYPES.get((view.dtype.code, view.dtype.bits))
    if dtype is None or view.dtype.lanes != 1:
        raise FeedError(f"input {name!r} has elements of a type that no program takes: convert it")
    if view.strides:
        wanted = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        axes = [axis for axis in range(len(shape)) if shape[axis] > 1]
        if math.prod(shape) and any(view.strides[axis] != wanted[axis] for axis in axes):
            raise FeedError(f"input {name!r} is not contiguous: make it so with .contiguous()")
    return Foreign((view.data or 0) + view.byte_offset, dtype, shape, capsule)
