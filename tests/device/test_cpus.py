"""CPUs that a process may use: recorded control groups of both versions, and a real affinity."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_bundles import dense_graph, toy_table, write_bundle

from stonnx import UnsupportedError
from stonnx._bundle.bundle import open_bundle
from stonnx._device import cpus as cpus_module
from stonnx._device.cpus import CpuLimits, available_cpus, cpu_limits
from stonnx._engine.engine import Engine

# What /proc/self/cgroup, /proc/self/mountinfo and the files of the groups say: (files, cpuset, quota).
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "24 23 0:21 / /sys rw,nosuid - sysfs sysfs rw\n"
    "33 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:31 {root} /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
)
TREES: dict[str, tuple[dict[str, str], int | None, float | None]] = {
    "no control groups": ({}, None, None),
    "v2, a container that sees its group as the root": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/cpuset.cpus.effective": "0-3,8\n",
        },
        5,
        2.0,
    ),
    "v2, a unit of systemd: its own group has no limit, the slice above has": (
        {
            "proc/self/cgroup": "0::/system.slice/search.service\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/system.slice/search.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/search.service/cpuset.cpus.effective": "0-63\n",
            "sys/fs/cgroup/system.slice/cpu.max": "75000 50000\n",
        },
        64,
        1.5,
    ),
    "v2, the smaller of two limits is the inner one": (
        {
            "proc/self/cgroup": "0::/pods/pod1\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pods/pod1/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/pods/cpu.max": "400000 100000\n",
        },
        None,
        0.5,
    ),
    "v2, a group beside the own one": (
        {
            "proc/self/cgroup": "0::/pods/pod1\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pods/pod2/cpu.max": "50000 100000\n",
        },
        None,
        None,
    ),
    "v2, a path outside of what is mounted": (
        {
            "proc/self/cgroup": "0::/../pod2/sidecar\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "300000 100000\n",
        },
        None,
        3.0,
    ),
    "v2, without a period": (
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/cpu.max": "max\n"},
        None,
        None,
    ),
    "v2, empty files": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "",
            "sys/fs/cgroup/cpuset.cpus.effective": "\n",
        },
        None,
        None,
    ),
    "v2, files that nobody knows": (
        {
            "proc/self/cgroup": "0::/\nnothing\n",
            "proc/self/mountinfo": V2_MOUNT + "garbage\n\n",
            "sys/fs/cgroup/cpu.max": "100000 0\n",
            "sys/fs/cgroup/cpuset.cpus.effective": "all\n",
        },
        None,
        None,
    ),
    "v2, mounted at a path with a blank": (
        {
            "proc/self/cgroup": "0::/a b\n",
            "proc/self/mountinfo": "30 23 0:26 / /control\\040groups rw - cgroup2 cgroup2 rw\n",
            "control groups/a b/cpu.max": "100000 100000\n",
        },
        None,
        1.0,
    ),
    "v1, the groups of a container mounted as the root": (
        {
            "proc/self/cgroup": "5:cpuset:/docker/f00\n4:cpu,cpuacct:/docker/f00\n1:name=systemd:/docker/f00\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/docker/f00"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "2,4\n",
            "sys/fs/cgroup/cpuset/cpuset.effective_cpus": "2\n",
        },
        1,
        3.0,
    ),
    "v1, the whole hierarchy mounted": (
        {
            "proc/self/cgroup": "5:cpuset:/\n4:cpuacct,cpu:/docker/f00\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/f00/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/f00/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7\n",
        },
        8,
        1.5,
    ),
    "v1, without a limit": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        None,
        None,
    ),
    "v1, a quota without a period": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        },
        None,
        None,
    ),
    "both: the quota in v1, the rest in v2": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/job\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/")
            + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/unified/job/cpuset.cpus.effective": "0-1\n",
        },
        2,
        1.0,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_recorded_control_groups(name: str, tmp_path: Path) -> None:
    files, cpuset, quota = TREES[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content, encoding="ascii")
    limits = cpu_limits(tmp_path)
    assert (limits.cpuset, limits.quota) == (cpuset, quota)


@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        (CpuLimits(8, None, None), 8),
        (CpuLimits(8, 4, None), 4),
        (CpuLimits(8, None, 2.0), 2),
        (CpuLimits(8, 4, 1.5), 2),
        (CpuLimits(8, 1, 1.5), 1),
        (CpuLimits(8, None, 0.5), 1),
        (CpuLimits(2, 64, 16.0), 2),
        (CpuLimits(0, None, None), 1),
    ],
    ids=str,
)
def test_the_smallest_limit_counts(limits: CpuLimits, cpus: int) -> None:
    assert limits.cpus == cpus


def test_systems_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # macOS and Windows have none, and no control groups.
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert cpu_limits(tmp_path) == CpuLimits(6, None, None)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cpu_limits(tmp_path).cpus == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_pinned_to_one_cpu(minilm_bundle: Path) -> None:
    """As ``taskset`` or ``docker --cpuset-cpus``: one thread, and no complaint of onnxruntime's about affinity."""
    program = f"""
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from stonnx import SentenceTransformer
model = SentenceTransformer({str(minilm_bundle)!r})
print(model.info.threads, model.encode("a text").shape)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "1 (384,)\n"
    assert result.stderr == ""


def test_this_machine() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    assert cpus_module.cpu_name()
    assert set(cpus_module.cpu_features()) <= set(cpus_module._FEATURES)


# --- what a bundle needs ---


def needing(directory: Path, *features: str) -> Path:
    graphs = {"default": dense_graph(toy_table(8, 5))}
    return write_bundle(directory, graphs, task="embedding", embedding_dimension=8, requires_cpu_features=features)


def test_a_bundle_for_other_cpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus_module, "_flags", lambda: frozenset({"avx2", "fma"}))
    monkeypatch.setattr(cpus_module, "cpu_name", lambda: "Some CPU")
    bundle = needing(tmp_path / "bundle", "avx2", "avx512_vnni", "amx_int8")
    with pytest.raises(UnsupportedError) as error:
        Engine(open_bundle(bundle))
    assert str(error.value) == (
        f"The bundle {bundle} was made for CPUs with avx2, avx512_vnni, amx_int8, and this one (Some CPU) has no "
        "avx512_vnni, amx_int8: it would compute something else. Use a machine that has it, or export a bundle for "
        "every CPU: stonnx export MODEL --dtype fp32"
    )


@pytest.mark.parametrize("flags", [{"avx2", "fma", "sse2"}, set()], ids=["all there", "not listed by the system"])
def test_a_bundle_that_this_cpu_runs(flags: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fma is none of the features that are told: what counts is the kernel's whole list.
    monkeypatch.setattr(cpus_module, "_flags", lambda: frozenset(flags))
    Engine(open_bundle(needing(tmp_path / "bundle", "avx2", "fma")))
