"""What the page does: from a visitor's input to the values of Gradio's components.

Needs Gradio, the optional extra `app`.
"""

import dataclasses
import html
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from diffdepth_jax.app import predictions, results, uploads
from diffdepth_jax.app.checkpoints import Checkpoints
from diffdepth_jax.app.predictions import Options, Prediction
from diffdepth_jax.app.results import Pictures
from diffdepth_jax.app.uploads import Limits
from diffdepth_jax.errors import UserError, printable
from diffdepth_jax.inference.point_cloud import Camera

SCENE_TAB = "3-D"
EMPTY = "Drop an image on the left, or choose one of the examples."


@dataclass(frozen=True)
class Outputs:
    """The components that a prediction fills, or the values for them in the same order."""

    message: Any
    tabs: Any
    compared: Any
    legend: Any
    steps_tab: Any
    step: Any
    step_picture: Any
    step_caption: Any
    spread_tab: Any
    spread: Any
    spread_legend: Any
    scene_note: Any
    downloads: Any
    memory: Any

    def listed(self) -> list[Any]:
        return list(vars(self).values())


@dataclass(frozen=True)
class Memory:
    """What a visitor's next clicks refer to."""

    prediction: Prediction
    pictures: Pictures
    captions: list[str]
    folder: Path


class Actions:
    """What the page does on events.

    Args:
        checkpoints: the checkpoints to choose from.
        limits: limits of uploads.
        folder: an existing folder for files; old files in it are deleted.
    """

    def __init__(self, checkpoints: Checkpoints, limits: Limits, folder: Path):
        self.checkpoints = checkpoints
        self.limits = limits
        self.folder = folder

    def choose(self, name: str) -> tuple[Any, Any, Any]:
        """A line about a checkpoint, and the options that it allows."""
        try:
            model = self.checkpoints.model(name)
        except UserError as error:
            return _error(error), gr.update(choices=[], visible=False), gr.update(visible=False)
        steps = predictions.step_choices(model)
        own = model.model.num_inference_steps if model.denoises else None
        return (
            note(predictions.describe(model)),
            gr.update(choices=steps, value=own, visible=len(steps) > 1),
            gr.update(value=1, visible=model.denoises),
        )

    def predict(
        self,
        path: str | None,
        name: str,
        steps: int | None,
        samples: float,
        seed: float,
        field_of_view: float,
    ) -> list[Any]:
        """Values of `Outputs` for an uploaded file."""
        if path is None:
            return _nothing(message(EMPTY))
        try:
            model = self.checkpoints.model(name)
            upload = uploads.read(Path(path), self.limits)
            known = predictions.step_choices(model)
            options = Options(
                num_inference_steps=steps if steps in known else None,
                num_samples=int(samples) if model.denoises else 1,
                seed=int(seed or 0),
            )
            prediction = predictions.predict(model, upload, options)
            folder = self.folder / uuid.uuid4().hex
            pictures = results.write_pictures(prediction, folder / "shown")
            downloads = results.write_downloads(prediction, _camera(field_of_view), folder)
        except UserError as error:
            return _nothing(_error(error))
        results.remove_old(self.folder, time.time())
        captions = predictions.step_captions(prediction)
        # The steps are pictures by now.
        remembered = dataclasses.replace(prediction, steps=prediction.steps[:0])
        return _filled(Memory(remembered, pictures, captions, folder), downloads)

    def step(self, number: float, memory: Memory | None) -> tuple[Any, Any]:
        """The picture and the caption of a denoising step."""
        if memory is None or not 1 <= number <= len(memory.captions):
            return None, ""
        index = int(number) - 1
        picture = memory.pictures.steps[index]
        if not picture.exists():
            return None, note("The files of this prediction have been deleted: predict again.")
        return str(picture), note(memory.captions[index])

    def scene(self, tab: str, field_of_view: float, memory: Memory | None) -> Any:
        """The scene, seen from above the camera.

        It is set only while its tab is open, and from a new file each time: a viewer that is hidden
        stays empty, and no viewer loads the same file twice.
        """
        if memory is None or tab != SCENE_TAB:
            return gr.skip()
        camera = _camera(field_of_view)
        path, distance = results.write_scene(memory.prediction, camera, memory.folder)
        return gr.update(value=str(path), camera_position=(84, 80, 1.05 * distance))

    def downloads(self, field_of_view: float, memory: Memory | None) -> Any:
        """The files for another field of view, which changes the point cloud."""
        if memory is None:
            return gr.skip()
        camera = _camera(field_of_view)
        folder = memory.folder / f"{field_of_view:g}"
        return _paths(results.write_downloads(memory.prediction, camera, folder))


def _camera(field_of_view: float) -> Camera:
    return Camera(field_of_view=field_of_view)


def _paths(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


def _filled(memory: Memory, downloads: list[Path]) -> list[Any]:
    prediction, pictures, captions = memory.prediction, memory.pictures, memory.captions
    image = str(pictures.image)
    steps, spread = len(captions), pictures.spread is not None
    return Outputs(
        message=message(predictions.summary(prediction)),
        tabs=gr.update(visible=True),
        compared=(image, str(pictures.depth)),
        legend=predictions.legend(prediction),
        steps_tab=gr.update(visible=steps > 1),
        step=gr.update(maximum=max(steps, 2), value=max(steps, 1)),
        step_picture=str(pictures.steps[-1]) if steps else None,
        step_caption=note(captions[-1]) if steps else "",
        spread_tab=gr.update(visible=spread),
        spread=(image, str(pictures.spread)) if spread else None,
        spread_legend=predictions.spread_legend(prediction) if spread else "",
        scene_note=note(_scene_note(prediction)),
        downloads=_paths(downloads),
        memory=memory,
    ).listed()


def _nothing(line: str) -> list[Any]:
    values: dict[str, Any] = dict.fromkeys(each.name for each in dataclasses.fields(Outputs))
    values.update(message=line, tabs=gr.update(visible=False))
    values.update(dict.fromkeys(("steps_tab", "step", "spread_tab"), gr.skip()))
    return Outputs(**values).listed()


def _scene_note(prediction: Prediction) -> str:
    note = (
        "Drag to turn, scroll to come closer. Each pixel is a patch; the farthest 3% are left out."
    )
    if prediction.is_metric:
        return note
    return (
        f"{note} Relative disparity has no scale and no shift, so the shape is only one of many: "
        f"the farthest point is put at {results.FARTHEST_TO_NEAREST:g} times the distance of the "
        "nearest."
    )


def message(text: str) -> str:
    return f'<div class="message">{html.escape(text)}</div>'


def _error(error: UserError) -> str:
    line = " ".join(printable(str(error)).split())
    return f'<div class="message error" role="alert">{html.escape(line)}</div>'


def note(text: str) -> str:
    return f'<div class="note">{html.escape(text)}</div>'
