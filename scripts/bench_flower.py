"""A fair race of simulators, with identical work and weights: `make bench-flower`.

One round of federated averaging, every client once through its examples in batches of ten, on this
package's engines, on Flower's simulation (Ray, two workers) and on pfl-research. All are given the
same batches, and after the first round the weights must agree. Start-up, which is the time until
the first round has ended less a later round, stands apart from the steady rounds. CPU-seconds are
those of all processes that an engine starts.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mlguide.federated.client import (
    client_generator,
    draw_batches,
    to_vector,
    trained_weights,
)
from mlguide.federated.flower.apps import Job, client_app, save_phones
from mlguide.federated.flower.simulation import QUIET
from mlguide.federated.simulation import Federation
from mlguide.models import MLP

ROOT = Path(__file__).resolve().parents[1]
PFL = ROOT / ".venv-pfl" / "bin" / "python"
MARK = "MLGUIDE_RACE"
ENGINES = ("loop", "stacked", "fused", "Flower", "pfl-research")


@dataclasses.dataclass(frozen=True)
class Race(Job):
    """A job of the race; ``shape`` of an example, ``clients`` with ``examples`` each."""

    shape: tuple[int, ...] = (64,)
    widths: tuple[int, ...] = (32,)
    clients: int = 100
    examples: int = 17

    def model(self) -> nn.Module:
        if self.widths:
            return MLP(self.shape[0], self.widths, 10, seed=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
            )  # fmt: skip

    def phones(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        g = torch.Generator().manual_seed(0)
        inputs = torch.rand(self.clients, self.examples, *self.shape, generator=g)
        labels = torch.randint(0, 10, (self.clients, self.examples), generator=g)
        return {k: (inputs[k], labels[k]) for k in range(self.clients)}


JOBS = {
    "chapter-sized: 64-32-10, 100 clients with 17 examples": Race(rounds=21),
    "McMahan's 2NN: 784-200-200-10, 10 clients with 600 examples": Race(
        rounds=11, shape=(784,), widths=(200, 200), clients=10, examples=600
    ),
    "McMahan's CNN: 1,663,370 weights, 4 clients with 100 examples": Race(
        rounds=5, shape=(1, 28, 28), widths=(), clients=4, examples=100
    ),
}


def stamp() -> tuple[float, float]:
    """Wall clock, and CPU-seconds so far of all processes that carry this race's mark."""
    mark, ticks = f"{MARK}={os.environ[MARK]}".encode(), 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                ticks += sum(
                    map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13])
                )
        except OSError:
            continue  # it has ended
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK")


def ours(job: Race, engine: str) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """Stamps after each round, and the weights after the first."""
    federation = Federation(
        job.model(), list(job.phones().values()), job.learning_rate, job.seed, job.epochs,
        job.batch_size, engine=engine,  # type: ignore[arg-type]
    )  # fmt: skip
    stamps, first = [], torch.empty(0)
    for round in range(job.rounds):
        federation.run(1)
        stamps.append(stamp())
        if round == 0:
            first = to_vector(federation.weights)
    return stamps, first


def flower(job: Race) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """The same by Flower's simulation, with the client app of the chapter as it is."""
    from flwr.app import ArrayRecord, ConfigRecord, Context
    from flwr.serverapp import Grid, ServerApp, strategy
    from flwr.simulation import run_simulation

    server, stamps, first = ServerApp(), [], []

    def after(round: int, arrays: ArrayRecord) -> None:
        stamps.append(stamp())
        if round == 1:
            new = arrays.to_torch_state_dict()
            first.append(to_vector({name: new[name] for name in trained_weights(job.model())}))

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        everybody = {"min_train_nodes": job.clients, "min_available_nodes": job.clients}
        strategy.FedAvg(fraction_train=1.0, fraction_evaluate=0.0, **everybody).start(
            grid, ArrayRecord(trained_weights(job.model())), num_rounds=job.rounds,
            train_config=ConfigRecord({"rounds-before": 0}), evaluate_fn=after,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        save_phones(Path(folder), job.phones())
        run_simulation(
            server, client_app(dataclasses.replace(job, data=folder)), num_supernodes=job.clients,
            backend_config={
                "init_args": {
                    "num_cpus": 2, "log_to_driver": False, "_node_ip_address": "127.0.0.1"
                },
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )  # fmt: skip
    return stamps[1:], first[0]


def pfl_input(job: Race, folder: Path) -> None:
    """What pfl-research is given: examples in the order of our first round's batches."""
    inputs, labels = [], []
    for number, (x, y) in job.phones().items():
        own = client_generator(job.seed, 1, number)
        rows = draw_batches([job.examples], job.batch_size, 1, own)[0].flatten()
        inputs.append(x[rows[rows >= 0]])
        labels.append(y[rows[rows >= 0]])
    np.savez(
        folder / "job.npz", inputs=torch.stack(inputs).numpy(), labels=torch.stack(labels).numpy(),
        **{f"w_{name}": w.numpy() for name, w in trained_weights(job.model()).items()},
    )  # fmt: skip


def child(name: str, engine: str) -> None:
    """One engine on one job; stamps and first weights go to the folder that the mark names."""
    job, out = JOBS[name], Path(os.environ[MARK])
    torch.set_num_threads(1)
    stamps, first = flower(job) if engine == "Flower" else ours(job, engine)
    np.savez(out / "result.npz", stamps=np.array(stamps), first=first.numpy())


def race(name: str, engine: str) -> tuple[float, np.ndarray, np.ndarray, torch.Tensor] | str:
    """Start-up seconds, wall and CPU-seconds of the later rounds, first weights; or why not."""
    if engine == "pfl-research" and not PFL.exists():
        return "not installed here"
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | QUIET | {MARK: folder, "FLWR_HOME": folder}
        command = [sys.executable, __file__, name, engine]
        if engine == "pfl-research":
            pfl_input(JOBS[name], Path(folder))
            command = [str(PFL), str(ROOT / "scripts" / "bench_pfl.py"), str(JOBS[name].rounds)]
        begun = time.monotonic()
        with open(Path(folder) / "log", "w+") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                process.wait(timeout=600)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            result = Path(folder) / "result.npz"
            if not result.exists():
                log.seek(0)
                return f"failed: {log.read().strip().splitlines()[-1][:150]}"
        with np.load(result) as stored:
            stamps, first = stored["stamps"], torch.from_numpy(stored["first"])
    wall, cpu = np.diff(stamps, axis=0).T
    return float(stamps[0, 0] - begun - np.median(wall)), wall, cpu, first


def main() -> None:
    print(f"torch {torch.__version__}, one thread a process; Flower has two workers")
    for name, job in JOBS.items():
        print(f"\n{name}, {job.rounds - 1} rounds after the first")
        print(f"  {'':13}start-up s   wall ms a round          CPU ms   loop's wall   weights off")
        loop: tuple[float, torch.Tensor] | None = None
        for engine in ENGINES:
            if engine == "fused" and not job.widths:
                continue  # for Linear and ReLU only
            result = race(name, engine)
            if isinstance(result, str):
                print(f"  {engine:13}{result}")
                continue
            start, wall, cpu, first = result
            middle, (low, high) = float(np.median(wall)), np.percentile(wall, [0, 100])
            loop = loop or (middle, first)
            off = float((first - loop[1]).abs().max())
            assert off < 1e-6, f"{engine} did other work: its weights differ by {off:.1e}"
            print(
                f"  {engine:13}{start:10.1f} {1e3 * middle:9.1f} ({1e3 * low:.1f} to "
                f"{1e3 * high:.1f})".ljust(48)
                + f"{1e3 * float(np.median(cpu)):9.1f} {loop[0] / middle:11.2f}x {off:13.1e}",
                flush=True,
            )


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
