"""One form of results for all suites, and what is watched while they are measured."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import processes
from benchmarks.measuring import clocks, schema
from benchmarks.measuring.environment import HERE, describe
from benchmarks.measuring.schema import Results, Row, SchemaError

CPU = torch.device("cpu")


def results(samples=((1.0, 3.0, 2.0),), **changes):
    row = Row("double, large", "ours", samples, work={"flops": 1.0}, **changes)
    return Results("ops", describe(CPU, "ops"), (row,), {"notes": ["none"]})


def test_what_is_written_is_read(tmp_path):
    written = results(((1.0, 3.0, 2.0), (5.0, 4.0)), unfit="too warm")
    schema.write(written, tmp_path / "r.json")
    read = schema.read(tmp_path / "r.json")
    assert read.rows == written.rows
    assert read.details == written.details
    assert read.environment == written.environment


def test_a_row_says_what_follows_from_its_samples():
    entry = results(((1.0, 3.0, 2.0), (5.0, 4.0))).to_document()["rows"][0]
    assert entry["median"] == 3.25
    assert entry["min"] == 1
    assert entry["quantiles"]["0.25"] == 2
    assert entry["interval"]["processes"] == 2
    assert entry["interval"]["low"] <= 3.25 <= entry["interval"]["high"]


def test_the_environment_is_complete():
    assert set(schema.ENVIRONMENT) <= set(describe(CPU))


@pytest.mark.parametrize("file", sorted((HERE / "results").glob("*.json")), ids=lambda file: file.name)
def test_stored_results_are_of_this_form(file):
    assert schema.read(file).rows


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda d: d.update(schema=0), "expected results of schema 1; got 0"),
        (lambda d: d["environment"].pop("driver"), "the environment lacks driver"),
        (lambda d: d["rows"][0].pop("unit"), "a field is missing: 'unit'"),
        (lambda d: d["rows"][0].update(samples=[[]]), "expected samples"),
        (lambda d: d.pop("rows"), "a field is missing: 'rows'"),
    ],
)
def test_another_form_is_refused(tmp_path, change, message):
    document = json.loads(json.dumps(results().to_document()))
    change(document)
    file = tmp_path / "r.json"
    file.write_text(json.dumps(document))
    with pytest.raises(SchemaError, match=message):
        schema.read(file)


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(SchemaError, match="expected JSON"):
        schema.read(tmp_path / "r.json")


def test_processes_are_merged():
    whole = schema.merge([results(((1.0,),)), results(((2.0,),), unfit="noise")])
    assert whole.rows[0].samples == ((1.0,), (2.0,))
    assert whole.rows[0].unfit == "noise"
    counted = schema.merge([results(((7.0,),), tolerance=0.0)] * 3)
    assert counted.rows[0].samples == ((7.0,),)


def test_a_row_that_a_process_lacks_is_named():
    whole = schema.merge([results(), Results("ops", {}, ())])
    assert whole.rows == ()
    assert whole.details["incomplete"] == ["double, large / ours"]


def test_a_process_that_fails_is_no_result():
    with pytest.raises(RuntimeError, match="process 1 of 2 ended with exit code"):
        processes.run_in_processes("no_such_suite", [], 2)
    assert processes.main(["two"]) == 2


# ------------------------------------------------------------------------------------------------------------- clocks


class NotSupported(Exception):
    pass


def fake_nvml(mhz, reasons=(), millijoules=(0,)):
    """A library whose SM clock takes the given values in turn and then stays; likewise the energy, None: an error."""
    left, why, energy = list(mhz), list(reasons) or [0], list(millijoules)

    def take(values):
        return values.pop(0) if len(values) > 1 else values[0]

    def consumed(handle):
        value = take(energy)
        if value is None:
            raise NotSupported
        return value

    return SimpleNamespace(
        NVMLError=NotSupported,
        nvmlDeviceGetTotalEnergyConsumption=consumed,
        NVML_CLOCK_SM=0,
        NVML_CLOCK_MEM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksThrottleReasonGpuIdle=1,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksThrottleReasonHwThermalSlowdown=64,
        nvmlClocksThrottleReasonAll=69,
        nvmlDeviceGetClockInfo=lambda handle, clock: take(left) if clock == 0 else 2000,
        nvmlDeviceGetPowerUsage=lambda handle: 500_000,
        nvmlDeviceGetTemperature=lambda handle, sensor: 60,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=10**9),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: take(why),
    )


def watched(monkeypatch, samples, *arguments):
    monkeypatch.setattr(clocks, "PERIOD", 1e-4)
    with clocks.Watch(CPU, fake_nvml(*arguments), handle="gpu") as watch:
        while len(watch.samples) < samples:
            pass
    return watch


def test_a_steady_clock_is_fit(monkeypatch):
    watch = watched(monkeypatch, 5, [1900, 1890, 1900], [4])
    assert watch.unfit() is None
    summary = watch.summary()
    assert summary["sm_mhz"] == [1890, 1900]
    assert summary["throttle_reasons"] == ["SwPowerCap"]
    assert summary["watts"] == [500, 500]


def test_a_clock_that_moves_is_unfit(monkeypatch):
    assert "moved from 1500 to 1900 MHz, 21.1%" in watched(monkeypatch, 5, [1900, 1500]).unfit()


def test_heat_is_unfit(monkeypatch):
    assert watched(monkeypatch, 5, [1900], [0, 64, 0]).unfit() == "throttled: HwThermalSlowdown"


def test_an_idle_gpu_is_not_judged(monkeypatch):
    assert watched(monkeypatch, 5, [200, 1900], [1, 0]).unfit() is None
    assert watched(monkeypatch, 5, [200], [1]).summary() is None


def test_energy_is_that_of_the_time_watched(monkeypatch):
    assert watched(monkeypatch, 1, [1900], [4], [5_000, 255_000]).joules is None  # too short for the counter's steps
    monkeypatch.setattr(clocks, "METERED", 0.0)
    assert watched(monkeypatch, 1, [1900], [4], [5_000, 255_000]).joules == 250
    assert watched(monkeypatch, 1, [1900], [4], [None]).joules is None


def refuses(*_):
    raise NotSupported("not supported")


def test_a_reading_that_the_driver_lacks_costs_itself_alone(monkeypatch):
    nvml = fake_nvml([1900])
    nvml.nvmlDeviceGetTemperature = refuses
    monkeypatch.setattr(clocks, "PERIOD", 1e-4)
    with clocks.Watch(CPU, nvml, handle="gpu") as watch:
        while len(watch.samples) < 3:
            pass
    assert watch.summary()["watts"] == [500, 500]
    assert "celsius" not in watch.summary()
    assert watch.unfit() is None


@pytest.mark.parametrize("name", ["nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksThrottleReasons"])
def test_without_its_clock_nothing_is_said_of_a_gpu(name, monkeypatch):
    nvml = fake_nvml([1900])
    setattr(nvml, name, refuses)
    monkeypatch.setattr(clocks, "PERIOD", 1e-4)
    with clocks.Watch(CPU, nvml, handle="gpu") as watch:
        while len(watch.samples) < 3:
            pass
    assert watch.summary() is None
    assert watch.unfit() is None


def test_a_gpu_that_nvml_does_not_know_is_not_watched(monkeypatch):
    """A slice of one, say, whose number is no whole GPU's."""
    nvml = fake_nvml([1900])
    nvml.nvmlDeviceGetHandleByUUID = refuses
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2-3"))
    monkeypatch.setattr(clocks, "library", lambda: nvml)
    cuda = torch.device("cuda")
    assert clocks.describe(cuda) is None
    with clocks.Watch(cuda) as watch:
        pass
    assert watch.summary() is None
    assert watch.joules is None


def test_a_cpu_has_no_clocks():
    with clocks.Watch(CPU) as watch:
        pass
    assert watch.summary() is None
    assert watch.unfit() is None
    assert watch.joules is None


def test_a_busy_machine_is_unfit():
    assert clocks.unfit_by_load(None) is None
    assert clocks.unfit_by_load(0.1) is None
    assert clocks.unfit_by_load(1.5) == "other processes kept 1.50 CPUs busy; at most 0.25"
