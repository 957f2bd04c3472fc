"""Multiple-choice and completion tasks from local JSONL, scored as lm-eval scores them.

`task` reads, `requests` makes tokens, `score` asks the engine, `results` counts, `evaluation` joins them.
"""
