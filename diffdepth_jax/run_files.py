"""The names of the files in a run's directory.

    WORKDIR/config.json             the config, with every field
            checkpoints/STEP/       the state after that many steps
                state/ config/ data/    arrays, config, position in the data
                checksums.json          for all these files
                recalibrated.json       decoder statistics for other numbers of denoising steps
            metrics.csv             training scalars, a row every few steps
            skipped.json            training frames that could not be read, if any
            teacher.json            which weights labelled the batches, if a teacher did
            evaluations.csv         the evaluations during training
            best.json               the best checkpoint according to these
            tensorboard/            both kinds of scalars for TensorBoard
            curves.png denoising.png predictions.png
            metrics.json per_image.csv report.html     from the latest evaluation
            .processes              temporary, to check that processes share the directory

An evaluation under several protocols writes `metrics.json` and `per_image.csv` into a folder for
each. The modules that write the files document their contents.
"""

CONFIG = "config.json"
SKIPPED = "skipped.json"
TEACHER = "teacher.json"

CHECKPOINTS = "checkpoints"
STATE = "state"
STEP_CONFIG = "config"
STEP_DATA = "data"
CHECKSUMS = "checksums.json"
RECALIBRATED = "recalibrated.json"

SCALARS = "metrics.csv"
TENSORBOARD = "tensorboard"
TENSORBOARD_EVALUATION = f"{TENSORBOARD}/evaluation"
EVALUATIONS = "evaluations.csv"
BEST = "best.json"

METRICS = "metrics.json"
PER_IMAGE = "per_image.csv"
PER_IMAGE_PARTIAL = "per_image.partial"  # prefix of unfinished files
REPORT = "report.html"

CURVES = "curves.png"
DENOISING = "denoising.png"
PREDICTIONS = "predictions.png"

PROCESSES = ".processes"
