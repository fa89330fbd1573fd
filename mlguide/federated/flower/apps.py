"""Both halves of a Flower app, around the client of this book.

``client.local_sgd`` runs in a ``ClientApp`` as it stands, and the ``ServerApp`` takes any of
Flower's strategies. What is added is what a real fleet needs: a node finds its own phones' data,
the server lets in only what can be averaged, never waits for ever, and goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp, strategy
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlguide.federated.aggregation import accept
from mlguide.federated.client import (
    Weights,
    client_generator,
    draw_batches,
    local_sgd,
    to_vector,
    to_weights,
    trained_weights,
)
from mlguide.models import MLP

__all__ = [
    "Job",
    "client_app",
    "guarded",
    "load_phones",
    "load_result",
    "save_phones",
    "save_result",
    "server_app",
    "wait_for_nodes",
]


@dataclass(frozen=True)
class Job:
    """What is trained, and how; in a Flower app's settings the names have hyphens.

    Args:
        data: folder with a file for each phone, as ``save_phones`` writes them. A node that has a
            ``data`` of its own, in its node config, takes that one.
        out: file for the server's weights, written after each round, with a report of it. If it is
            there at the start, training goes on from it (a strategy's own memory, such as
            FedAdam's, begins anew).
        inputs, hidden, classes: sizes of the network, an ``MLP``.
        strategy: name of a strategy of ``flwr.serverapp.strategy``. settings: its arguments, JSON.
        nodes: as many must be there to begin. patience: seconds to wait for nodes and answers.
    """

    data: str = ""
    out: str = ""
    inputs: int = 196
    hidden: int = 64
    classes: int = 10
    seed: int = 0
    rounds: int = 3
    epochs: int = 1
    batch_size: int = 10
    learning_rate: float = 0.1
    strategy: str = "FedAvg"
    settings: str = "{}"
    nodes: int = 3
    patience: float = 120.0

    @classmethod
    def of(cls, run_config: Mapping[str, Any]) -> Job:
        """The job that a Flower app's ``[tool.flwr.app.config]`` describes.

        Raises:
            ValueError: naming a setting that is none of a job's.
        """
        given = {name.replace("-", "_"): value for name, value in run_config.items()}
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"run config has {', '.join(unknown)}, which a job does not know")
        return cls(**given)

    def run_config(self) -> dict[str, Any]:
        """The way back: what to write into a Flower app's settings."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}

    def model(self) -> nn.Module:
        """The network with its first weights, which ``seed`` draws."""
        return MLP(self.inputs, [self.hidden], self.classes, seed=self.seed)


def save_phones(folder: Path, phones: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """One file for each phone, by its number: inputs ``(n, ...)`` and labels ``(n,)``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (inputs, labels) in phones.items():
        tensors = {"inputs": inputs.contiguous(), "labels": labels.contiguous()}
        save_file(tensors, folder / f"phone_{number}.safetensors")


def load_phones(folder: Path, number: int | None = None) -> dict[int, tuple[Tensor, Tensor]]:
    """The phones in a folder, or the one of this number.

    Raises:
        FileNotFoundError: if the folder has none.
    """
    name = "*" if number is None else str(number)
    files = sorted(folder.glob(f"phone_{name}.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no phone_{name}.safetensors")
    read = {int(file.stem.removeprefix("phone_")): load_file(file) for file in files}
    return {number: (phone["inputs"], phone["labels"]) for number, phone in sorted(read.items())}


def save_result(path: Path, weights: Weights, rounds: list[dict[str, Any]]) -> None:
    """Weights and the rounds' reports in one file, which is replaced in one stroke."""
    part = path.with_name(path.name + ".part")
    save_file(weights, part, {"rounds": json.dumps(rounds), "names": json.dumps(list(weights))})
    part.replace(path)


def load_result(path: Path) -> tuple[Weights, list[dict[str, Any]]]:
    """What ``save_result`` wrote, the weights in the model's order."""
    with safe_open(path, "pt") as file:
        rounds, names = (json.loads(file.metadata()[key]) for key in ("rounds", "names"))
        return {name: file.get_tensor(name) for name in names}, rounds


def client_app(job: Job | None = None) -> ClientApp:
    """What runs at a node: ``local_sgd`` for each of its phones, and one answer, their mean.

    In a simulation a node is one phone. ``job`` None takes the settings of the Flower app.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        todo = job or Job.of(context.run_config)
        config: dict[str, Any] = dict(message.content.config_records["config"])
        torch.set_num_threads(1)
        if "data" in context.node_config:
            phones = load_phones(Path(str(context.node_config["data"])))
        else:
            phones = load_phones(Path(todo.data), int(context.node_config["partition-id"]))
        model = todo.model()
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        # Some strategies send float64
        sent = {name: arrays[name].to(w.dtype) for name, w in trained_weights(model).items()}
        round = int(config["rounds-before"]) + int(config["server-round"])
        total, examples = torch.zeros_like(to_vector(sent)), 0
        for number, (inputs, labels) in phones.items():
            own = client_generator(todo.seed, round, number)
            batches = draw_batches([len(labels)], todo.batch_size, todo.epochs, own)[0]
            new = local_sgd(
                model, sent, inputs, labels, batches,
                learning_rate=todo.learning_rate, proximal=float(config.get("proximal-mu", 0.0)),
            )  # fmt: skip
            total += to_vector(new) * len(labels)
            examples += len(labels)
        answer = ArrayRecord(to_weights(total / examples, sent))
        metrics = MetricRecord({"num-examples": examples})
        return Message(RecordDict({"arrays": answer, "metrics": metrics}), reply_to=message)

    return app


def server_app(job: Job | None = None) -> ServerApp:
    """What runs at the server: any of Flower's strategies, guarded, for the rounds of the job."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        todo = job or Job.of(context.run_config)
        chosen: strategy.Strategy = getattr(strategy, todo.strategy)(
            **{"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
            | json.loads(todo.settings)
        )
        weights, reports = trained_weights(todo.model()), list[dict[str, Any]]()
        out = Path(todo.out) if todo.out else None
        if out is not None and out.exists():
            weights, reports = load_result(out)
        guarded(chosen, todo.patience, reports)

        def save(_: int, arrays: ArrayRecord) -> None:
            if out is not None:
                save_result(out, dict(arrays.to_torch_state_dict()), reports)

        wait_for_nodes(grid, todo.nodes, todo.patience)
        chosen.start(
            grid,
            ArrayRecord(weights),
            num_rounds=todo.rounds - len(reports),
            timeout=todo.patience,
            train_config=ConfigRecord({"rounds-before": len(reports)}),
            evaluate_fn=save,
        )

    return app


def wait_for_nodes(grid: Grid, least: int, patience: float) -> None:
    """Wait until ``least`` nodes are there.

    Raises:
        TimeoutError: if they are not after ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while (there := len(list(grid.get_node_ids()))) < least:
        if time.monotonic() > end:
            raise TimeoutError(f"{there} of {least} nodes connected within {patience:g} seconds")
        time.sleep(0.5)


def guarded(
    chosen: strategy.Strategy, patience: float, reports: list[dict[str, Any]]
) -> strategy.Strategy:
    """The strategy, changed in place: only ``accept``-ed answers reach its ``aggregate_train``.

    Before each round it waits for a node, at most ``patience`` seconds. Of each round it adds to
    ``reports`` how many nodes gave an answer of use, why others are refused, by the node's id, and
    how many seconds it took.

    Raises:
        TimeoutError: in training, if no node is there in time.
        RuntimeError: in training, saying why, if no answer is of use: it stops then.
    """
    configure, aggregate = chosen.configure_train, chosen.aggregate_train
    sent: Weights = {}
    asked: list[Message] = []
    started = time.monotonic()

    def configure_train(
        server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nonlocal started
        wait_for_nodes(grid, 1, patience)
        started = time.monotonic()
        sent.clear()
        sent.update(arrays.to_torch_state_dict())
        asked[:] = configure(server_round, arrays, config, grid)
        return asked

    def aggregate_train(
        server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        # For a node that is gone the server replies, so that the question tells who was meant
        of = {m.metadata.message_id: m.metadata.dst_node_id for m in asked if m.metadata.message_id}
        by_node = {
            str(of.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)): reply
            for reply in replies
        }
        answers: dict[str, Weights | None] = {str(m.metadata.dst_node_id): None for m in asked}
        answers |= {
            node: _weights_of(reply) for node, reply in by_node.items() if not reply.has_error()
        }
        names, _, refused = accept(answers, sent)
        for node, reply in by_node.items():
            if reply.has_error():
                refused[node] = reply.error.reason or "an error without a reason"
        reports.append(
            {
                "round": len(reports) + 1,
                "answered": len(names),
                "refused": refused,
                "seconds": time.monotonic() - started,
            }
        )
        if not names:
            reasons = "; ".join(f"node {node}: {reason}" for node, reason in refused.items())
            raise RuntimeError(f"round {len(reports)} has no answer that can be used: {reasons}")
        return aggregate(server_round, [by_node[name] for name in names])

    chosen.configure_train = configure_train
    chosen.aggregate_train = aggregate_train
    return chosen


def _weights_of(reply: Message) -> Weights:
    """The weights in an answer; {} if there are none, or no number of examples to weigh them by."""
    records = list(reply.content.array_records.values())
    metrics = list(reply.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        return {}
    examples = metrics[0].get("num-examples")
    if not isinstance(examples, int | float) or not 0 < examples < float("inf"):
        return {}
    return dict(records[0].to_torch_state_dict())
