"""Train the wardrobe model on separate machines in small: `make fleet`.

A Flower SuperLink and several SuperNodes run as processes of their own on this machine's loopback,
each node with its own phones' pictures in a folder that no other is told of. Connections are
encrypted (TLS), and a node is let in only if its key was registered. Certificates and keys are made
anew for each run and vanish with it. Whatever happens, no process is left behind.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor
from torch.nn import functional as F

from mlguide import data, training
from mlguide.federated import partition
from mlguide.federated.client import Weights, to_vector
from mlguide.federated.flower.apps import Job, load_result, save_phones
from mlguide.federated.flower.recorder import Crossing, Recorder
from mlguide.federated.flower.simulation import QUIET
from mlguide.federated.simulation import Federation

__all__ = ["Fleet", "deploy", "make_node_key", "run", "wardrobe_phones"]

APP = Path(__file__).resolve().parent / "wardrobe"


def wardrobe_phones(phones: int, seed: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Phones with a few kinds of garment each, and as many pictures: 14 x 14, one row a picture."""
    learn, _ = data.wardrobe()
    small = F.avg_pool2d(learn.images, 2).flatten(1)
    generator = torch.Generator().manual_seed(seed)
    dealt = partition.dirichlet(learn.labels, phones, 10.0, generator)
    return {k: (small[mine], learn.labels[mine]) for k, mine in enumerate(dealt)}


class Fleet:
    """A SuperLink and its SuperNodes, as a context: started one by one, all stopped at the end.

    Args:
        patience: seconds to wait for a process to start, or a command to end.
        record: keep in ``crossed``, for each node, what it and the server say to each other.
    """

    def __init__(self, *, patience: float = 60.0, record: bool = False) -> None:
        self.patience, self.record = patience, record
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.recorders: dict[str, Recorder] = {}

    @property
    def crossed(self) -> dict[str, list[Crossing]]:
        """What each node and the server said to each other so far."""
        return {node: recorder.crossed for node, recorder in self.recorders.items()}

    def __enter__(self) -> Fleet:
        self.folder = Path(tempfile.mkdtemp(prefix="fleet-"))  # for nobody else to read
        self.port = _free_port()
        self.environment = (
            os.environ
            | QUIET
            | {
                "FLWR_HOME": str(self.folder / "home"),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            }
        )
        (self.folder / "home").mkdir()
        self.address = f"127.0.0.1:{self.port}"
        (self.folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n[superlink.loopback]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.folder / "ca.pem"}"\n'
        )
        _make_certificates(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes.values()):  # the server last
            _kill_group(process)
        for recorder in self.recorders.values():
            recorder.close()
        # the last words of a process that is ending may still be written
        for _attempt in range(50):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
            time.sleep(0.1)

    def start_server(self) -> None:
        """The SuperLink: it keeps its state in a file, and takes it up again if started again."""
        self._start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port),
            "--ssl-ca-certfile", str(self.folder / "ca.pem"),
            "--ssl-certfile", str(self.folder / "server.pem"),
            "--ssl-keyfile", str(self.folder / "server.key"),
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            "--database", str(self.folder / "state.db"),
        )  # fmt: skip
        self._wait_for_port("superlink", self.port)

    def register(self, node: str) -> None:
        """Make a key for a node, and tell the server of its public half."""
        make_node_key(self.folder / f"{node}.key")
        self.flwr("supernode", "register", str(self.folder / f"{node}.key.pub"), "loopback")

    def start_node(self, node: str, phones: Path, *, key: str | None = None) -> None:
        """A SuperNode with the phones of a folder, and the key of that name (None: its own)."""
        if self.record:
            self.recorders[node] = Recorder(self.address, self.folder)
        through = self.recorders[node].address if self.record else self.address
        self._start(
            node, "flower-supernode", "--superlink", through,
            "--root-certificates", str(self.folder / "ca.pem"),
            "--auth-supernode-private-key", str(self.folder / f"{key or node}.key"),
            "--host", "127.0.0.1", "--port", str(_free_port()),
            "--node-config", f'data="{phones}"',
        )  # fmt: skip

    def flwr(self, *arguments: str, timeout: float | None = None) -> str:
        """Run Flower's command line, and return what it said.

        Raises:
            RuntimeError: with its output, if it fails.
        """
        done = subprocess.run(
            ["flwr", *arguments], env=self.environment, cwd=self.folder, capture_output=True,
            text=True, timeout=timeout or self.patience,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"flwr {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def log(self, name: str) -> str:
        """What a process has written so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """Stop one process, and all that it started."""
        _kill_group(self.processes.pop(name))

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def _wait_for_port(self, name: str, port: int) -> None:
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            if self.processes[name].poll() is not None:
                raise RuntimeError(f"{name} stopped:\n{self.log(name)}")
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"{name} did not open its port in {self.patience:g} seconds")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and all that it started, gently first."""
    for sign, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def _private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _make_certificates(folder: Path) -> None:
    """ca.pem, which nodes trust, and server.pem and server.key, which it has signed for a day."""
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in ("ca", "server")]
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in names]
    for place, (file, name, key) in enumerate(zip(("ca", "server"), names, keys, strict=True)):
        local = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder(issuer_name=names[0], subject_name=name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=place == 0, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(local), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), False
            )
            .sign(keys[0], hashes.SHA384())
        )
        (folder / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = keys[1].private_bytes(pem, pkcs8, serialization.NoEncryption())
    _private(folder / "server.key", secret)


def make_node_key(path: Path) -> None:
    """A node's private key at ``path``, and beside it with .pub its public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    pem, openssh = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    _private(path, key.private_bytes(pem, openssh, serialization.NoEncryption()))
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    path.with_name(path.name + ".pub").write_bytes(public)


def deploy(
    fleet: Fleet, job: Job, phones: Mapping[int, tuple[Tensor, Tensor]]
) -> tuple[Weights, list[dict[str, Any]]]:
    """Train ``job`` on a fleet of ``job.nodes`` nodes that share out the phones; see ``run``."""
    fleet.start_server()
    for n in range(job.nodes):
        name, folder = f"node{n}", fleet.folder / f"node{n}"
        save_phones(folder, {k: phone for k, phone in phones.items() if k % job.nodes == n})
        fleet.register(name)
        fleet.start_node(name, folder)
    return run(fleet, job)


def run(fleet: Fleet, job: Job) -> tuple[Weights, list[dict[str, Any]]]:
    """Train ``job`` on a fleet that stands; the final weights and the rounds' reports.

    Raises:
        RuntimeError: with what Flower said, if the training stopped before its last round.
        subprocess.TimeoutExpired: if it outlasts its rounds' patience, and two more.
    """
    out = fleet.folder / "out.safetensors"
    config = replace(job, out=str(out)).run_config()
    told = " ".join(f"{name}={value!r}" for name, value in config.items())  # as TOML wants it
    said = fleet.flwr(
        "run", str(APP), "loopback", "--stream", "--run-config", told,
        timeout=job.patience * (job.rounds + 2),
    )  # fmt: skip
    if not out.exists():
        raise RuntimeError(f"the training stopped:\n{said}")
    weights, rounds = load_result(out)
    if len(rounds) < job.rounds:
        raise RuntimeError(f"the training stopped after {len(rounds)} rounds:\n{said}")
    return weights, rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on a fleet, then in this process, and print how far apart the two end."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--phones", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    for sign in (signal.SIGINT, signal.SIGTERM):  # a shell may have told us to ignore the first
        signal.signal(sign, lambda number, _: sys.exit(128 + number))  # the fleet is taken down
    job = Job(nodes=options.nodes, rounds=options.rounds, epochs=1)
    phones = wardrobe_phones(options.phones, job.seed)
    exam = data.wardrobe()[1]
    pictures = F.avg_pool2d(exam.images, 2).flatten(1)

    print(f"{options.phones} phones on {options.nodes} nodes, {job.rounds} rounds ...", flush=True)
    with Fleet() as fleet:
        weights, rounds = deploy(fleet, job, phones)
    model = job.model()
    model.load_state_dict(weights)
    here = Federation(
        job.model(), list(phones.values()), learning_rate=job.learning_rate, seed=job.seed,
        epochs=job.epochs, batch_size=job.batch_size, engine="loop",
    )  # fmt: skip
    here.run(job.rounds)
    apart = (to_vector(weights) - to_vector(here.weights)).abs().max()
    for report in rounds:
        print("round {round}: {answered} nodes answered, in {seconds:.0f} s".format(**report))
        for node, reason in report["refused"].items():
            print(f"  node {node} was refused: {reason}")
    print(f"accuracy, fleet:       {training.evaluate(model, pictures, exam.labels):.4f}")
    print(f"accuracy, one process: {training.evaluate(here.model, pictures, exam.labels):.4f}")
    print(f"largest difference between their weights: {apart:.1e}")


if __name__ == "__main__":
    main()
