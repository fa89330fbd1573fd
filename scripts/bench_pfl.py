"""pfl-research's part of bench_flower.py, which runs it in an environment of its own."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional as F

FOLDER, ROUNDS = Path(os.environ["MLGUIDE_RACE"]), int(sys.argv[1])


class Net(nn.Module):
    """The network whose weights these are, with the loss that pfl-research asks of it."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        values = list(weights.values())
        layers: list[nn.Module] = []
        for w in values[::2]:  # each is followed by its bias
            if w.ndim == 4:
                layers += [nn.Conv2d(w.shape[1], w.shape[0], 5, padding=2), nn.ReLU()]
                layers += [nn.MaxPool2d(2)]
            else:
                if layers and isinstance(layers[-1], nn.MaxPool2d):
                    layers.append(nn.Flatten())
                layers += [nn.Linear(w.shape[1], w.shape[0]), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter, value in zip(self.layers.parameters(), values, strict=True):
                parameter.copy_(value)

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> torch.Tensor:
        self.train(not eval)
        return F.cross_entropy(self.layers(inputs), labels)

    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        return {}


class Stamps(TrainingProcessCallback):
    def __init__(self) -> None:
        self.stamps: list[tuple[float, float]] = []
        self.first = np.empty(0)

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.stamps.append((time.monotonic(), time.process_time()))
        if len(self.stamps) == 1:
            parts = [p.detach().flatten() for p in model.pytorch_model.parameters()]
            self.first = torch.cat(parts).double().numpy()
        return False, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    with np.load(FOLDER / "job.npz") as job:
        inputs, labels = torch.from_numpy(job["inputs"]), torch.from_numpy(job["labels"])
        weights = {k: torch.from_numpy(job[k]) for k in job.files if k.startswith("w_")}
    net = Net(weights)
    model = PyTorchModel(
        net, local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )  # fmt: skip
    users = list(range(len(inputs)))
    sampler = MinimizeReuseUserSampler(users)
    data = FederatedDataset(
        lambda user: Dataset([inputs[user], labels[user]], user_id=str(user)), sampler
    )
    rounds = NNAlgorithmParams(
        central_num_iterations=ROUNDS, evaluation_frequency=ROUNDS + 1,
        train_cohort_size=len(users), val_cohort_size=0,
    )  # fmt: skip
    local = NNTrainHyperParams(local_learning_rate=0.1, local_num_epochs=1, local_batch_size=10)
    stamps = Stamps()
    FederatedAveraging().run(
        rounds, SimulatedBackend(training_data=data, val_data=None), model, local,
        NNEvalHyperParams(local_batch_size=None), callbacks=[stamps],
    )  # fmt: skip
    np.savez(FOLDER / "result.npz", stamps=np.array(stamps.stamps), first=stamps.first)


if __name__ == "__main__":
    main()
