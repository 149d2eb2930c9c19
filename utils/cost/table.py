"""The benchmark's figures as text, and a description of the machine for its JSON.

The table is printed by f-strings: `tabulate` would be one more requirement for three tables in this project, and the
columns must stay equal byte for byte.
"""

import platform

import torch


def format_cost_table(rows, ratios, parts) -> str:
    """The rows and ratios of `measure_steps` and the components (`parts`) of `measure_components` as text."""
    lines = [f"{'':<22}{'images/s':>10}{'ms/step':>10}{'s/epoch':>10}{'peak MB':>9}{'GFLOP/step':>12}"
             f"{'GFLOP/s':>10}{'of matmul':>10}"]
    for r in rows:
        peak = "-" if r["peak_memory_bytes"] is None else f"{r['peak_memory_bytes'] / 1e6:.0f}"
        lines.append(
            f"{r['objective']:<7}{r['rendering']:<10}{r['precision']:<5}{r['images_per_s']:>10.1f}"
            f"{r['ms_per_step']:>10.2f}{r['s_per_epoch']:>10.1f}{peak:>9}{r['flop_per_step'] / 1e9:>12.2f}"
            f"{r['flop_per_s'] / 1e9:>10.1f}{100 * r['fraction_of_matmul']:>9.1f}%"
        )
    if ratios:
        lines.append("times as fast as the official rendering: "
                     + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    for p in parts:
        lines.append(f"{p['precision']:<5}{p['component']:<13}{p['ms_per_step']:>10.2f} ms {100 * p['share']:>6.1f}%")
    return "\n".join(lines)


def describe_machine(settings, device) -> dict:
    """Device, number of threads, version of torch and settings, for the JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": str(device), "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "tf32": torch.backends.cudnn.allow_tf32, "settings": vars(settings)}
