"""The same client on Flower's engine.

``apps`` are its two halves, ``simulation`` runs them on this machine's cores, ``fleet`` on real
processes, and ``recorder`` keeps what crosses between those.

The folder ``wardrobe`` is the Flower app that a fleet is sent.
"""

from importlib.util import find_spec

if find_spec("flwr") is None:
    raise ImportError(
        "mlguide.federated.flower needs Flower: "
        "pip install 'mlguide[flower] @ git+https://github.com/mlguide-book/mlguide@main'"
    )
