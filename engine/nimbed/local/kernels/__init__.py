"""Fused elementwise kernels for CUDA, written in Triton, and the check that they may be used.

Every kernel has a plain torch form beside its caller, which runs wherever these do not: on the
CPU, without triton, or on a device where the self-test disagrees.
"""

from __future__ import annotations

import functools
import logging

import torch

__all__ = ["usable"]

_log = logging.getLogger("nimbed")


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether the kernels run on a device and agree with torch there; tried once a process."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from nimbed.local.kernels.selftest import disagreement
    except ImportError:
        return False  # torch for Windows, among others, comes without triton
    try:
        with torch.cuda.device(device), torch.inference_mode():
            wrong = disagreement(device)
    except Exception as error:  # a compiler, driver or launch that fails in whatever way
        wrong = f"they fail ({type(error).__name__}: {str(error)[:200]})"
    if wrong:
        _log.warning("fused kernels are not used on %s: %s; torch's own run instead", device, wrong)
    return not wrong
