"""The power of a machine from the counters of Linux."""

from benchmarks.lib.energy import EnergyMeter, watts


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def test_a_processors_counter_gives_joules_a_second_also_across_its_end(tmp_path, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr("benchmarks.lib.energy.time.monotonic", lambda: now_s)
    package, core = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:0:0"
    put(package, energy_uj=999_000_000, max_energy_range_uj=999_999_999)
    put(core, energy_uj=0, max_energy_range_uj=999_999_999)
    meter = EnergyMeter(rapl=tmp_path, sensors=tmp_path / "none")
    now_s = 104.0
    put(package, energy_uj=19_000_000)
    put(core, energy_uj=500_000_000)
    assert meter.stop() == 5.0


def test_a_jetsons_supply_is_voltage_times_current_of_the_whole_module(tmp_path):
    put(tmp_path / "hwmon0", name="cpu_thermal", temp1_input=40_000)
    put(tmp_path / "hwmon1", in1_label="VDD_CPU", in1_input=5000, curr1_input=9000)
    put(tmp_path / "hwmon1", in2_label="VDD_IN", in2_input=5000, curr2_input=1400)
    assert EnergyMeter(rapl=tmp_path / "none", sensors=tmp_path, period_s=0.01).stop() == 7.0


def test_a_machine_without_counters_has_no_power(tmp_path):
    assert EnergyMeter(rapl=tmp_path, sensors=tmp_path).stop() is None
    assert (watts(None), watts(7.04)) == ("not available", "7.0 W")
