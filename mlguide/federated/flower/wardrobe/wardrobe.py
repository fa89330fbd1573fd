"""The two halves of the app; both are mlguide's, so that what was simulated is what runs here."""

from mlguide.federated.flower.apps import client_app, server_app

client = client_app()
server = server_app()
