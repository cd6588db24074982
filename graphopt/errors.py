"""The exceptions of graphopt: every message is one sentence that names the node, file or flag and the remedy."""


class GraphoptError(Exception):
    """Base of all errors a user can cause; the command line prints its message and exits with 1."""


class ModelError(GraphoptError):
    """The model cannot be read, is not valid ONNX, or uses something graphopt does not accept."""


class FeedError(GraphoptError):
    """An input of a program is missing, unknown, or has another shape or dtype than declared."""


class PipelineError(GraphoptError):
    """A pipeline spelling names an unknown pass or option, or a pass broke the model."""


class UnsupportedError(GraphoptError):
    """The model has nodes that no target can lower, and fallback is forbidden."""


class CodegenError(GraphoptError):
    """No code can be generated for a node or a kernel; carries the code generator's own words."""


class VerificationError(GraphoptError):
    """Two models, or a model and its program, computed different outputs."""


class ArtifactError(GraphoptError):
    """An artifact or a compressed model is damaged or was changed, or an artifact was built for another machine."""


class RankError(GraphoptError):
    """A rank of a distributed program failed or was lost; names the rank, its stage and the action."""


class SolverError(GraphoptError):
    """A problem has no solution within its limits."""


class Interrupted(GraphoptError):
    """Ctrl-C or SIGTERM stopped long work in an orderly way; says how to go on. The command line exits with 130."""


class DifferentiationError(GraphoptError):
    """A model has no loss that can be differentiated, or operators without a gradient; names all of them at once."""
