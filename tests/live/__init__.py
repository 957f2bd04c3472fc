"""Fathom on a live cluster with KubeRay: `make e2e` installs it, trains, breaks things, and compares."""
