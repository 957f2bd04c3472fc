"""What held time costs, and where it went."""
