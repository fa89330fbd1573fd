"""A deployment with real processes on loopback, and what may go wrong with it: in CI only."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlguide.federated.flower import fleet as fleets
from mlguide.federated.flower.apps import Job, load_result, save_phones
from mlguide.federated.flower.fleet import Fleet
from mlguide.federated.simulation import Federation

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI"), reason="real processes are tested by .ci/run (CI=true)"
)

PHONES = {
    k: (
        torch.rand(20 + 5 * k, 6, generator=torch.Generator().manual_seed(k)),
        torch.arange(20 + 5 * k) % 3,
    )
    for k in range(6)
}
JOB = Job(inputs=6, hidden=5, classes=3, rounds=1, patience=60)


def apart(weights: dict[str, torch.Tensor], job: Job, phones: list[int]) -> float:
    """Largest difference from the weights that one process ends with."""
    here = Federation(
        job.model(), [PHONES[k] for k in phones], learning_rate=job.learning_rate, seed=job.seed,
        epochs=job.epochs, batch_size=job.batch_size, engine="loop",
    )  # fmt: skip
    here.run(job.rounds)
    return max(float((w - here.weights[n]).abs().max()) for n, w in weights.items())


def wait_until(true: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def alive(folder: Path) -> list[str]:
    """Command lines of the processes that belong to a fleet, whoever started them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A server, and three nodes that may come in, with two phones each."""
    with Fleet() as running:
        running.start_server()
        for n in range(3):
            folder = running.folder / f"node{n}"
            save_phones(folder, {k: PHONES[k] for k in (2 * n, 2 * n + 1)})
            running.register(f"node{n}")
            running.start_node(f"node{n}", folder)
        yield running
        folder = running.folder
    assert alive(folder) == [] and not folder.exists()


def start_over(fleet: Fleet) -> None:
    (fleet.folder / "out.safetensors").unlink(missing_ok=True)


def test_a_fleet_ends_with_the_weights_of_one_process(fleet: Fleet):
    job = replace(JOB, rounds=2, nodes=3)
    weights, rounds = fleets.run(fleet, job)
    assert [r["answered"] for r in rounds] == [3, 3]
    # A client is numbered by its phone, as its batches depend on that
    assert apart(weights, job, [0, 1, 2, 3, 4, 5]) < 1e-6


def test_a_node_with_a_wrong_key_or_none_is_not_let_in(fleet: Fleet):
    start_over(fleet)
    fleets.make_node_key(fleet.folder / "stranger.key")  # never registered
    folder = fleet.folder / "stranger"
    save_phones(folder, {0: (PHONES[0][0], 2 - PHONES[0][1])})
    fleet.start_node("stranger", folder)
    fleet._start(
        "keyless", "flower-supernode", "--superlink", fleet.address,
        "--root-certificates", str(fleet.folder / "ca.pem"),
        "--host", "127.0.0.1", "--port", str(fleets._free_port()),
        "--node-config", f'data="{folder}"',
    )  # fmt: skip
    for name in ("stranger", "keyless"):
        wait_until(lambda name=name: fleet.processes[name].poll() is not None)
    assert "Failed to activate SuperNode" in fleet.log("stranger")
    assert "No SuperNode found with the given public key" in fleet.log("superlink")
    weights, rounds = fleets.run(fleet, JOB)
    assert [(r["answered"], r["refused"]) for r in rounds] == [(3, {})]
    assert apart(weights, JOB, [0, 1, 2, 3, 4, 5]) < 1e-6
    for name in ("stranger", "keyless"):
        fleet.kill(name)


def test_a_node_that_sends_nan_and_one_that_fails_are_refused_by_name(fleet: Fleet):
    start_over(fleet)
    bad = {"nan": torch.full((20, 6), torch.nan), "fails": torch.zeros(20, 7)}
    for name, inputs in bad.items():
        save_phones(fleet.folder / name, {9: (inputs, torch.zeros(20, dtype=torch.int64))})
        fleet.register(name)
        fleet.start_node(name, fleet.folder / name)
    weights, (report,) = fleets.run(fleet, replace(JOB, nodes=5))
    assert report["answered"] == 3 and len(report["refused"]) == 2
    reasons = " / ".join(report["refused"].values())
    assert "NaN" in reasons and "shape" in reasons
    assert apart(weights, JOB, [0, 1, 2, 3, 4, 5]) < 1e-6
    for name in bad:
        fleet.kill(name)


def test_a_server_that_is_started_again_goes_on_where_it_was(fleet: Fleet):
    start_over(fleet)
    job, said = replace(JOB, rounds=3, nodes=3), []

    def run() -> None:
        try:
            fleets.run(fleet, job)
        except Exception as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    out = fleet.folder / "out.safetensors"
    wait_until(lambda: out.exists() and len(load_result(out)[1]) > 0)
    fleet.kill("superlink")
    thread.join(timeout=120)
    assert not thread.is_alive() and said and "flwr run" in said[0]
    _, before = load_result(out)
    fleet.start_server()
    weights, rounds = fleets.run(fleet, job)
    assert [r["round"] for r in rounds] == [1, 2, 3] and 0 < len(before) < 3
    assert rounds[: len(before)] == before  # with their seconds: they were not trained again
    assert apart(weights, job, [0, 1, 2, 3, 4, 5]) < 1e-6


def test_a_node_that_dies_in_the_middle_of_a_round_is_named_and_missed(fleet: Fleet):
    start_over(fleet)
    job, results = replace(JOB, epochs=1000, patience=60, rounds=1), []
    before = fleet.log("node2")
    thread = threading.Thread(target=lambda: results.append(fleets.run(fleet, job)))
    thread.start()
    wait_until(lambda: "train" in fleet.log("node2")[len(before) :].lower())
    fleet.kill("node2")
    thread.join(timeout=150)
    assert not thread.is_alive()
    weights, (report,) = results[0]
    assert report["answered"] == 2 and len(report["refused"]) == 1, report
    (reason,) = report["refused"].values()  # Flower may notice before our patience ends
    assert "no answer" in reason or "Node Unavailable" in reason
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_too_few_nodes_is_an_end_with_a_message(fleet: Fleet):
    start_over(fleet)
    with pytest.raises(RuntimeError, match="of 9 nodes connected within 3 seconds"):
        fleets.run(fleet, replace(JOB, nodes=9, patience=3, rounds=20))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(sign: signal.Signals, tmp_path: Path):
    command = [sys.executable, "-m", "mlguide.federated.flower.fleet", "--rounds", "20"]
    process = subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: any(tmp_path.glob("fleet-*/node1.log")))
        (folder,) = tmp_path.glob("fleet-*")
        assert alive(folder)
        process.send_signal(sign)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not alive(folder), seconds=30)
    if sign is not signal.SIGKILL:
        assert not folder.exists()
