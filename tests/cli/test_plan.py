"""What `edgekit plan` says of the machine that it runs on."""

from __future__ import annotations

from pathlib import Path

from edgekit.cli.plan import notes_on_this_machine
from edgekit.export.planning.plan import plan_model
from edgekit.target import load_target
from tests.jetson.tree import write, write_nano
from tests.models import tiny_checkpoint


def test_on_the_jetson_that_is_planned_for_the_memory_available_now_is_noted(tmp_path: Path) -> None:
    checkpoint = str(tiny_checkpoint(tmp_path / "tiny"))
    planned = plan_model(checkpoint, load_target("orin-nano-8"))
    root = write_nano(tmp_path / "root")
    meminfo = "MemTotal: 7801405 kB\nMemAvailable: {} kB\nCmaFree: 0 kB\n"
    write(root, "proc/meminfo", meminfo.format(3 << 20))
    assert notes_on_this_machine(planned, root) == ("this machine has 3.00 GiB available now",)
    assert notes_on_this_machine(plan_model(checkpoint, load_target("orin")), root) == ()
    assert notes_on_this_machine(planned, tmp_path / "none") == ()
    write(root, "proc/meminfo", meminfo.format(102_400))
    write(root, "proc/7/comm", "Xorg")
    write(root, "proc/7/statm", "0 0 0 0 0 0 0")
    available, desktop = notes_on_this_machine(planned, root)
    assert available.startswith("this machine has 0.10 GiB available now, and ")
    assert available.endswith(" are needed")
    assert desktop.startswith("Xorg holds 0.0 GiB and more of it; to start without a desktop: sudo systemctl")
