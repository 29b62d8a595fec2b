"""Device, precision, workers and memory of this machine."""

import os
import resource
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from quintet.errors import InputError
from quintet.params.common import Compute, Precision

LIGHTNING_PRECISION = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}


def resolve_device(device: str) -> str:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in ("auto", *available):
        raise InputError(f"device {device!r}: choose auto, {', '.join(available)}")
    if device != "auto":
        if not available[device]:
            raise InputError(f"device {device}: not available on this machine or in this torch; use auto or cpu")
        return device
    return "cuda" if available["cuda"] else "cpu"  # mps has no float64, which evaluation computes in


def resolve_precision(precision: Precision, device: str) -> Precision:
    """`auto`: bfloat16 where the hardware computes in it, float16 with loss scaling on other GPUs, else float32 (on a CPU without
    bfloat16 instructions autocast is emulated and several times slower). Raises InputError for float16 on a CPU."""
    if precision == "auto":
        if device == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else 16
        return "bf16" if device == "cpu" and cpu_computes_bf16() else 32
    if precision == 16 and device == "cpu":
        raise InputError("precision=16 needs a GPU: float16 has no fast path on the CPU; use auto, bf16 or 32")
    return precision


def resolve_workers(workers: str | int, device: str) -> int:
    """Number of processes that prepare batches. `auto`: 8 to feed a GPU; none on a CPU, where training needs all cores."""
    return int(workers) if workers != "auto" else 8 if device == "cuda" else 0


def cpu_computes_bf16() -> bool:
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capability.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "amx_tile"))


def compile_network(net: nn.Module, compute: Compute) -> None:
    """Let torch compile the network if `compute.compile` asks for it; its state dict stays the same. Raises InputError on a CPU
    without a C++ compiler, which torch would only miss in the first step."""
    if compute.compile == "none":
        return
    if resolve_device(compute.device) == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError(f"compute.compile={compute.compile} needs a C++ compiler: install g++, or set compute.compile to none")
    net.compile(mode=compute.compile)


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage also counts the peak inherited from the parent
        high = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return float(high.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
