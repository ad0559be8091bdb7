"""Names of the files of a run, and the version of their format. Does not import torch."""

MODEL, RESULT, CONFIG, METRICS = "model.pt", "result.json", "config.json", "metrics.jsonl"
RUN_FORMAT = 2  # of a run's configuration, checkpoints and model; files of format 1 hold no version
