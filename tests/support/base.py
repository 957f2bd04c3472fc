"""A base install, for a process of its own: no package of the `train` extra that matters can be imported."""

BASE = """
import sys

class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "mlflow", "ray", "deepspeed", "psutil", "matplotlib", "tokenizers"):
            raise ImportError("not in a base install: " + name)

sys.meta_path.insert(0, Bar())
from orchestrator.cli.main import main
main()
"""
