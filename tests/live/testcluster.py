"""`make test-cluster`: the tests of a whole Kubernetes, in two parts, each with a cluster that begins and ends with it.

Without a node: scheduler, controllers and 257 pretended nodes; the controller is a process. With one: real pods of the
controller's image, which is made first. Says what is missing, and how long each part took.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from support.kube_home import NoCluster, definitions_beside, lacking

PARTS = {"pretended nodes": "cluster and not node", "a real node": "cluster and node"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--without-node", action="store_true", help="pretended nodes alone: needs neither root nor packages"
    )
    parser.add_argument("--if-possible", action="store_true", help="exit 0 where the cluster cannot be had, and say so")
    options = parser.parse_args()
    if missing := lacking(node=not options.without_node):
        return _not_run(missing, options.if_possible)
    os.environ.setdefault("FATHOM_TEST_CRDS", definitions_beside())
    parts = list(PARTS.items())[: 1 if options.without_node else 2]
    found = {name: _run(name, which) for name, which in parts}
    if absent := [name for name, status in found.items() if status == NoCluster.status]:
        missing = [f"a cluster with {name}: it did not come up; what was said of it stands above" for name in absent]
        found |= dict.fromkeys(absent, _not_run(missing, options.if_possible))
    return 1 if any(found.values()) else 0


def _run(name: str, which: str) -> int:
    """-> pytest's exit status."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pytest", "tests/cluster_node", "-q", "-n", "0", "-m", which])
    print(f"test-cluster: {name}: {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode


def _not_run(missing: list[str], is_fine: bool) -> int:
    """Loudly; -> exit status."""
    lines = ["tests of make test-cluster did NOT run. They lack:", *(f"- {one}" for one in missing)]
    print("\n".join(lines), file=sys.stderr)
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
