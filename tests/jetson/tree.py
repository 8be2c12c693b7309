"""Writes the files of /proc, /sys, /etc and /var that a Jetson has, as its kernel and JetPack write them."""

from __future__ import annotations

from pathlib import Path

NANO = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
NANO_MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
AGX = "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0"
AGX_MODEL = "NVIDIA Jetson AGX Orin Developer Kit\0"

NANO_MODES = """# comment
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
< PM_CONFIG DEFAULT=1 >
"""
NANO_RAILS = {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (4992, 400), "VDD_SOC": (4992, 300)}
AGX_RAILS = {"VDD_GPU_SOC": (19_800, 500), "VDD_CPU_CV": (19_800, 100), "VIN_SYS_5V0": (5000, 1000)}


def write(root: Path, path: str, content: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}\n" if not str(content).endswith(("\0", "\n")) else str(content))
    return file


def write_board(root: Path, model: str = NANO_MODEL, compatible: str = NANO) -> None:
    write(root, "proc/device-tree/model", model)
    write(root, "proc/device-tree/compatible", compatible)


def write_release(root: Path, release: str = "36.4.7") -> None:
    major, _, revision = release.partition(".")
    line = f"# R{major} (release), REVISION: {revision}, GCID: 42132812, BOARD: generic, EABI: aarch64"
    write(root, "etc/nv_tegra_release", line)


def write_power_mode(root: Path, number: int = 1, modes: str = NANO_MODES) -> None:
    write(root, "etc/nvpmodel.conf", modes)
    write(root, "var/lib/nvpmodel/status", f"pmode:{number:04d}")


def write_gpu(root: Path, *, load: object = 995, clock: int = 918_000_000, node: str = "gpu") -> None:
    """The GPU in devfreq; `node` is its name in the device tree."""
    device = f"sys/devices/platform/bus@0/17000000.{node}"
    write(root, f"{device}/load", load)
    write(root, f"{device}/of_node/name", f"{node}\0")
    write(root, f"{device}/devfreq/17000000.{node}/cur_freq", clock)
    write(root, f"{device}/devfreq/17000000.{node}/max_freq", 1_020_000_000)
    link = root / f"sys/class/devfreq/17000000.{node}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../../devices/platform/bus@0/17000000.{node}/devfreq/17000000.{node}")
    (root / f"{device}/devfreq/17000000.{node}/device").symlink_to("../..")
    write(root, "sys/class/devfreq/13e00000.host1x/device/of_node/name", "host1x\0")


def write_zone(root: Path, number: int, name: str, millicelsius: object) -> None:
    write(root, f"sys/class/thermal/thermal_zone{number}/type", name)
    write(root, f"sys/class/thermal/thermal_zone{number}/temp", millicelsius)


def write_cooling(root: Path, number: int, name: str, state: object) -> None:
    write(root, f"sys/class/thermal/cooling_device{number}/type", name)
    write(root, f"sys/class/thermal/cooling_device{number}/cur_state", state)


def write_rails(root: Path, rails: dict[str, tuple[int, int]], number: int = 1) -> Path:
    """An INA3221: millivolts and milliamperes by label."""
    folder = root / f"sys/class/hwmon/hwmon{number}"
    write(folder, "name", "ina3221")
    for channel, (label, (voltage, current)) in enumerate(rails.items(), 1):
        write(folder, f"in{channel}_label", label)
        write(folder, f"in{channel}_input", voltage)
        write(folder, f"curr{channel}_input", current)
        write(folder, f"curr{channel}_crit_alarm", 0)
    # The fourth voltage has no current: it is a sum.
    write(folder, "in7_label", "sum of shunt voltages")
    write(folder, "in7_input", 3)
    return folder


def write_nano(root: Path) -> Path:
    """A whole Orin Nano developer kit with JetPack 6.2.1 in its 25 W mode, at work."""
    write_board(root)
    write_release(root)
    write_power_mode(root)
    write_gpu(root)
    write_zone(root, 0, "cpu-thermal", 51_250)
    write_zone(root, 1, "gpu-thermal", 52_500)
    write_zone(root, 2, "cv0-thermal", -256_000)
    write_cooling(root, 0, "pwm-fan", 3)
    write_cooling(root, 1, "gpu-throttle-alert", 0)
    write_rails(root, NANO_RAILS)
    write(root, "sys/class/hwmon/hwmon2/name", "soctherm_oc")
    for event, count in (("oc1", 0), ("oc2", 0), ("oc3", 27)):
        write(root, f"sys/class/hwmon/hwmon2/{event}_event_cnt", count)
    return root
