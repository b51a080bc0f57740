"""Names of the files in the folder of a training."""

HISTORY = "history.csv"
ENVIRONMENT = "environment.json"
PROBE = "precision.csv"
LOCATING = "locating.json"
RESUME = "resume.ckpt"
PROGRESS = ".progress.json"  # dotted: not part of the result
