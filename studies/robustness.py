r"""Does self-distillation make a small network robust? Rendered scenes, judged by exact depth.

    make robust-demo                                          # streets of sample/, one seed
    python studies/robustness.py --workdir=runs/robustness --seeds=0,1,2
    python studies/robustness.py --workdir=runs/robustness_tables --scenes=tabletops --seeds=0,1,2

A teacher is trained on clear pictures with exact depth. Students start from it and learn its depth
of the clear training pictures from pictures of the same scenes under adverse conditions, which are
`rendered`, or made from the clear picture by `physical` models of image formation, or `both`. Two
controls train for the same steps on the clear pictures alone: `clear` with the teacher's weak
colour jitter and `colour` with a strong one. Scenes of the split val, on which nothing was trained,
are scored under every condition: as predicted, scaled by the median, and aligned by least squares
in disparity.

The streets come from sample/. With --frames=DIR they are rendered into DIR first if they are
missing there, as table-tops always are (with the extra `render`): training pictures of all layouts.

The workdir gets the runs `teacher`, `rendered`, ... (with several seeds `teacher-0`, ...), pairs,
scores, `summary.json`, `robustness.csv` and `.png`, `before_after.png` and `report.html`. Existing
results are not made again. Every command is printed and can be run by hand with the same effect.
"""

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import robustness_report as report
from reporting import PROJECT

from diffdepth_jax import atomic, cli, ending, run_files
from diffdepth_jax.data.sources.adverse import MANIFEST_FILE
from diffdepth_jax.errors import ConfigError, UserError

IMAGES = ("rendered", "physical", "both", "clear", "colour")
TIMES_FILE = "seconds.json"


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A kind of rendered scene.

    Attributes:
        kind: its name in `tools/render_scenes.py`.
        size: of the pictures.
        clear: the name of the condition that the teacher knows.
        conditions: the adverse ones.
        images: what students can be trained with.
        counts: number of layouts per split, if they are rendered.
        steps: of a student's training, unless --steps is given.
        training: config fields of every training.
    """

    kind: str
    size: tuple[int, int]
    clear: str
    conditions: tuple[str, ...]
    images: tuple[str, ...]
    counts: Mapping[str, int]
    steps: int = 400
    training: Mapping[str, object] = dataclasses.field(default_factory=dict)


SCENES = {
    "streets": Scenes(
        "street", (64, 208), "clear", report.WEATHER, IMAGES, {"train": 240, "val": 60}
    ),
    "tabletops": Scenes(
        "tabletop",
        (96, 128),
        "clear",
        ("transparent", "mirror"),
        ("rendered", "clear", "colour"),
        {"train": 160, "val": 48},
        1600,  # Glass and mirrors keep improving for longer than weather.
        {
            "data.train.augmentation.crop": (96, 128),
            "model.codec.initial_depth": 1.5,
            "model.max_depth": 10.0,
            "objective.max_depth": 10.0,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """The options of one command line.

    Attributes:
        scenes: a value of `SCENES`.
        frames: folder of the frames, as written by `tools/render_scenes.py`.
        workdir: for all results.
        seeds: of teacher and students.
        images: of the students; members of `IMAGES`.
        teacher_steps, steps: of training.
        overrides: further flags for the students' training.
    """

    scenes: Scenes
    frames: Path
    workdir: Path
    seeds: tuple[int, ...]
    images: tuple[str, ...]
    teacher_steps: int
    steps: int
    overrides: tuple[str, ...] = ()

    def path(self, name: str, seed: int) -> Path:
        """Folder of a run or of pairs; without the seed if there is only one."""
        return self.workdir / (name if len(self.seeds) == 1 else f"{name}-{seed}")


def main() -> None:
    study = _parse()
    for seed in study.seeds:
        train_teacher(study, seed)
        for images in study.images:
            train_student(study, seed, images)
    report.write(study, json.loads((study.workdir / TIMES_FILE).read_text()))


def render(scenes: Scenes, frames: Path) -> None:
    """Renders the frames that are missing in a folder."""
    for split, count in scenes.counts.items():
        _run(
            "tools/render_scenes.py",
            f"--kind={scenes.kind}",
            f"--count={count}",
            f"--split={split}",
            f"--size={scenes.size[0]}x{scenes.size[1]}",
            "--samples=16",
            "--seed=1",
            "--layout=kitti",
            "--image_format=jpg",
            f"--conditions={','.join((scenes.clear, *scenes.conditions))}",
            f"--output={frames}",
        )


def train_teacher(study: Study, seed: int) -> None:
    """Trains on the clear pictures and their exact depth."""
    _train(study, "configs/demo_regression.py", "teacher", seed, study.teacher_steps, {})


def train_student(study: Study, seed: int, images: str) -> None:
    """Makes the pairs, and trains a student on them."""
    if (study.path(images, seed) / run_files.METRICS).exists():
        return
    made = {"both": ("rendered", "physical")}.get(images, (images,))
    if images in report.CONTROLS:
        made = ("rendered",)  # only their clean pictures are used
    for each in made:
        make_pairs(study, seed, each)
    roots = [str(study.path(f"{each}_pairs", seed)) for each in made]
    fields: dict[str, object] = {"init.network": str(study.path("teacher", seed))}
    if len(roots) == 1:
        fields["data.train.source.root"] = roots[0]
    else:
        fields["data.train.source.name"] = "mixture"
        fields["data.train.source.parts"] = {
            each: {"source": {"name": "adverse", "root": root}, "weight": 1.0}
            for each, root in zip(made, roots, strict=True)
        }
    if images in report.CONTROLS:
        fields["data.train.clean_share"] = 1.0
    if images == "colour":
        fields["data.train.augmentation.jitter"] = 0.4
    _train(study, "configs/distill_demo.py", images, seed, study.steps, fields, study.overrides)


def make_pairs(study: Study, seed: int, images: str) -> None:
    """The clear training pictures, the teacher's depth, and the same scenes in bad weather.

    The teacher's depth is averaged with that of the mirrored picture. Nothing is rejected: the
    scenes are the same, and what the teacher gets most wrong is what there is to learn.
    """
    pairs = study.path(f"{images}_pairs", seed)
    if (pairs / MANIFEST_FILE).exists():
        return
    fields: dict[str, object] = {"backend.name": "physical"}
    drives = sorted(path.name for path in (study.frames / "depth" / "train").iterdir())
    if images == "rendered":
        fields = {"backend.root": str(study.frames)}
        drives = [drive for drive in drives if all(_pictures(study, drive))]
    layouts = study.workdir / f"{images}_layouts.txt"
    atomic.write_text(layouts, "".join(f"{drive}\n" for drive in drives))
    fields |= {
        "conditions": study.scenes.conditions,
        "source.root": str(study.frames / "raw"),
        "source.depth_root": str(study.frames / "depth" / "train"),
        "source.split": str(layouts),
        "source.cameras": ("image_02",),
        "teacher.checkpoint": str(study.path("teacher", seed)),
        "teacher.flip_tta": True,
        "structure.score": False,
    }
    command = ["generate_adverse.py", "--config=configs/adverse_rendered.py", f"--workdir={pairs}"]
    _timed(study, pairs.name, *command, *_flags(fields))


def _pictures(study: Study, drive: str) -> list[bool]:
    """Whether a scene exists under each condition."""
    folders = (
        study.frames / condition / "raw" / drive[: len("2000_01_01")] / drive
        for condition in study.scenes.conditions
    )
    return [any((folder / "image_02" / "data").glob("*")) for folder in folders]


def _train(
    study: Study,
    config: str,
    name: str,
    seed: int,
    steps: int,
    fields: Mapping[str, object],
    overrides: Sequence[str] = (),
) -> None:
    run = study.path(name, seed)
    if (run / run_files.METRICS).exists():
        return
    raw, depth = str(study.frames / "raw"), str(study.frames / "depth")
    roots = {"data.evaluation.root": raw, "data.evaluation.depth_root": depth}
    if name == "teacher":
        roots |= {"data.train.source.root": raw, "data.train.source.depth_root": depth}
    fields = {"seed": seed, "num_steps": steps, **roots, **study.scenes.training, **fields}
    command = ["train.py", f"--config={config}", f"--workdir={run}"]
    _timed(study, run.name, *command, *_flags(fields), *overrides)


def _flags(fields: Mapping[str, object]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in fields.items()]


def _timed(study: Study, name: str, *command: str) -> None:
    """Runs a command and records it and its wall-clock seconds in the workdir."""
    path = study.workdir / TIMES_FILE
    start = time.monotonic()
    _run(*command)
    times = json.loads(path.read_text()) if path.exists() else {}
    times[name] = {"seconds": time.monotonic() - start, "command": shlex.join(command)}
    atomic.write_text(path, json.dumps(times, indent=2) + "\n")


def _run(*command: str) -> None:
    print(f"\n$ python {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, str(PROJECT / command[0]), *command[1:]]).returncode
    if status:
        raise UserError(f"{command[0]} ended with status {status}; run the same command to resume")


def _parse() -> Study:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--scenes", choices=tuple(SCENES), default="streets")
    parser.add_argument(
        "--frames", help="folder of the frames, rendered if missing; default: sample/"
    )
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument(
        "--images", help="any of rendered, physical, both, clear, colour; default: all"
    )
    parser.add_argument("--teacher_steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, help="400; 1600 for table-tops")
    flags, overrides = parser.parse_known_args()
    if wrong := [word for word in overrides if not word.startswith("--config.")]:
        parser.error(f"{wrong[0]!r} is not an option; fields of a student are --config.NAME=VALUE")
    scenes = SCENES[flags.scenes]
    images = scenes.images if flags.images is None else tuple(flags.images.split(","))
    if unknown := [each for each in images if each not in scenes.images]:
        parser.error(f"--images: {flags.scenes} have no {unknown[0]!r}: {', '.join(scenes.images)}")
    seeds = flags.seeds.split(",")
    if not all(seed.isdigit() for seed in seeds):
        parser.error(f"--seeds is {flags.seeds!r}; it must be integers separated by commas")
    workdir = cli.directory("--workdir", flags.workdir)
    if flags.frames is None and flags.scenes != "streets":
        raise ConfigError("--frames is missing: name the folder that table-tops are rendered into")
    frames = PROJECT / "sample" if flags.frames is None else Path(flags.frames).expanduser()
    with atomic.directory(workdir):
        if flags.frames is not None:
            render(scenes, frames)
    return Study(
        scenes,
        frames,
        workdir,
        tuple(map(int, seeds)),
        images,
        flags.teacher_steps,
        scenes.steps if flags.steps is None else flags.steps,
        tuple(overrides),
    )


if __name__ == "__main__":
    with ending.one_line_errors():
        main()
