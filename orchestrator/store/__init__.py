"""Where submitted jobs are kept: one protocol, SQLite on one machine (the cluster keeps them as its own objects)."""
