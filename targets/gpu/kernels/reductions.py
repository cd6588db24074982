"""Sums, products and extremes over axes: threads that share a result, and blocks that do where results are few.

Where the summed elements are neighbours in memory, the threads of a result are too, and reduce by shuffles.
Where the results are neighbours, 32 threads take 32 results, and others below them take other steps of the same ones.
A long sum with few results is cut into parts, which a second kernel combines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import ir, s_tir, sym, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels import anchored
from graphopt.targets.common.kernels.anchored import Anchored
from graphopt.targets.common.kernels.blocks import Block, const
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.common.tir.expressions import rewritten, substituted
from graphopt.targets.gpu.code import handwritten
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.window import unflattened
from graphopt.targets.gpu.waves import CLOCK, REACHED_BANDWIDTH, fitting_by_threads, waves

BYTES = 16
"""Bytes of the widest load."""

FLIGHT = 4
"""Loads of a thread in flight."""

BLOCK = 256
"""Threads per block, where there are enough of them."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """A block has `results` results and `lanes` threads for each, which take `vector` neighbouring steps at a time.

    With `down`, neighbouring threads have neighbouring results. `parts` blocks share a result. Written "8x32x4*2".
    """

    results: int
    lanes: int
    vector: int = 1
    parts: int = 1
    down: bool = False

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.results * self.lanes

    def __str__(self) -> str:
        """The configuration as it is written."""
        parts = f"*{self.parts}" if self.parts > 1 else ""
        return f"{self.results}x{self.lanes}x{self.vector}{' down' if self.down else ''}{parts}"


@dataclass(frozen=True, slots=True)
class Sums:
    """`results` sums of `steps` elements that take `nbytes` each; up to `vector` of them may be one load."""

    results: int
    steps: int
    nbytes: int
    vector: int
    along: bool  # steps that follow each other are neighbours in memory


def launch_config(work: Sums, device: GpuSpec) -> LaunchConfig:
    """The best launch configuration by estimate."""
    return min(
        _launch_configs(work, device),
        key=lambda config: (seconds(work, config, device), abs(config.threads - BLOCK)),
    )


def _launch_configs(work: Sums, device: GpuSpec) -> Iterator[LaunchConfig]:
    most = min(1024, device.threads_per_block)
    for lanes in (1 << power for power in range(11)):
        for results in (1 << power for power in range(11)):
            threads = lanes * results
            fits = threads % device.warp == 0 and threads <= min(most, max(BLOCK, lanes))
            # several warps that shuffle are of one result
            if not fits or (work.along and lanes > device.warp and results > 1):
                continue
            if not work.along and results < device.warp:
                continue
            if results // 2 >= work.results and results // 2 * lanes >= device.warp:  # half of them would be idle
                continue
            part, blocks = 1, math.ceil(work.results / results)
            while True:
                yield LaunchConfig(results, lanes, work.vector, part, not work.along)
                part *= 2
                if blocks * part > 8 * device.multiprocessors or work.steps < FLIGHT * work.vector * lanes * part:
                    break


def seconds(work: Sums, config: LaunchConfig, device: GpuSpec) -> float:
    """An estimate: waves of blocks, each bound by its loads or by waiting; or memory at what can be reached."""
    blocks = math.ceil(work.results / config.results) * config.parts
    warps = math.ceil(config.threads / device.warp)
    grid = waves(blocks, fitting_by_threads(config.threads, device), device)
    loads = math.ceil(work.steps / (config.parts * config.lanes * config.vector))
    # A load of a warp touches as many lines as it has results that are apart, four of them at a time.
    lines = 1 if config.down else max(1, device.warp // config.lanes) * min(1.0, work.steps * work.nbytes / 128)
    # A warp's bytes are 32 times a thread's, and the second-level cache gives as many a cycle (L2_LOAD_BYTES).
    working = grid.resident_blocks * warps * loads * max(config.vector * work.nbytes * 1.0, 2 * lines)
    waiting = (
        600 * math.ceil(loads / FLIGHT) + 25 * math.log2(config.lanes) + (100 if config.lanes > device.warp else 0)
    )
    again = 0.0 if config.parts == 1 else 3e-6 + config.parts * work.results * 8 / device.bandwidth
    size = work.results * work.steps * work.nbytes
    return max(grid.count * max(working, waiting) / CLOCK, size / (REACHED_BANDWIDTH * device.bandwidth)) + again


def emit(sch: s_tir.Schedule, anchor: Block, device: GpuSpec) -> tuple[tirx.PrimFunc, LaunchConfig, float]:
    """The function with its kernels, how they are launched, and an estimate of their seconds.

    Raises:
        ValueError: it is not one reduction and functions of its results.
    """
    block = sch.get(anchor.rv)
    if not isinstance(block.body, tirx.BufferStore) or not isinstance(block.init, tirx.BufferStore):
        raise ValueError("it reduces several numbers at once")
    start = block.init.value
    reduction = anchored.read(sch, anchor)
    _check(reduction, anchor)
    template = _Template(reduction, anchor, start, device)
    return (
        handwritten(reduction.function, template.statement(), 1),
        template.config,
        seconds(template.work, template.config, device),
    )


def _check(reduction: Anchored, anchor: Block) -> None:
    """Refuse an epilogue that reads results of other places than its own."""
    if tuple(reduction.extents) != (anchor.spatial or reduction.extents):
        raise ValueError("its results are spread over more elements")
    last = reduction._last
    if last is None:
        return
    own = [iterator.var for iterator in last.iter_vars]

    def look(part: Expr) -> Expr | None:
        if isinstance(part, ir.TensorLoad) and part.source.same_as(reduction._total):
            for at, extent, variable in zip(part.indices, anchor.spatial, own, strict=False):
                if extent > 1 and not (isinstance(at, tirx.Var) and at.same_as(variable)):
                    raise ValueError("its results move")
        return None

    rewritten(last.body.value, look)
    for at, variable in zip(last.body.indices, own, strict=False):
        if isinstance(at, tirx.Var) and not at.same_as(variable):
            raise ValueError("its results move")


class _Template:
    def __init__(self, reduction: Anchored, anchor: Block, start: Expr, device: GpuSpec) -> None:
        self.reduction, self.anchor, self.device = reduction, anchor, device
        self.kept = "float32" if reduction.dtype in ("float16", "bfloat16") else reduction.dtype
        self.start = const(float(start.value), self.kept) if self.kept != reduction.dtype else start
        self.results, self.steps = math.prod(anchor.spatial), math.prod(anchor.reduce)
        along, vector = self._access()
        sizes = [ITEM_BYTES[str(each.dtype)] for each in reduction.sources]
        self.work = Sums(self.results, self.steps, max(sizes, default=4), vector, along)
        self.config = launch_config(self.work, device)

    def _access(self) -> tuple[bool, int]:
        """Whether steps that follow each other are neighbours in memory, and how many of them a load may take."""
        loads: list[ir.TensorLoad] = []

        def look(part: Expr) -> Expr | None:
            if isinstance(part, ir.TensorLoad):
                loads.append(part)
            return None

        rewritten(self.reduction.value, look)
        if not loads:
            return True, 1
        widest = max(loads, key=lambda each: math.prod(map(int, each.source.shape)))
        variables = self.reduction.variables
        spatial, reduced = variables[: len(self.anchor.spatial)], variables[len(self.anchor.spatial) :]
        steps = next((v for v, e in zip(reversed(reduced), reversed(self.anchor.reduce), strict=True) if e > 1), None)
        places = next((v for v, e in zip(reversed(spatial), reversed(self.anchor.spatial), strict=True) if e > 1), None)
        if steps is None or not self._one(widest, steps):
            return places is None or not self._one(widest, places), 1
        inner = next(e for e in reversed(self.anchor.reduce) if e > 1)  # a vector ends where that axis does
        width = math.gcd(inner, *(max(1, BYTES // ITEM_BYTES[str(each.source.dtype)]) for each in loads), 4)
        return True, width if all(self._aligned(each, steps, width) for each in loads) else 1

    def _aligned(self, load: ir.TensorLoad, steps: tirx.Var, width: int) -> bool:
        """Whether `width` steps from a multiple of it on are one aligned load, or none."""
        analyzer = sym.Analyzer()
        step = analyzer.simplify(self._flat(load, {steps: steps + 1}) - self._flat(load, {}))
        if not isinstance(step, tirx.IntImm) or int(step) not in (0, 1):
            return False
        known = analyzer.modular_set(analyzer.simplify(self._flat(load, {steps: steps * width})))
        return int(step) == 0 or (known.coeff % width == 0 and known.base % width == 0)

    def _flat(self, load: ir.TensorLoad, values: dict[tirx.Var, Expr]) -> Expr:
        flat: Expr = tirx.IntImm(self.reduction.index, 0)
        for at, extent in zip(load.indices, load.source.shape, strict=True):
            flat = flat * int(extent) + substituted(at, values)
        return flat

    def _one(self, load: ir.TensorLoad, variable: tirx.Var) -> bool:
        step = sym.Analyzer().simplify(self._flat(load, {variable: variable + 1}) - self._flat(load, {}))
        return isinstance(step, tirx.IntImm) and int(step) == 1

    def statement(self) -> tirx.Stmt:
        """The statement."""
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                if self.config.parts == 1:
                    self._kernel(self.config, self.steps, self._value, self._store)
                else:
                    size = self.config.parts * self.results
                    parts = T.alloc_buffer((size,), self.kept, scope="global")

                    def keep(result: Expr, part: Expr, total: Expr) -> None:
                        T.buffer_store(parts, total, [part * self.results + result])

                    self._kernel(self.config, self.steps, self._value, keep)
                    lanes = min(256, self.device.threads_per_block, self.config.parts)
                    adding = LaunchConfig(max(1, 32 // lanes), lanes)
                    if self.results >= 32:
                        adding = LaunchConfig(32, min(8, lanes, self.device.threads_per_block // 32), down=True)
                    self._kernel(adding, self.config.parts, lambda r, k: parts[k * self.results + r], self._store)
            return builder.get().body

    def _value(self, result: Expr, step: Expr) -> Expr:
        index = [*self._places(result), *unflattened(step, self.anchor.reduce)]
        return self.reduction.element([each.astype(self.reduction.index) for each in index]).astype(self.kept)

    def _places(self, result: Expr) -> list[Expr]:
        return unflattened(result, self.anchor.spatial) if self.anchor.spatial else []

    def _store(self, result: Expr, _: Expr, total: Expr) -> None:
        places = [each.astype(self.reduction.index) for each in self._places(result)]
        if not places and self.reduction._last is not None:
            places = [tirx.IntImm(self.reduction.index, 0) for _ in self.reduction._last.iter_vars]
        T.buffer_store(*self.reduction.store(places, total.astype(self.reduction.dtype)))

    def _kernel(
        self,
        config: LaunchConfig,
        steps: int,
        value: Callable[[Expr, Expr], Expr],
        store: Callable[[Expr, Expr, Expr], None],
    ) -> None:
        across, below = (config.results, config.lanes) if config.down else (config.lanes, config.results)
        groups = math.ceil(self.results / config.results)
        with (
            T.launch_thread("blockIdx.x", groups * config.parts) as block,
            T.launch_thread("threadIdx.y", below) as y,
            T.launch_thread("threadIdx.x", across) as x,
        ):
            lane, own = (y, x) if config.down else (x, y)
            part = block // groups
            result = block % groups * config.results + own
            some = result if self.results % config.results == 0 else tirx.min(result, self.results - 1)
            chunk = config.lanes * config.vector
            turns = math.ceil(math.ceil(steps / chunk) / config.parts)
            total, reduced = (T.alloc_buffer((1,), self.kept, scope="local") for _ in range(2))
            T.buffer_store(total, self.start, [0])
            flight = min(FLIGHT, turns)
            batches = math.ceil(turns / flight)
            waiting = T.alloc_buffer((flight * config.vector,), self.kept, scope="local")
            with T.serial(0, batches) as turn:
                for number in range(flight):
                    at = (((part * batches + turn) * flight + number) * config.lanes + lane) * config.vector
                    exists = inside((at, steps, chunk * flight * batches * config.parts))
                    with T.vectorized(0, config.vector) as i:
                        element = value(some, at + i)
                        if exists is not None:
                            element = tirx.if_then_else(exists, element, self.start)
                        T.buffer_store(waiting, element, [number * config.vector + i])
                with T.unroll(0, flight * config.vector) as i:
                    T.buffer_store(total, self._combine(total[0], waiting[i]), [0])
            if config.lanes > 1:
                reducer = T.comm_reducer(self._combine, [self.start])
                with T.attr(reducer, "reduce_scope", T.reinterpret("handle", T.uint64(0))):
                    T.evaluate(T.tvm_thread_allreduce(T.uint32(1), total[0], T.bool(True), reduced[0], lane))
            else:
                T.buffer_store(reduced, total[0], [0])
            exists = inside((result, self.results, config.results))
            leads = lane == 0 if config.lanes > 1 else None
            both = [each for each in (exists, leads) if each is not None]
            with when(tirx.all(*both) if both else None):
                store(result, part, reduced[0])

    def _combine(self, a: Expr, b: Expr) -> Expr:
        return self.reduction.combine(a, b)
