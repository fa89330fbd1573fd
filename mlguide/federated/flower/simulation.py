"""Flower's simulation engine: every phone a node, all of them on this machine's cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mlguide.federated.client import Weights
from mlguide.federated.flower.apps import Job, client_app, load_result, save_phones, server_app

__all__ = ["QUIET", "simulate"]

# Nothing is reported to anybody, looked up or installed while a job runs.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def simulate(
    job: Job, phones: Mapping[int, tuple[Tensor, Tensor]], *, timeout: float = 600
) -> tuple[Weights, list[dict[str, Any]]]:
    """Train ``job`` in Flower's simulation, a node for each phone; weights and rounds' reports.

    It runs in a process of its own: the engine starts workers, which go with that process.

    Args:
        phones: inputs ``(n, ...)`` and labels ``(n,)`` of phone 0, 1, ... timeout: in seconds.

    Raises:
        ValueError: if the phones are not numbered so.
        RuntimeError: with what the engine said, if it fails.
        subprocess.TimeoutExpired: if it takes longer.
    """
    if list(phones) != list(range(len(phones))):
        raise ValueError(f"phones must be numbered 0, 1, ..., got {list(phones)}")
    with tempfile.TemporaryDirectory(prefix="simulation-") as folder:
        here = Path(folder)
        save_phones(here / "phones", phones)
        out = here / "out.safetensors"
        whole = replace(job, nodes=len(phones), data=str(here / "phones"), out=str(out))
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(asdict(whole))], capture_output=True,
            text=True, timeout=timeout, env=os.environ | QUIET | {"FLWR_HOME": folder},
        )  # fmt: skip
        if done.returncode or not out.exists():
            raise RuntimeError(f"the simulation failed:\n{done.stdout}{done.stderr}")
        return load_result(out)


def main(job: Job) -> None:
    """What runs in the process of its own."""
    from flwr.simulation import run_simulation

    run_simulation(
        server_app(job), client_app(job), num_supernodes=job.nodes,
        backend_config={
            "init_args": {"num_cpus": 2, "log_to_driver": False, "_node_ip_address": "127.0.0.1"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )  # fmt: skip


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
