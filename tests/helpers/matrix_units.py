"""Tensor cores made of ordinary instructions: what PTX says of mma, ldmatrix and cp.async, in OpenCL.

Elements are floats here, whatever their kind, since PoCL knows no halves; which lane holds which element is that of the
kind. Copies arrive as late as they may (when they are waited for), and spoil what they will overwrite at once: a reader
that comes too early, or a copy that begins too early, makes a wrong result.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.gpu.kernels.gemm.access import Chunk

QUEUE = 256
"""Copies that a thread may have on their way."""

BEGUN = 32
"""Products that a thread may have begun."""

PRELUDE = """
#define SPOILED as_float(0x7fc00000)

void begin_copy(long* queue, int* state, __local float* shared, __global float* source, int condition, int count) {
  for (int i = 0; i < count; ++i) shared[i] = SPOILED;
  queue[3 * state[1]] = (long)shared; queue[3 * state[1] + 1] = (long)source; queue[3 * state[1] + 2] = condition;
  state[1] = (state[1] + 1) % QUEUE;
}
void close_group(long* queue, int* state) {
  queue[3 * state[1]] = 0;
  state[1] = (state[1] + 1) % QUEUE; state[2]++;
}
void wait_for(long* queue, int* state, int pending, int count) {
  while (state[2] > pending) {
    __local float* shared = (__local float*)queue[3 * state[0]];
    __global float* source = (__global float*)queue[3 * state[0] + 1];
    if (shared == 0) state[2]--;
    else for (int i = 0; i < count; ++i) shared[i] = queue[3 * state[0] + 2] ? source[i] : 0.0f;
    state[0] = (state[0] + 1) % QUEUE;
  }
}
void give(__local float* all, int thread, float value) { all[thread] = value; }
void load_pieces(__local float* all, int thread, float* found, __local float* shared, int at, int chunk, int trans) {
  __local float* rows = all + thread / 32 * (32 * 16);
  int lane = thread % 32;
  rows[lane] = at % chunk == 0 ? at : -1;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int piece = 0; piece < 4; ++piece)
    for (int i = 0; i < chunk / 4; ++i) {
      int word = lane % 4 * (chunk / 4) + i;
      int row = (int)rows[piece * 8 + (trans ? word : lane / 4)];
      found[piece * (chunk / 4) + i] = row < 0 ? SPOILED : shared[row + (trans ? lane / 4 : word)];
    }
  barrier(CLK_LOCAL_MEM_FENCE);
}
void multiply_tile(__local float* all, int thread, float* sums, float* a, float* b, int chunk) {
  __local float* own = all + thread / 32 * (32 * 16);
  int lane = thread % 32, per = chunk / 4;
  for (int i = 0; i < 4 * per; ++i) own[lane * 16 + i] = a[i];
  for (int i = 0; i < 2 * per; ++i) own[lane * 16 + 8 + i] = b[i];
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float total = 0.0f;
    for (int k = 0; k < 2 * chunk; ++k) {
      int holder = k % chunk / per, word = k % per, second = k / chunk;
      float left = own[(row % 8 * 4 + holder) * 16 + (second * 2 + row / 8) * per + word];
      float right = own[(column * 4 + holder) * 16 + 8 + second * per + word];
      total += left * right;
    }
    sums[i] += total;
  }
  barrier(CLK_LOCAL_MEM_FENCE);
}
void begin_group(int* begun, int* count, int left, int right) {
  begun[2 * count[1]] = left; begun[2 * count[1] + 1] = right;
  count[1] = (count[1] + 1) % BEGUN;
}
void close_multiplied(int* begun, int* count) {
  begun[2 * count[1]] = -1;
  count[1] = (count[1] + 1) % BEGUN; count[2]++;
}
float swizzled(__local float* shared, int start, int row, int k) {
  int at = start + row / 8 * 512 + row % 8 * 64 + k;  // as halves are counted
  return shared[at ^ (at / 64 % 8 * 8)];
}
void settle_groups(int* begun, int* count, __local float* shared, float* sums, int thread, int n, int pending) {
  while (count[2] > pending) {
    int left = begun[2 * count[0]], right = begun[2 * count[0] + 1];
    count[0] = (count[0] + 1) % BEGUN;
    if (left < 0) { count[2]--; continue; }
    for (int i = 0; i < n / 2; ++i) {
      int row = thread % 128 / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) sums[i] += swizzled(shared, left, row, k) * swizzled(shared, right, column, k);
    }
  }
}
""".replace("QUEUE", str(QUEUE)).replace("BEGUN", str(BEGUN))


class MatrixUnits:
    """`Units` on any OpenCL device, of floats."""

    dtype, scope = "float32", "shared"

    def __init__(self, kind: str) -> None:
        """Args: kind: whose geometry, "float16" or "tf32"."""
        self.kind = kind
        self.chunk = 4 if kind == "tf32" else 8
        self.transposes = kind != "tf32"
        self._per = self.chunk // 4

    def begin(self, thread: Any, threads: int) -> None:
        self._thread = thread
        self._scratch = T.alloc_buffer((threads * 16,), "float32", scope="shared")
        self._queue = T.alloc_buffer((3 * QUEUE,), "int64", scope="local")
        self._state = T.alloc_buffer((3,), "int32", scope="local")
        for i in range(3):
            T.buffer_store(self._state, 0, [i])

    def unrolled(self, extent: int) -> Any:
        return T.serial(0, extent)

    def registers(self, count: int) -> Any:
        return T.alloc_buffer((count * self._per,), "float32", scope="local")

    def copy(self, shared: Any, at: Any, chunk: Chunk, condition: Any) -> None:
        flag = 1 if condition is None else tirx.Select(condition, tirx.IntImm("int32", 1), tirx.IntImm("int32", 0))
        _call("begin_copy", *self._copies(), _at(shared, at), chunk.address, flag, self.chunk)

    def _copies(self) -> tuple[Any, Any]:
        return _at(self._queue, 0), _at(self._state, 0)

    def commit(self) -> None:
        _call("close_group", *self._copies())

    def wait(self, pending: int) -> None:
        _call("wait_for", *self._copies(), pending, self.chunk)

    def load(self, registers: Any, first: Any, shared: Any, at: Any, transposed: bool) -> None:
        target = _at(registers, first * self._per)
        scratch = _at(self._scratch, 0)
        _call("load_pieces", scratch, self._thread, target, _at(shared, 0), at, self.chunk, int(transposed))

    def pick(self, registers: Any, at: Any, shared: Any, place: Any) -> None:
        T.buffer_store(registers, shared[place], [at])

    def multiply(self, sums: Any, at: Any, a: Any, a_at: Any, b: Any, b_at: Any) -> None:
        operands = _at(sums, at), _at(a, a_at * self._per), _at(b, b_at * self._per)
        _call("multiply_tile", _at(self._scratch, 0), self._thread, *operands, self.chunk)

    def pack(self, registers: Any, at: Any, first: Any, second: Any) -> None:
        T.buffer_store(registers, first, [2 * at])
        T.buffer_store(registers, second, [2 * at + 1])

    def exchange(self, target: Any, at: Any, value: Any, across: int) -> None:
        _call("give", _at(self._scratch, 0), self._thread, value)
        T.evaluate(T.tvm_storage_sync("shared"))
        T.buffer_store(target, self._scratch[tirx.bitwise_xor(self._thread, across)], [at])
        T.evaluate(T.tvm_storage_sync("shared"))

    def warp_barrier(self) -> None:
        T.evaluate(T.tvm_storage_sync("shared"))


class MatrixGroups(MatrixUnits):
    """`warpgroups.Units` on any OpenCL device: products read their operands as late as they may, when waited for."""

    def describe(self, shared: Any) -> None:
        self._shared = shared
        self._begun = T.alloc_buffer((2 * BEGUN,), "int32", scope="local")
        self._count = T.alloc_buffer((3,), "int32", scope="local")
        for i in range(3):
            T.buffer_store(self._count, 0, [i])

    def publish(self) -> None:
        pass

    def open(self) -> None:
        pass

    def multiply_group(self, sums: Any, n: int, shared: Any, left: Any, right: Any) -> None:
        self._columns = n
        _call("begin_group", _at(self._begun, 0), _at(self._count, 0), left, right)

    def close(self) -> None:
        _call("close_multiplied", _at(self._begun, 0), _at(self._count, 0))

    def settle(self, sums: Any, pending: int) -> None:
        state = _at(self._begun, 0), _at(self._count, 0)
        _call("settle_groups", *state, _at(self._shared, 0), _at(sums, 0), self._thread, self._columns, pending)


def _at(buffer: Any, index: Any) -> Any:
    return tirx.address_of(buffer[index])


def _call(name: str, *arguments: Any) -> None:
    T.evaluate(tirx.call_extern("int32", name, *arguments))
