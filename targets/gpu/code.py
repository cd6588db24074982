"""A scheduled PrimFunc -> the source of its kernels, and how to launch them.

TVM's passes split the function into kernels and a host part that launches them in order. The host part of a function
with static shapes is data: grids, blocks, and tensors between its kernels, which become scratch values of the program.
So a program needs no host code for a GPU, and its kernels lie in an artifact as machine code (CUDA) or source (OpenCL).
"""

from __future__ import annotations

import math
import re
import threading
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Expr

from graphopt.errors import CodegenError
from graphopt.program.program import Launch
from graphopt.targets.common.tir import ieee
from graphopt.targets.common.tir.rising import rising
from graphopt.targets.gpu.devices import GpuSpec

_AXES = {f"{kind}Idx.{axis}": (kind, "xyz".index(axis)) for kind in ("block", "thread") for axis in "xyz"}
_DYNAMIC = "tirx.use_dyn_shared_memory"
_COMPILE = "tvm_callback_cuda_compile"
SYNCHRONIZED = "graphopt.synchronized"
"""Attribute of a function that has all the barriers it needs: TVM does not see that halves of a buffer are disjoint."""

_CONFIG = {"tirx.UnrollLoop": {"explicit_unroll": 0}}
"""Loops to unroll are marked, and the device's compiler does it: the source stays short."""

RESIDENT = "graphopt.resident"
"""Attribute of a function: `DeviceCode.resident`."""

_LOOP = re.compile(r"(?<!#pragma unroll\n)^( +)for \(", re.MULTILINE)
"""A loop that is not to be unrolled; the compiler would, where it is short, and run out of registers."""

_BOUNDS = re.compile(r"__launch_bounds__\((\d+)\)")
_lock = threading.Lock()


def handwritten(function: tirx.PrimFunc, body: tirx.Stmt, resident: int) -> tirx.PrimFunc:
    """The function with a body that computes the same and has all its barriers, for `resident` blocks at a time."""
    return function.with_body(body).with_attr(SYNCHRONIZED, 1).with_attr(RESIDENT, resident)


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """`source` defines the entries of `launches`, whose arguments count the parameters and then `scratch`.

    `scratch` are (dtype, shape) of tensors that live only inside the call. `resident` is how many blocks should be
    resident on a multiprocessor, which bounds the registers of a thread.
    """

    source: str
    launches: tuple[Launch, ...]
    scratch: tuple[tuple[str, tuple[int, ...]], ...] = ()
    resident: int = 1

    def bounded(self, resident: int) -> str:
        """The source for CUDA, in which `resident` blocks fit on a multiprocessor as far as registers go."""
        return _BOUNDS.sub(rf"__launch_bounds__(\1, {resident})", self.source)


def generate(symbol: str, function: tirx.PrimFunc, device: GpuSpec) -> DeviceCode:
    """Code for a PrimFunc whose loops are bound to blocks and threads.

    Raises:
        CodegenError: TVM cannot generate code for it, or part of it would run on the host.
    """
    target = tvm.target.Target(device.tvm_target, host={"kind": "llvm"})
    module = tvm.IRModule({"main": function.with_attr("global_symbol", symbol)})
    with tvm.transform.PassContext(config=_CONFIG):
        split = _passes(SYNCHRONIZED in function.attrs)(tirx.transform.BindTarget(target)(module))
    host = next(part for part in split.functions.values() if not _on_device(part))
    kernels = {variable: part for variable, part in split.functions.items() if _on_device(part)}
    launches, scratch = _Host(host, device).read()
    final = tvm.ir.transform.Sequential(
        [
            tirx.transform.Filter(_on_device),
            tirx.transform.FP8StorageLegalize(),
            tirx.transform.BF16StorageLegalize(),
            tirx.transform.LowerWarpMemory(),
            tirx.transform.StmtSimplify(),
            tirx.transform.LowerIntrin(),
            ieee.reveal(_uncontracted if device.cuda else _fused, ieee.c_wide),
        ]
    )(split)
    if {str(variable.name_hint) for variable in kernels} != {launch.entry for launch in launches}:
        raise CodegenError(f"not all of {symbol} becomes kernels")
    kind = next(iter(final.functions.values())).attrs["target"]
    resident = int(function.attrs[RESIDENT]) if RESIDENT in function.attrs else 1
    source = _source(final, kind, device)
    if device.cuda and SYNCHRONIZED in function.attrs:
        source = _LOOP.sub(r"\1#pragma unroll 1\n\1for (", source)
        if all(math.prod(launch.block) % device.warp == 0 for launch in launches):
            source = source.replace("__activemask()", "0xffffffffu")  # shuffles are executed by whole warps
    return DeviceCode(source, launches, scratch, resident)


def _on_device(function: tirx.PrimFunc) -> bool:
    return "tirx.kernel_launch_params" in function.attrs


def _passes(synchronized: bool) -> tvm.ir.transform.Sequential:
    """From blocks and loops to kernels and host part; barriers are inserted unless the function has its own."""
    return tvm.ir.transform.Sequential(
        [
            rising(),
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerCrossThreadReduction(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.LiftThreadBinding(),
            s_tir.transform.ManifestSharedMemoryLocalStage(),
            # it would cut off what only addresses are taken of
            *([] if synchronized else [s_tir.transform.CompactBufferAllocation()]),
            s_tir.transform.LowerAutoCopy(),
            s_tir.transform.UnifyThreadBinding(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.InjectPermutedLayout(),
            s_tir.transform.AnnotateIrregularLoop(),
            s_tir.transform.InjectSoftwarePipeline(),
            s_tir.transform.TransformMmaBufferLayout(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(True),
            s_tir.transform.InjectVirtualThread(),
            s_tir.transform.InjectDoubleBuffer(),
            tirx.transform.StorageRewrite(),
            s_tir.transform.HoistIfThenElse(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.CommonSubexprElim(),
            tirx.transform.FP8ComputeLegalize(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            *(s_tir.transform.ThreadSync(scope) for scope in ("shared", "shared.dyn", "warp") if not synchronized),
            s_tir.transform.InferFragment(),
            s_tir.transform.LowerThreadAllreduce(),
            s_tir.transform.InjectPTXAsyncCopy(),
            s_tir.transform.MergeSharedMemoryAllocations(),
            tirx.transform.SplitHostDevice(),
        ]
    )


def _uncontracted(product: tirx.Mul) -> Expr:
    """A product of floats that CUDA's compiler does not make one operation with a sum; vectors it takes apart first."""
    name = {"float32": "__fmul_rn", "float64": "__dmul_rn"}.get(str(product.ty.dtype))
    return product if name is None else tirx.call_pure_extern(product.ty.dtype, name, product.a, product.b)


def _fused(product: tirx.Mul) -> Expr:
    """A product of floats as OpenCL's one operation with a sum, of -0.0: nothing is left to contract."""
    kind = str(product.ty.dtype)
    return product if "x" in kind else tirx.call_pure_extern(kind, "fma", product.a, product.b, tirx.const(-0.0, kind))


class _Host:
    """Reads the launches out of the host part of a split function."""

    def __init__(self, function: tirx.PrimFunc, device: GpuSpec) -> None:
        self.function, self.device = function, device
        self.places: list[tuple[tirx.Buffer, int]] = []  # a buffer, and its position among parameters and scratch
        self.scratch: list[tuple[str, tuple[int, ...]]] = []
        self.launches: list[Launch] = []

    def read(self) -> tuple[tuple[Launch, ...], tuple[tuple[str, tuple[int, ...]], ...]]:
        for position, parameter in enumerate(self.function.params):
            self.places.append((parameter, position))
        self._statement(self.function.body)
        return tuple(self.launches), tuple(self.scratch)

    def _statement(self, node: tirx.Stmt) -> None:
        if isinstance(node, tirx.SeqStmt):
            for part in node:
                self._statement(part)
        elif isinstance(node, tirx.AttrStmt):
            self._statement(node.body)
        elif isinstance(node, tirx.For) and isinstance(node.extent, tirx.IntImm):
            for _ in range(int(node.extent)):  # launches that do not know their turn
                self._statement(node.body)
        elif isinstance(node, tirx.AllocBuffer):
            self.places.append((node.buffer, len(self.function.params) + len(self.scratch)))
            self.scratch.append((str(node.buffer.dtype), tuple(int(extent) for extent in node.buffer.shape)))
        elif isinstance(node, tirx.Evaluate) and str(getattr(node.value.op, "name", "")).endswith("call_ffi_kernel"):
            self.launches.append(self._launch(node.value))
        elif isinstance(node, tirx.DeclBuffer):
            self.places.append((node.buffer, self._place(node.data)))
        else:
            raise CodegenError(f"a part of the function is bound to no thread ({type(node).__name__})")

    def _place(self, pointer: tvm.ir.Call) -> int:
        """The position of the buffer whose data `pointer` is."""
        buffer = pointer.args[0]
        return next(position for known, position in self.places if known.same_as(buffer))

    def _launch(self, call: tvm.ir.Call) -> Launch:
        entry = str(call.args[0].value)
        names = [str(name) for name in call.attrs["launch_params"]]
        values = list(call.args)[1:]
        tensors, extents = values[: len(values) - len(names)], values[len(values) - len(names) :]
        sizes = {"block": [1, 1, 1], "thread": [1, 1, 1]}
        shared = 0
        for name, extent in zip(names, extents, strict=True):
            if name == _DYNAMIC:
                shared = int(extent)
            else:
                kind, axis = _AXES[name]
                sizes[kind][axis] = int(extent)
        grid, block = tuple(sizes["block"]), tuple(sizes["thread"])
        return Launch(entry, grid, block, tuple(map(self._place, tensors)), shared)  # type: ignore[arg-type]


def _source(module: tvm.IRModule, target: tvm.target.Target, device: GpuSpec) -> str:
    if not device.cuda:
        text = str(tvm.get_global_func("target.build.opencl")(module, target).inspect_source())
        names = "".join(f"#define {name}f {name}\n" for name in _GENERIC if f"{name}f(" in text)
        return names + (_SELECT if "select(" in text else "") + text
    # TVM compiles what it generates at once, by a function that anybody may replace: ours keeps the source as it is.
    with _lock:
        theirs = tvm_ffi.get_global_func(_COMPILE)
        tvm_ffi.register_global_func(_COMPILE, lambda code: code.encode(), override=True)
        try:
            text = str(tvm.get_global_func("target.build.cuda")(module, target).inspect_source())
        finally:
            tvm_ffi.register_global_func(_COMPILE, theirs, override=True)
    text = _STANDARD.sub(_INTEGERS, text, count=1).replace(_ALIGNED, _ALIGNED_FOR_SWIZZLES)
    return _shared_apart(_INFINITE.sub(_INFINITY, text))


def _shared_apart(text: str) -> str:
    """Rename dynamic shared memory per kernel: names are the file's, and kernels may keep another type there."""
    first, *kernels = re.split(r'(?=^extern "C" __global__)', text, flags=re.MULTILINE)
    for number, kernel in enumerate(kernels):
        if (declared := _DYNAMIC_SHARED.search(kernel)) is not None:
            kernels[number] = re.sub(rf"\b{declared[1]}\b", f"shared_of_{number}", kernel)  # no name that TVM gives
    return first + "".join(kernels)


_DYNAMIC_SHARED = re.compile(r"extern __shared__ [^;]*?(\w+)\[\];")


_INFINITE, _INFINITY = re.compile(r"\binff\b"), "__int_as_float(0x7f800000)"
"""How TVM writes the infinity of bfloat16, which is no C."""

_ALIGNED, _ALIGNED_FOR_SWIZZLES = "extern __shared__ __align__(64)", "extern __shared__ __align__(1024)"
"""Tensor cores permute the bits of addresses: rows of a matrix are counted from a multiple of 1024 bytes on."""

_GENERIC = ("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cosh", "sinh", "tan", "erf", "fmod", "round")
"""Functions that TVM calls by their C names, where OpenCL has one name for all types."""

_SELECT = "".join(
    f"int __attribute__((overloadable)) select({a} a, {b} b, {kind} c) {{ return c ? b : a; }}\n"
    for kind in ("char", "uchar", "short", "ushort")
    for a, b in (("int", kind), (kind, "int"), ("int", "int"))
)
"""OpenCL's own function wants operands of one type, and sums of short integers are wider than they are."""

_STANDARD = re.compile(r"#ifdef __CUDACC_RTC__\n.*?\n#else\n.*?\n#endif\n", re.DOTALL)
_INTEGERS = """\
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
"""
# All that kernels take from the C++ headers that TVM includes, whose parsing would take longer than compiling them.
