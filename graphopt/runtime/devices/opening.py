"""Opens the device that an artifact was built for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.errors import ArtifactError
from graphopt.runtime.devices.device import DEVICES, Device, target_of


def open_device(manifest: Mapping[str, Any]) -> Device:
    """The device on this machine that runs programs with this manifest.

    Raises:
        GraphoptError: there is no such device, or its Python package is not installed.
        ArtifactError: the target is none of `DEVICES`.
    """
    target = target_of(manifest)
    if target.get("name") not in DEVICES:
        raise ArtifactError(f"the artifact is for {str(target.get('name'))[:40]}, which is no device known here")
    return open_any(str(target["name"]), str(target.get("gpu")))


def open_any(name: str, arch: str | None = None) -> Device:
    """The device on this machine for a target of `DEVICES`; for CUDA, one that runs code for `arch`.

    Raises:
        GraphoptError: there is no such device, or its Python package is not installed.
        ArtifactError: the device cannot run code for `arch`.
    """
    if name == "cuda":
        from graphopt.runtime.devices.cuda import CudaDevice

        return CudaDevice(arch)
    from graphopt.runtime.devices.opencl import OpenClDevice

    return OpenClDevice()
