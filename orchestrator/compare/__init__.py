"""Runs beside each other: what differs, what each bought for its money."""
