"""The first moment of `fathom`."""

from __future__ import annotations

import subprocess
import sys

STOPPED = """
import sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "orchestrator.cli.top":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
from orchestrator.cli.start import main
main()
"""


def test_it_can_be_stopped_before_all_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED, "list"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped\n")
