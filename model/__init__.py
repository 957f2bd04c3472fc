"""DeepSeek-style language models and their training; never imports `orchestrator`."""
