"""Plans, launches, accounts and tracks training jobs."""
