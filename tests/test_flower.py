"""Our client on Flower's engine: the same function, the same weights, and guarded answers."""

import importlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import FrozenInstanceError, replace
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

if not os.environ.get("CI"):
    pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.config import parse_config_args
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from mlguide import data
from mlguide.federated import client, flower
from mlguide.federated.aggregation import adam
from mlguide.federated.client import to_vector, trained_weights
from mlguide.federated.flower import apps, fleet, simulation
from mlguide.federated.flower.apps import Job
from mlguide.federated.flower.fleet import Fleet
from mlguide.federated.flower.recorder import Crossing, Recorder
from mlguide.federated.flower.simulation import simulate
from mlguide.federated.simulation import Federation

PHONES = {
    k: (
        torch.rand(20 + 5 * k, 6, generator=torch.Generator().manual_seed(k)),
        torch.arange(20 + 5 * k) % 3,
    )
    for k in range(4)
}
# On a new machine the first round begins when all that Ray imports is compiled.
JOB = Job(inputs=6, hidden=5, classes=3, nodes=4, epochs=2, rounds=3, patience=200)


def one_process(job: Job, **settings: Any) -> Federation:
    """The same job on our own simulation."""
    return Federation(
        job.model(), list(PHONES.values()), learning_rate=job.learning_rate, seed=job.seed,
        epochs=job.epochs, batch_size=job.batch_size, engine="loop", **settings,
    )  # fmt: skip


def apart(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference between two sets of weights."""
    return float((to_vector(some) - to_vector(other)).abs().max())


def test_the_client_is_the_one_of_the_book():
    assert apps.local_sgd is client.local_sgd


def test_without_flower_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ImportError, match=r"needs Flower: pip install 'mlguide\[flower\] @ git"):
        importlib.reload(flower)


STRATEGIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "FedAvg": ({}, {}),
    "FedProx": ({"proximal_mu": 0.5}, {"proximal": 0.5}),
    "FedAdam": (
        {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
        {"server": adam(0.01)},
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_flower_and_our_simulation_end_with_the_same_weights(name: str):
    theirs, ours = STRATEGIES[name]
    job = replace(JOB, strategy=name, settings=json.dumps(theirs))
    weights, rounds = simulate(job, PHONES, timeout=250)
    assert [r["answered"] for r in rounds] == [4, 4, 4]
    here = one_process(job, **ours)
    start = here.weights
    here.run(job.rounds)
    assert apart(here.weights, weights) < 1e-6 < apart(here.weights, start)


def test_a_simulation_that_fails_says_why():
    with pytest.raises(RuntimeError, match="round 1 has no answer that can be used"):
        simulate(replace(JOB, inputs=7), PHONES, timeout=250)
    with pytest.raises(ValueError, match=r"phones must be numbered 0, 1, ..., got \[3\]"):
        simulate(JOB, {3: PHONES[3]})


def test_a_simulation_that_takes_too_long_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        simulate(JOB, PHONES, timeout=0.1)


# Both halves and the guard, on messages that no process has to send


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages belong to a run."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Grid:
    """As much of Flower's grid as a strategy needs to ask nodes."""

    def __init__(self, nodes: int) -> None:
        self.nodes = range(1, nodes + 1)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)


def answer(node: int, weights: dict[str, torch.Tensor], examples: float = 10) -> Message:
    content = RecordDict(
        {"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": examples})}
    )
    question = Message(content=RecordDict(), dst_node_id=node, message_type="train")
    return Message(content, reply_to=question)


def play(answers: list[Message], nodes: int = 3) -> tuple[Any, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    apps.guarded(strategy, patience=1, reports=reports)
    strategy.configure_train(1, ArrayRecord(WEIGHTS), ConfigRecord(), Grid(nodes))
    arrays, _ = strategy.aggregate_train(1, answers)
    return arrays.to_torch_state_dict(), reports


WEIGHTS = trained_weights(JOB.model())
GOOD = {name: w + 1 for name, w in WEIGHTS.items()}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            {**GOOD, "head.bias": torch.full((3,), torch.nan)},
            r"3 of \d+ weights are NaN or infinite",
        ),
        ({**GOOD, "head.bias": torch.zeros(4)}, r"head.bias has shape \(4,\), not \(3,\)"),
        ({"head.bias": torch.zeros(3)}, r"weights named \['head.bias'\]"),
    ],
)
def test_an_answer_that_cannot_be_averaged_is_refused_by_name(bad: Any, reason: str):
    arrays, reports = play([answer(1, GOOD), answer(2, bad), answer(3, GOOD)])
    assert all(torch.allclose(arrays[name], w) for name, w in GOOD.items())
    assert reports[0]["answered"] == 2 and re.search(reason, reports[0]["refused"]["2"])


@pytest.mark.parametrize("examples", [0.0, -5.0, float("nan"), float("inf")])
def test_an_answer_of_no_examples_is_refused(examples: float):
    arrays, reports = play([answer(1, GOOD), answer(2, GOOD, examples)])
    assert reports[0]["answered"] == 1 and "2" in reports[0]["refused"]
    assert all(torch.isfinite(w).all() for w in arrays.values())


def test_an_answer_without_weights_or_with_two_sets_of_them_is_refused():
    none, two = answer(1, GOOD), answer(2, GOOD)
    del none.content["arrays"]
    two.content["more"] = ArrayRecord(GOOD)
    _, reports = play([none, two, answer(3, GOOD)])
    assert reports[0]["answered"] == 1 and reports[0]["refused"].keys() == {"1", "2"}


def test_who_does_not_answer_is_named():
    _, reports = play([answer(1, GOOD)], nodes=2)
    assert reports[0]["refused"] == {"2": "no answer"}


def test_a_node_that_is_gone_is_named_though_the_server_replies_for_it():
    reports: list[dict[str, Any]] = []
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    apps.guarded(strategy, patience=1, reports=reports)
    asked = list(strategy.configure_train(1, ArrayRecord(WEIGHTS), ConfigRecord(), Grid(2)))
    for message in asked:  # as sending does
        message.metadata.__dict__["_message_id"] = f"to {message.metadata.dst_node_id}"
    gone = Message(Error(5, "node unavailable"), reply_to=asked[0])
    gone.metadata.__dict__["_src_node_id"] = 99
    strategy.aggregate_train(1, [gone, answer(asked[1].metadata.dst_node_id, GOOD)])
    assert reports[0]["answered"] == 1
    assert reports[0]["refused"] == {str(asked[0].metadata.dst_node_id): "node unavailable"}


def test_a_round_without_any_answer_stops_the_training_and_says_why():
    failed = Message(
        Error(0, "out of memory"),
        reply_to=Message(content=RecordDict(), dst_node_id=1, message_type="train"),
    )
    with pytest.raises(RuntimeError, match="round 1 has no answer .* node 1: out of memory"):
        play([failed], nodes=1)


def test_waiting_for_nodes_ends():
    with pytest.raises(TimeoutError, match="2 of 3 nodes connected within 1 seconds"):
        apps.wait_for_nodes(Grid(2), 3, 1)


def context(job: Job, **node_config: Any) -> Context:
    return Context(1, 1, node_config, RecordDict(), job.run_config())


def test_a_node_answers_with_the_mean_of_its_phones(tmp_path: Path):
    apps.save_phones(tmp_path, PHONES)
    here = one_process(JOB)
    here.run(2)
    sent = {name: w.double() for name, w in here.weights.items()}  # as some strategies do
    config = ConfigRecord({"rounds-before": 1, "server-round": 2})
    question = Message(RecordDict({"arrays": ArrayRecord(sent), "config": config}), 1, "train")
    content = apps.client_app()(question, context(JOB, data=str(tmp_path))).content
    here.run(1)
    weights = content.array_records["arrays"].to_torch_state_dict()
    assert apart(weights, here.weights) < 1e-6 < apart(weights, sent)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    (metrics,) = content.metric_records.values()
    assert metrics["num-examples"] == sum(len(labels) for _, labels in PHONES.values())


class Engine(Grid):
    """Nodes in this process, each with one phone of the job's folder."""

    def __init__(self, job: Job, app: ClientApp | None = None) -> None:
        super().__init__(job.nodes)
        self.job, self.app, self.asked = job, app or apps.client_app(job), 0

    def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
        assert timeout == self.job.patience
        self.asked += len(messages)
        phones = [message.metadata.dst_node_id - 1 for message in messages]
        return [
            self.app(message, context(Job(), **{"partition-id": phone}))
            for message, phone in zip(messages, phones, strict=True)
        ]


def test_a_server_goes_on_where_it_stopped(tmp_path: Path):
    apps.save_phones(tmp_path, PHONES)
    job = replace(JOB, data=str(tmp_path), out=str(tmp_path / "out.safetensors"))
    for rounds in (1, 3):
        engine = Engine(job)
        apps.server_app()(engine, context(replace(job, rounds=rounds)))
    assert engine.asked == 2 * job.nodes  # in the second and the third round
    weights, reports = apps.load_result(Path(job.out))
    assert [(r["round"], r["answered"]) for r in reports] == [(1, 4), (2, 4), (3, 4)]
    here = one_process(job)
    here.run(job.rounds)
    assert list(weights) == list(here.weights) and apart(weights, here.weights) < 1e-6


def test_the_process_of_a_simulation_gives_both_halves_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    apps.save_phones(tmp_path, PHONES)
    job = replace(JOB, data=str(tmp_path), out=str(tmp_path / "out.safetensors"))

    def run_simulation(
        server: ServerApp, app: ClientApp, *, num_supernodes: int, backend_config: dict[str, Any]
    ) -> None:
        assert num_supernodes == job.nodes
        server(Engine(job, app), context(Job()))

    monkeypatch.setattr("flwr.simulation.run_simulation", run_simulation)
    simulation.main(job)
    here = one_process(job)
    here.run(job.rounds)
    assert apart(apps.load_result(Path(job.out))[0], here.weights) < 1e-6


def test_a_server_without_a_file_for_its_weights_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    apps.save_phones(tmp_path / "phones", PHONES)
    engine = Engine(replace(JOB, data="phones"))
    apps.server_app(engine.job)(engine, context(Job()))
    assert engine.asked == JOB.rounds * JOB.nodes
    assert [path.name for path in tmp_path.iterdir()] == ["phones"]


# What a job and its files are


def test_a_job_is_what_the_app_says():
    assert Job.of(JOB.run_config()) == JOB
    assert set(JOB.run_config()) >= {"batch-size", "learning-rate"}
    with pytest.raises(ValueError, match="run config has batch, learn"):
        Job.of({"batch": 1, "learn": 2, "rounds": 3})


def test_the_app_that_is_sent_has_a_jobs_settings():
    text = (Path(apps.__file__).parent / "wardrobe" / "pyproject.toml").read_text()
    app = tomllib.loads(text)["tool"]["flwr"]["app"]
    assert Job.of(app["config"]) == Job()


def test_a_job_and_what_was_recorded_cannot_be_changed():
    for thing, field in ((JOB, "rounds"), (Crossing("/v1", b"", b""), "up")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, field, 0)


def test_phones_are_files_of_their_own(tmp_path: Path):
    apps.save_phones(tmp_path, PHONES)
    assert len(list(tmp_path.iterdir())) == 4
    assert list(apps.load_phones(tmp_path)) == [0, 1, 2, 3]
    (one,) = apps.load_phones(tmp_path, 2).values()
    assert torch.equal(one[0], PHONES[2][0]) and torch.equal(one[1], PHONES[2][1])
    with pytest.raises(FileNotFoundError, match="has no phone_9"):
        apps.load_phones(tmp_path, 9)


# What surrounds a fleet, without its processes (with them: test_fleet.py)


def test_a_recorder_hands_on_what_is_said_and_keeps_it(tmp_path: Path):
    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(202)
            self.send_header("X-Token", self.headers["X-Token"] + "!")
            self.send_header("Content-Length", str(2 * len(heard)))
            self.end_headers()
            self.wfile.write(2 * heard)

        def log_message(self, format: str, *args: object) -> None:
            pass

    fleet._make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        recorder = Recorder(f"127.0.0.1:{server.server_port}", tmp_path)
        trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        connection = HTTPSConnection(recorder.address, context=trust, timeout=30)
        connection.request("POST", "/v1/fleet", b"\0up", {"X-Token": "7"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (202, b"\0up\0up")
        names = sorted(name for name, _ in answer.getheaders())
        assert names == ["Content-Length", "Date", "Server", "X-Token"]  # none of them twice
        assert answer.getheader("X-Token") == "7!"
        connection.close()
        recorder.close()
        server.shutdown()
    assert recorder.crossed == [Crossing("/v1/fleet", b"\0up", b"\0up\0up")]


def stand_in(fleet: Fleet, program: str, script: str) -> None:
    """What this fleet is to run in the place of a program of Flower's."""
    path = fleet.folder / program
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    fleet.environment["PATH"] = f"{fleet.folder}{os.pathsep}{fleet.environment['PATH']}"


def test_a_server_that_stops_says_why():
    with Fleet() as running:
        stand_in(running, "flower-superlink", "echo no room >&2; exit 1")
        with pytest.raises(RuntimeError, match="superlink stopped:\nno room"):
            running.start_server()


def test_a_server_that_nobody_can_reach_is_not_waited_for_for_ever():
    with Fleet(patience=0.5) as running:
        stand_in(running, "flower-superlink", "exec sleep 60")
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="superlink did not open its port in 0.5 seconds"):
            running.start_server()
        assert time.monotonic() - start < 5
        server = running.processes["superlink"]
        assert server.poll() is None
    assert server.poll() is not None and not running.folder.exists()


@pytest.mark.parametrize("record", [False, True])
def test_a_node_is_sent_to_its_recorder_if_it_has_one(record: bool):
    with Fleet(record=record) as running:
        stand_in(running, "flower-supernode", 'echo "$@"')
        running.start_node("node0", Path("phones"))
        running.processes["node0"].wait(timeout=30)
        (address,) = re.findall(r"--superlink (\S+)", running.log("node0"))
        assert (address != running.address) == record
        assert running.crossed == ({"node0": []} if record else {})
    host, port = address.split(":")
    with pytest.raises(ConnectionRefusedError):  # the recorder went with the fleet
        socket.create_connection((host, int(port)), timeout=5)


class Rehearsal(Fleet):
    """Starts nothing, and writes down what it would have; a run stops after so many rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds, self.done, self.told = rounds, list[str](), dict[str, Any]()

    def _start(self, name: str, *command: str) -> None:
        self.done.append(name)

    def _wait_for_port(self, name: str, port: int) -> None:
        pass

    def flwr(self, *arguments: str, timeout: float | None = None) -> str:
        self.done.append(arguments[0])
        if arguments[0] == "run":
            self.told = parse_config_args([arguments[-1]])
            reports = [{"round": n + 1} for n in range(self.rounds)]
            apps.save_result(self.folder / "out.safetensors", WEIGHTS, reports)
        return "it was killed"


def test_a_fleet_deals_the_phones_to_nodes_and_tells_what_to_train():
    job = replace(JOB, nodes=3, learning_rate=0.01, strategy="FedAvgM",
                  settings='{"server_learning_rate": 0.5}')  # fmt: skip
    with Rehearsal(job.rounds) as running:
        weights, reports = fleet.deploy(running, job, PHONES)
        dealt = [list(apps.load_phones(running.folder / f"node{n}")) for n in range(3)]
        assert Job.of(running.told) == replace(job, out=str(running.folder / "out.safetensors"))
    assert dealt == [[0, 3], [1], [2]]
    # a node comes when the server is there, and knows it
    nodes = ["supernode", "node0", "supernode", "node1", "supernode", "node2"]
    assert running.done == ["superlink", *nodes, "run"]
    assert apart(weights, WEIGHTS) == 0 and [r["round"] for r in reports] == [1, 2, 3]


def test_a_training_that_stops_before_its_last_round_says_so():
    with Rehearsal(JOB.rounds - 1) as running:
        with pytest.raises(RuntimeError, match="stopped after 2 rounds:\nit was killed"):
            fleet.run(running, JOB)


def test_the_phones_of_a_fleet_are_pictures_at_half_size():
    learn = data.wardrobe()[0]
    phones = fleet.wardrobe_phones(4, seed=0)
    assert list(phones) == [0, 1, 2, 3]
    dealt = torch.cat([inputs for inputs, _ in phones.values()])
    assert dealt.shape == (len(learn), 14 * 14)
    assert dealt.double().mean() == pytest.approx(learn.images.double().mean())


def test_a_fleets_report_names_who_was_refused_and_compares_with_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def deploy(_: Fleet, job: Job, phones: dict) -> tuple[dict, list]:
        here = Federation(
            job.model(), list(phones.values()), learning_rate=job.learning_rate, seed=job.seed,
            epochs=job.epochs, batch_size=job.batch_size, engine="loop",
        )  # fmt: skip
        here.run(job.rounds)
        return here.weights, [{"round": 1, "answered": 2, "seconds": 3.0, "refused": {7: "NaN"}}]

    monkeypatch.setattr(fleet, "deploy", deploy)
    signs = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        fleet.main(["--phones", "6", "--rounds", "2"])
    finally:
        for sign, handler in signs.items():
            signal.signal(sign, handler)
    said = capsys.readouterr().out
    assert "6 phones on 3 nodes, 2 rounds" in said
    assert "round 1: 2 nodes answered, in 3 s\n  node 7 was refused: NaN" in said
    there, here = re.findall(r"accuracy, .*: +([\d.]+)", said)
    assert there == here and float(here) > 0.3
    assert "difference between their weights: 0.0e+00" in said
