"""The passes, one rewrite per file. `PASSES` maps a name to its module and class, which load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.passes.branches.hoist_branches import HoistBranches as HoistBranches
    from graphopt.passes.branches.select_branches import SelectBranches as SelectBranches
    from graphopt.passes.conv.lift_rows import LiftRows as LiftRows
    from graphopt.passes.conv.select_conv import SelectConv as SelectConv
    from graphopt.passes.conv.split_transposed import SplitTransposed as SplitTransposed
    from graphopt.passes.fuse.fuse import Fuse as Fuse
    from graphopt.passes.layout.layout import Layout as Layout
    from graphopt.passes.normalize.normalize import Normalize as Normalize
    from graphopt.passes.precision.flush_denormals import FlushDenormals as FlushDenormals
    from graphopt.passes.precision.precision import Precision as Precision
    from graphopt.passes.products.batch_products import BatchProducts as BatchProducts
    from graphopt.passes.products.choose_tiles import ChooseTiles as ChooseTiles
    from graphopt.passes.products.join_products import JoinProducts as JoinProducts
    from graphopt.passes.prune.prune import Prune as Prune
    from graphopt.passes.quantize.quantized_moves import QuantizedMoves as QuantizedMoves
    from graphopt.passes.quantize.quantized_products import QuantizedProducts as QuantizedProducts
    from graphopt.passes.sparse.cluster_sparse import ClusterSparse as ClusterSparse
    from graphopt.passes.sparse.compress_columns import CompressColumns as CompressColumns
    from graphopt.passes.sparse.drop_blocks import DropBlocks as DropBlocks
    from graphopt.passes.sparse.skip_zeros import SkipZeros as SkipZeros
    from graphopt.passes.training.differentiate import Differentiate as Differentiate
    from graphopt.passes.training.loss import Loss as Loss
    from graphopt.passes.training.masks import Masks as Masks
    from graphopt.passes.training.microbatch import Microbatch as Microbatch
    from graphopt.passes.training.mixed_precision import MixedPrecision as MixedPrecision
    from graphopt.passes.training.optimizer import Optimizer as Optimizer
    from graphopt.passes.training.relu_gradients import ReluGradients as ReluGradients
    from graphopt.passes.training.sparse.sparse_training import SparseTraining as SparseTraining

PASSES = {
    "hoist-branches": ("graphopt.passes.branches.hoist_branches", "HoistBranches"),
    "select-branches": ("graphopt.passes.branches.select_branches", "SelectBranches"),
    "normalize": ("graphopt.passes.normalize.normalize", "Normalize"),
    "fuse": ("graphopt.passes.fuse.fuse", "Fuse"),
    "batch-products": ("graphopt.passes.products.batch_products", "BatchProducts"),
    "flush-denormals": ("graphopt.passes.precision.flush_denormals", "FlushDenormals"),
    "join-products": ("graphopt.passes.products.join_products", "JoinProducts"),
    "lift-rows": ("graphopt.passes.conv.lift_rows", "LiftRows"),
    "quantized-moves": ("graphopt.passes.quantize.quantized_moves", "QuantizedMoves"),
    "quantized-products": ("graphopt.passes.quantize.quantized_products", "QuantizedProducts"),
    "cluster-sparse": ("graphopt.passes.sparse.cluster_sparse", "ClusterSparse"),
    "drop-blocks": ("graphopt.passes.sparse.drop_blocks", "DropBlocks"),
    "compress-columns": ("graphopt.passes.sparse.compress_columns", "CompressColumns"),
    "skip-zeros": ("graphopt.passes.sparse.skip_zeros", "SkipZeros"),
    "prune": ("graphopt.passes.prune.prune", "Prune"),
    "precision": ("graphopt.passes.precision.precision", "Precision"),
    "split-transposed": ("graphopt.passes.conv.split_transposed", "SplitTransposed"),
    "select-conv": ("graphopt.passes.conv.select_conv", "SelectConv"),
    "layout": ("graphopt.passes.layout.layout", "Layout"),
    "choose-tiles": ("graphopt.passes.products.choose_tiles", "ChooseTiles"),
    "microbatch": ("graphopt.passes.training.microbatch", "Microbatch"),
    "mixed-precision": ("graphopt.passes.training.mixed_precision", "MixedPrecision"),
    "optimizer": ("graphopt.passes.training.optimizer", "Optimizer"),
    "loss": ("graphopt.passes.training.loss", "Loss"),
    "differentiate": ("graphopt.passes.training.differentiate", "Differentiate"),
    "masks": ("graphopt.passes.training.masks", "Masks"),
    "relu-gradients": ("graphopt.passes.training.relu_gradients", "ReluGradients"),
    "sparse-training": ("graphopt.passes.training.sparse.sparse_training", "SparseTraining"),
}

DEFAULT = (
    "hoist-branches,normalize,quantized-moves,quantized-products,fuse,batch-products,flush-denormals,"
    "cluster-sparse,skip-zeros,lift-rows,split-transposed,select-conv,layout,masks,"
    "relu-gradients,choose-tiles"
)
"""The pipeline of `graphopt compile` when --passes is not given."""

_GPU = (
    "hoist-branches,select-branches,normalize,quantized-moves,quantized-products,fuse,batch-products,flush-denormals,"
    "join-products,cluster-sparse,lift-rows,select-conv{max-workspace=1GiB},layout,relu-gradients,choose-tiles"
)
DEFAULTS = {"cuda": _GPU, "opencl": _GPU}
"""The pipelines of targets that do not use `DEFAULT`."""

__all__ = [
    "DEFAULT",
    "DEFAULTS",
    "PASSES",
    "BatchProducts",
    "ChooseTiles",
    "ClusterSparse",
    "Differentiate",
    "DropBlocks",
    "CompressColumns",
    "FlushDenormals",
    "Fuse",
    "HoistBranches",
    "JoinProducts",
    "Layout",
    "LiftRows",
    "Microbatch",
    "MixedPrecision",
    "Loss",
    "Masks",
    "Normalize",
    "Optimizer",
    "Precision",
    "Prune",
    "QuantizedMoves",
    "QuantizedProducts",
    "ReluGradients",
    "SelectBranches",
    "SelectConv",
    "SkipZeros",
    "SparseTraining",
    "SplitTransposed",
]


def __getattr__(name: str) -> Any:
    """Load the class of a pass when it is first used."""
    for module, attribute in PASSES.values():
        if name == attribute:
            return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'graphopt.passes' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, also of passes that are not loaded."""
    return sorted(__all__)
