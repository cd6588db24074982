"""Train the perceptron for 8 x 8 digits and rewrite its committed files: `python -m graphopt.models.train_mlp_digits`.

The same digits, split and recipe as the LeNet's (`train_lenet`); its layers are large enough to be pruned in blocks.
"""

from __future__ import annotations

import sys

from graphopt.models.mlp import mlp_digits
from graphopt.models.samples import TRAINED
from graphopt.models.train_lenet import write_network

NAME = "mlp-digits"


def main() -> int:
    """Rewrite the committed files and say what came out."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        sys.stderr.write("training needs scikit-learn for its digits; install it with `pip install graphopt[test]`.\n")
        return 1
    record = write_network(TRAINED, NAME, mlp_digits, split=False)
    sys.stdout.write(f"{NAME}: test accuracy {record['test_accuracy']:.4%} on {record['test_images']} images\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
