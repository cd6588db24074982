"""What graphopt raises: every message is one sentence that names the node, file or flag and says what to do."""


class GraphoptError(Exception):
    """Base of all errors a user can cause; the command line prints its message and exits with 1."""


class ModelError(GraphoptError):
    """The model cannot be read, is not valid ONNX, or uses something graphopt does not accept."""


class FeedError(GraphoptError):
    """An input fed to a program is missing, unknown, or has another shape or dtype than the program's."""


class PipelineError(GraphoptError):
    """A pipeline spelling names an unknown pass or option, or a pass broke the model."""


class UnsupportedError(GraphoptError):
    """Nodes that no target can lower were met where fallback is forbidden."""


class VerificationError(GraphoptError):
    """Two models, or a model and its program, gave different numbers."""


class ArtifactError(GraphoptError):
    """An artifact is damaged, was changed after it was written, or was built for another machine."""


class RankError(GraphoptError):
    """A rank of a distributed program failed or was lost; names the rank, its stage and the action."""


class SolverError(GraphoptError):
    """A problem has no solution within its limits."""
