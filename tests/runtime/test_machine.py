"""NVIDIA's GPUs, with a stub of the driver's library (NVML): detection and assignment."""

import importlib.metadata
import os
import sys
from types import ModuleType, SimpleNamespace

import mlflow
import pytest
import yaml

from pneumo.runtime.machine import visible_gpus
from pneumo.tracking import runs
from pneumo.tuning.launchers.local import worker_environment
from tests.support.commands import run_here
from tests.support.paths import ROOT
from tests.support.studies import until


class Driver(ModuleType):
    """NVML of a machine with so many GPUs; with None there is no driver."""

    class NVMLError(Exception):
        pass

    def __init__(self, count: int | None) -> None:
        super().__init__("pynvml")
        self.count, self.open = count, 0

    def nvmlInit(self):
        if self.count is None:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        assert self.open
        return self.count

    def nvmlDeviceGetHandleByIndex(self, number):
        return number

    def nvmlDeviceGetMemoryInfo(self, number):
        return SimpleNamespace(used=2e6 * (1 + number), total=8e6)

    def nvmlDeviceGetUtilizationRates(self, number):
        return SimpleNamespace(gpu=40 + number)

    def nvmlDeviceGetPowerUsage(self, number):
        return 100_000

    def nvmlDeviceGetEnforcedPowerLimit(self, number):
        return 400_000


@pytest.fixture
def driver(request, monkeypatch) -> Driver:
    """Install the driver of a machine with two GPUs, or as many as a test needs."""
    driver = Driver(getattr(request, "param", 2))
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


@pytest.mark.parametrize(
    ("driver", "visible", "found"),
    [
        (3, None, ["0", "1", "2"]),
        (0, None, []),
        (None, None, []),
        (3, "2,0", ["2", "0"]),
        (3, "", []),
        (3, "-1", []),
        (None, "GPU-8932f937-d72c", ["GPU-8932f937-d72c"]),
    ],
    indirect=["driver"],
)
def test_gpus_are_what_the_driver_lists(driver, monkeypatch, visible, found):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == found
    assert driver.open == 0


def test_the_package_that_finds_gpus_is_pinned():
    packages = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert f"nvidia-ml-py=={importlib.metadata.version('nvidia-ml-py')}" in packages


def test_each_worker_has_one_gpu(driver):
    assert [worker_environment(number, 4)["CUDA_VISIBLE_DEVICES"] for number in range(4)] == [
        "0",
        "1",
        "0",
        "1",
    ]


@pytest.mark.parametrize(
    ("command", "options", "refusal"),
    [
        ("tune", "--workers 2", ""),
        (
            "tune",
            "--workers 5",
            "--workers must be at most 2 with 2 GPU(s) and --workers_per_gpu 1: got 5. Use fewer "
            "workers, or --workers_per_gpu 3, or set CUDA_VISIBLE_DEVICES=-1 to use no GPU.",
        ),
        ("tune", "--workers 5 --workers_per_gpu 2", "workers must be at most 4 with 2 GPU"),
        ("tune", "--workers 5 --workers_per_gpu 3", ""),
        ("tune", "--workers 5 --launcher ray", ""),
        ("worker", "--study night --workers 3", "workers must be at most 2 with 2 GPU"),
        ("worker", "--study night --workers 3 --workers_per_gpu 2", ""),
    ],
)
def test_more_workers_than_gpus(driver, monkeypatch, tmp_path, command, options, refusal):
    monkeypatch.chdir(tmp_path)
    refusal = refusal or "data must be sample, mendeley, a folder"  # which is found next
    code, output, errors = run_here(command, "--data", "nowhere", *options.split())
    assert (code, output) == (2, "")
    assert refusal in errors
    assert errors.count("\n") == 1
    assert os.listdir() == []  # no run was made


@pytest.mark.parametrize("driver", [0, None], indirect=True)
def test_without_gpus_any_number_of_workers_may_run(driver):
    code, _, errors = run_here("tune", "--data", "nowhere", "--workers", "64")
    assert (code, "'nowhere' does not exist" in errors) == (2, True)


def test_a_study_logs_how_busy_its_gpus_are(driver, store, monkeypatch):
    from mlflow.system_metrics.metrics import gpu_monitor

    monkeypatch.setattr(gpu_monitor, "pynvml", driver)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")

    def logged() -> dict[str, float]:
        return mlflow.get_run(run_id).data.metrics

    with runs.command_run("study", "", {}, system_metrics=True) as run_id:
        until(lambda: "system/gpu_1_power_usage_percentage" in logged())
    found = {name: value for name, value in logged().items() if name.startswith("system/gpu_")}
    assert found == {
        f"system/gpu_{number}_{name}": value
        for number in range(2)
        for name, value in {
            "memory_usage_percentage": 25.0 * (1 + number),
            "memory_usage_megabytes": 2.0 * (1 + number),
            "utilization_percentage": 40 + number,
            "power_usage_watts": 100.0,
            "power_usage_percentage": 25.0,
        }.items()
    }
