"""What this machine computes on and in: device, precision, threads, memory."""

import resource
import sys
from pathlib import Path

import torch

from quintet.errors import InputError


def resolve_device(device: str) -> str:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in ("auto", *there):
        raise InputError(f"device {device!r}: allowed are auto, {', '.join(there)}")
    if device != "auto":
        if not there[device]:
            raise InputError(f"device {device}: this machine or this torch has none; use auto or cpu")
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(precision: str | int, device: str) -> str:
    """Lightning's name of the precision. `auto`: bfloat16 where the hardware computes in it, float16 with loss scaling on other
    GPUs, else float32 (on a CPU without bfloat16 instructions autocast is emulated and several times slower)."""
    named = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}
    if str(precision) != "auto":
        if str(precision) == "16" and device == "cpu":
            raise InputError("precision=16 needs a GPU: float16 has no fast path on the CPU; use auto, bf16 or 32")
        return named[str(precision)]
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device == "cpu" and cpu_computes_bf16():
        return "bf16-mixed"
    return "32-true"


def resolve_workers(workers: str | int, device: str) -> int:
    """Processes beside this one that prepare batches. `auto`: 8 to feed a GPU; on a CPU none, as training needs its cores."""
    return int(workers) if workers != "auto" else 8 if device == "cuda" else 0


def cpu_computes_bf16() -> bool:
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capability.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "amx_tile"))


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure starts at what the process that started this one had
        high = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return float(high.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
