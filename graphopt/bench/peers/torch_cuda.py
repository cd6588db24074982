"""torch on an NVIDIA GPU as a side: CUDA graphs for several sets of memory, timed by events like graphopt's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphopt.bench import timing
from graphopt.bench.peers.torch_model import Graph, narrowed
from graphopt.bench.sides import Settings, sets
from graphopt.errors import GraphoptError

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WARM_UPS = 3
"""Runs before a capture, in which cuDNN benchmarks its algorithms and torch compiles."""
_HEAD_BYTES, _HEAD_STEPS = 128 << 20, 2
"""What keeps the GPU busy until the host runs ahead of it: bytes set, and steps meanwhile enqueued."""


class TorchCudaSide:
    """One captured graph for each set of constants, inputs and intermediate results.

    Half precisions take fp16 or bf16 inputs and compute in channels_last; cuDNN chooses its algorithms by benchmarking.
    """

    def __init__(self, model: Path, settings: Settings, wrap: Callable[..., Any]) -> None:
        """Convert the model.

        Args:
            wrap: applied to the computation before it is captured: the identity, or a compiler.

        Raises:
            GraphoptError: torch has no CUDA, or an operator is unknown.
        """
        if not torch.cuda.is_available():
            raise GraphoptError("this torch sees no CUDA: install a build for it, as pytorch.org says")
        self._dtype = _DTYPES[settings.precision]
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
        torch.cuda.empty_cache()
        self._before = torch.cuda.memory_reserved()
        graph = Graph(model, self._dtype)
        self._inputs = graph.input_names
        self._outputs = dict(zip(graph.output_names, graph.output_dtypes, strict=True))
        self._constants = [self._placed(tensor) for tensor in graph.constants]
        self._function = wrap(graph.compute)
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captured: list[tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor], tuple[Tensor, ...]]] = []
        nbytes = sum(tensor.numel() * tensor.element_size() for tensor in self._constants)
        self.sets = sets(torch.cuda.get_device_properties(0).L2_cache_size, nbytes)
        self.device_bytes: int | None = None

    def _placed(self, tensor: Tensor) -> Tensor:
        """A copy on the GPU, in the precision and layout of the model."""
        placed = narrowed(tensor, self._dtype).cuda()
        half = placed.is_floating_point() and placed.element_size() == 2
        return placed.contiguous(memory_format=torch.channels_last) if half and placed.dim() == 4 else placed

    def _capture(self, feeds: Mapping[str, Any]) -> None:
        constants = [tensor.clone() for tensor in self._constants] if self._captured else self._constants
        inputs = [self._placed(torch.from_numpy(feeds[name])) for name in self._inputs]
        # As in torch's notes on CUDA graphs: run on a side stream first.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                self._function(constants, *inputs)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                outputs = self._function(constants, *inputs)
        self._captured.append((graph, constants, inputs, tuple(outputs)))
        if self.device_bytes is None:
            torch.cuda.empty_cache()  # the workspaces of choosing algorithms
            self.device_bytes = torch.cuda.memory_reserved() - self._before

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs of the first graph, converted to the model's own dtypes."""
        if not self._captured:
            self._capture(feeds)
        graph, _, inputs, outputs = self._captured[0]
        for name, tensor in zip(self._inputs, inputs, strict=True):
            tensor.copy_(self._placed(torch.from_numpy(feeds[name])))
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        named = zip(self._outputs.items(), outputs, strict=True)
        return {name: output.to(getattr(torch, dtype)).cpu().numpy() for (name, dtype), output in named}

    def block(self, feeds: Mapping[str, Any]) -> timing.Block:
        """A block that replays the graphs in turn, timed by events."""
        while len(self._captured) < self.sets:
            self._capture(feeds)
        turns = itertools.cycle([captured[0] for captured in self._captured])
        head = torch.empty(_HEAD_BYTES, dtype=torch.uint8, device="cuda")

        def block(runs: int) -> list[float]:
            events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 2)]  # type: ignore[no-untyped-call]
            with torch.cuda.stream(self._stream):
                for _ in range(-(-(runs + 1) // _HEAD_STEPS)):
                    head.zero_()
                events[0].record()
                for event in events[1:]:
                    next(turns).replay()
                    event.record()
            events[-1].synchronize()
            laps = itertools.pairwise(events)
            return [first.elapsed_time(second) * 1e-3 for first, second in laps][1:]

        return block
