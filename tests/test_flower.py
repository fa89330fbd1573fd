"""Our client on Flower's engine: the same function, the same weights, and guarded answers."""

import json
import os
import re
import signal
import ssl
import threading
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

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from mlguide import data
from mlguide.federated import client
from mlguide.federated.aggregation import adam
from mlguide.federated.client import to_vector, trained_weights
from mlguide.federated.flower import apps, fleet
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
JOB = Job(inputs=6, hidden=5, classes=3, nodes=4, epochs=2, rounds=3, patience=60)


def test_the_client_is_the_one_of_the_book():
    assert apps.local_sgd is client.local_sgd


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
    here = Federation(
        job.model(), list(PHONES.values()), learning_rate=job.learning_rate, seed=job.seed,
        epochs=job.epochs, batch_size=job.batch_size, engine="loop", **ours,
    )  # fmt: skip
    start = to_vector(here.weights)
    here.run(job.rounds)
    moved = (to_vector(here.weights) - start).abs().max()
    assert (to_vector(here.weights) - to_vector(weights)).abs().max() < 1e-6 < moved


def test_a_simulation_that_fails_says_why():
    with pytest.raises(RuntimeError, match="round 1 has no answer that can be used"):
        simulate(replace(JOB, inputs=7), PHONES, timeout=250)
    with pytest.raises(ValueError, match=r"phones must be numbered 0, 1, ..., got \[3\]"):
        simulate(JOB, {3: PHONES[3]})


# The guard, on messages that no process has to send


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
