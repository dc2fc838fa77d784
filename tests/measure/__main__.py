"""Print every figure beside its aim. The exit code is 1 if an aim is missed."""

from __future__ import annotations

import argparse
import logging
import sys

from .code import measure_code, measure_tests
from .figures import print_figures
from .imports import measure_imports
from .requests import measure_requests


def main() -> int:
    """Measure the package as it lies in the repository."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure", description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="name what is counted")
    verbose = parser.parse_args().verbose
    logging.disable(logging.CRITICAL)
    blocks = [
        ("Size", [*measure_code(), measure_tests()]),
        ("Shape", list(measure_imports())),
        *measure_requests(),
    ]
    missed = [print_figures(title, figures, verbose=verbose) for title, figures in blocks]
    print("\nAims missed." if any(missed) else "\nAll aims are met.")
    return int(any(missed))


sys.exit(main())
