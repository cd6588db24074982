"""`graphopt cache`: the compiled code kept for later compilations."""

from __future__ import annotations

from typing import Annotated

import typer

from graphopt import disk_cache
from graphopt.report.document import Report, Table
from graphopt.report.units import nbytes

EXAMPLES = ("graphopt cache", "graphopt cache --clear")


def command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything; kernels are then compiled again.")] = False,
) -> Report:
    """Show the folders of compiled code, their sizes and bounds; what was not used for longest goes by itself."""
    folders = {"objects": disk_cache.objects(), "libraries": disk_cache.libraries()}
    rows, documents = [], []
    for name, cache in folders.items():
        usage = cache.clear() if clear else cache.usage()
        rows.append((name, str(usage.files), nbytes(usage.nbytes), nbytes(cache.limit), str(cache.folder)))
        documents.append(
            {
                "name": name,
                "folder": str(cache.folder),
                "files": usage.files,
                "bytes": usage.nbytes,
                "limit": cache.limit,
            }
        )
    columns = ("cache", "files removed" if clear else "files", "size", "at most", "folder")
    table = Table(columns, tuple(rows), right=("files removed", "files", "size", "at most"))
    return Report({"cleared": clear, "caches": documents}, [table])
