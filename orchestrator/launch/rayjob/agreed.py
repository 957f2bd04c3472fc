"""What pods, driver and controller have agreed on: names of files, variables and labels. The renderer writes them, the
cluster's side of `launch.entry` and the controller read them.

The driver is started as `exec python -m orchestrator.launch.entry --cluster /etc/fathom`. `--cluster FOLDER` stands
where a laptop gives RUN_FOLDER ATTEMPT: the attempt is in `resolved.json`, the incarnation in FATHOM_INCARNATION (the
RayCluster that the pod belongs to: the same RayJob gets another one when Kueue lets it in again), events go to
FATHOM_CONTROLLER_URL with the token in FATHOM_TOKEN_FILE, Ray is the one that already runs. A last checkpoint may take
FATHOM_STOP_SECONDS from SIGTERM on.
"""

from __future__ import annotations

from typing import Final

CONFIGURATION: Final = "/etc/fathom"
"""Folder of what an attempt is given, read-only."""
RESOLVED: Final = "resolved.json"
JOB_DOCUMENT: Final = "job.json"
"""The TrainingJob as it was submitted: what a driver reads that completes a recipe by the dataset."""
SIGNING_KEY: Final = "signing.key"
AUTHORITY: Final = "ca.crt"

TOKEN_FOLDER: Final = "/var/run/fathom"
TOKEN: Final = "token"

CLAIMS: Final = "/mnt/claims"
"""Persistent volume claims are mounted below, each by its name."""

HOME: Final = "/tmp"
RUN: Final = "/tmp/fathom"
"""What the processes of one pod tell each other; made by whoever writes first."""
DRIVER_PID: Final = f"{RUN}/driver.pid"
"""Number of the driver's process, written before anything else, anew by each driver."""
DRIVER_DONE: Final = f"{RUN}/driver.done"
"""Written by the driver as its last act, when `ended` has reached the controller."""
WORKER_PIDS: Final = f"{RUN}/workers"
"""Folder: a file for each training process of the pod, whose name is the number of its process."""

ENTRYPOINT: Final = f"exec python -m orchestrator.launch.entry --cluster {CONFIGURATION}"
"""Ray gives it to `sh -c`. Every character of it stands here."""

JOB: Final = "fathom.dev/job"
JOB_UID: Final = "fathom.dev/job-uid"
ATTEMPT: Final = "fathom.dev/attempt"
TEAM: Final = "fathom.dev/team"
ACCELERATOR: Final = "fathom.dev/accelerator"
PRICE_CLASS: Final = "fathom.dev/price-class"
CONTENT_HASH: Final = "fathom.dev/content-hash"
"""Label of an attempt's objects: the same for all of one rendering, another if anything in them differs."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"

GATE: Final = "fathom.dev/plan-and-budget"
"""Kueue does not admit the job until the controller has taken this away."""
