"""The GPUs of this machine."""

import math
import os

from pneumo.runtime.errors import UserError


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them.

    Without that variable, NVIDIA's driver (NVML) lists them. NVML does not need `/proc`, which WSL2
    does not fill, and unlike TensorFlow it takes no GPU memory.
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is not None:
        return [name.strip() for name in variable.split(",") if name.strip() not in ("", "-1")]
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, and so no GPU
        return []
    try:
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def require_gpus(workers: int, workers_per_gpu: int) -> None:
    """Raise `UserError` if workers would share a GPU and the user has not allowed it.

    Args:
        workers: Worker processes of this command that run at the same time.
        workers_per_gpu: Workers that may share one GPU. Without GPUs any number of workers may run.

    Raises:
        UserError: There are more workers than the GPUs may have.
    """
    gpus = visible_gpus()
    if gpus and workers > len(gpus) * workers_per_gpu:
        raise UserError(
            f"--workers must be at most {len(gpus) * workers_per_gpu} with {len(gpus)} GPU(s) "
            f"and --workers_per_gpu {workers_per_gpu}: got {workers}. Use fewer workers, or "
            f"--workers_per_gpu {math.ceil(workers / len(gpus))}, or set CUDA_VISIBLE_DEVICES=-1 "
            "to use no GPU."
        )
