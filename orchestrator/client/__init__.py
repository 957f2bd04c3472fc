"""The Python client of the REST API, for programs and for the command line.

`calls` makes requests and reads answers, `again` decides what is sent once more, both without I/O; `core` is every verb
once, as `AsyncClient`; `blocking` drives the same over a transport that never waits for an event loop, as `Client`.
"""

from orchestrator.client.blocking import Client
from orchestrator.client.core import AsyncClient
from orchestrator.client.find import Service
from orchestrator.client.values import Job, Me, PlannedJob, Token

__all__ = ["AsyncClient", "Client", "Job", "Me", "PlannedJob", "Service", "Token"]
