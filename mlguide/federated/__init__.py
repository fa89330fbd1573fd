"""Federated learning: the model travels to the clients, trains there, and updates come back.

``client`` is what runs on a device, ``aggregation`` what the server makes of the answers, and
``simulation`` plays both on one machine; ``partition`` deals data to clients. What may go wrong or
be seen on the way stands in ``attack``, ``secure``, ``privacy`` and ``compression``.
"""
