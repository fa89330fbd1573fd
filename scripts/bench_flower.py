"""A fair race of simulators, with identical work and weights: `make bench-flower`.

One round of federated averaging, every client once through its examples in batches of ten, on this
package's engines, on Flower's simulation (Ray, two workers) and on pfl-research. All are given the
same batches, and after the first round the weights must agree. Start-up, which is the time until
the first round has ended less a later round, stands apart from the steady rounds. CPU-seconds are
those of all processes that an engine starts, the mean of the steady rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
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
    "chapter-sized: 64-32-10, 100 clients with 17 examples": Race(rounds=41),
    "McMahan's 2NN: 784-200-200-10, 10 clients with 600 examples": Race(
        rounds=11, shape=(784,), widths=(200, 200), clients=10, examples=600
    ),
    "McMahan's CNN: 1,663,370 weights, 4 clients with 100 examples": Race(
        rounds=8, shape=(1, 28, 28), widths=(), clients=4, examples=100
    ),
}


def marked(folder: str) -> dict[int, int]:
    """CPU ticks so far of all processes that carry the mark of this folder, by process id."""
    mark, ticks = f"{MARK}={folder}\0".encode(), dict[int, int]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks[int(process.name)] = int(fields[11]) + int(fields[12])
        except OSError:
            continue  # it has ended, or is another user's
    return ticks


def stamp(everywhere: bool = False) -> tuple[float, float]:
    """Wall clock, and CPU-seconds so far of this process, or of all that carry the mark.

    To look at all takes longer than a round of a small job: not between two rounds.
    """
    cpu = time.process_time()
    if everywhere:
        cpu = sum(marked(os.environ[MARK]).values()) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), cpu


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
        stamps.append(stamp(everywhere=round in (1, job.rounds)))
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


def race(name: str, engine: str) -> tuple[float, np.ndarray, float, torch.Tensor] | str:
    """Start-up seconds, wall of the later rounds, their mean CPU-seconds, first weights.

    Or why there are none. Whatever happens, no process stays behind.
    """
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
            except subprocess.TimeoutExpired:
                return "took more than ten minutes"
            finally:
                while left := marked(folder):
                    for number in left:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(number, signal.SIGKILL)
                    time.sleep(0.05)
                process.wait()
            result = Path(folder) / "result.npz"
            if not result.exists():
                log.seek(0)
                said = log.read().strip().splitlines() or [f"exit status {process.returncode}"]
                return f"failed: {said[-1][:150]}"
        with np.load(result) as stored:
            stamps, first = stored["stamps"], torch.from_numpy(stored["first"])
    wall = np.diff(stamps[:, 0])
    cpu = float(stamps[-1, 1] - stamps[0, 1]) / len(wall)
    return float(stamps[0, 0] - begun - np.median(wall)), wall, cpu, first


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"torch {torch.__version__}, flwr {version('flwr')}, ray {version('ray')}, pfl 0.6.0")
    print("One thread a process. Flower has two workers, whose wall is that of two cores.")
    wrong: list[str] = []
    for name, job in JOBS.items():
        print(f"\n{name}, {job.rounds - 1} rounds after the first")
        print(f"  {'':13}start-up s   wall ms a round          CPU ms  loop's speed   weights off")
        loop: tuple[float, torch.Tensor] | None = None
        for engine in ENGINES:
            if engine == "fused" and not job.widths:
                continue  # for Linear and ReLU only
            result = race(name, engine)
            if isinstance(result, str):
                print(f"  {engine:13}{result}", flush=True)
                continue
            start, wall, cpu, first = result
            middle, low, high = 1e3 * np.percentile(wall, [50, 0, 100])
            loop = loop or (middle, first)
            off = float((first - loop[1]).abs().max())
            if not off < 1e-6:
                wrong.append(f"{engine} did other work on {name}: weights differ by {off:.1e}")
            spread = f"{middle:9.1f} ({low:.1f} to {high:.1f})"
            print(
                f"  {engine:13}{start:10.1f} {spread:24}{1e3 * cpu:9.1f} "
                f"{loop[0] / middle:12.2f}x {off:13.1e}",
                flush=True,
            )
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
