"""A prepared dataset as training and evaluation see it: shards, windows over them, and their order."""

from model.data.audit import Audit, audit
from model.data.batches import TrainingBatches, sample_checksum
from model.data.order import Order
from model.data.shards import TokenSplit
from model.data.windows import TrainingWindows, Windows, heldout_windows, verify_heldout

__all__ = [
    "Audit",
    "Order",
    "TokenSplit",
    "TrainingBatches",
    "TrainingWindows",
    "Windows",
    "audit",
    "heldout_windows",
    "sample_checksum",
    "verify_heldout",
]
