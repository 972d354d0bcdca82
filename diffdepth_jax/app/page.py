"""The page itself, in Gradio: its layout, and which action follows which event.

Needs the optional extra `app`. Nothing is reported to Gradio's makers, and the page loads nothing
from other servers.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from diffdepth_jax.app import predictions
from diffdepth_jax.app.actions import EMPTY, SCENE_TAB, Actions, Outputs, message, note
from diffdepth_jax.app.results import LIFETIME
from diffdepth_jax.app.uploads import Limits
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference.point_cloud import FIELD_OF_VIEW

_SESSIONS = 20  # visitors whose last prediction is remembered
_WAITING = 20  # predictions that may wait in the queue

# Only one prediction, or loading of a model, at a time.
_MODEL = {"concurrency_id": "model", "api_visibility": "private"}
# Quick enough to need no queue.
_LIGHT = {"api_visibility": "private", "show_progress": "hidden", "queue": False}

_STYLE = """
.html-container {padding: 0 !important}
h1 {font-size: 1.6rem; margin: 0.3rem 0 0}
.note {color: var(--body-text-color); opacity: 0.75; font-size: 0.9rem; margin: 0.1rem 0}
.message {padding: 0.6rem 0.9rem; border-radius: 0.5rem;
  background: var(--background-fill-secondary)}
.message.error {background: #fdecea; color: #8a1c12; border: 1px solid #e6a39c}
.legend {max-width: 36rem; margin: 0.2rem auto 0}
.legend .bar {height: 0.7rem; border-radius: 0.3rem}
.legend .ticks {position: relative; height: 1.3rem; font-size: 0.8rem}
.legend .ticks span {position: absolute; transform: translateX(-50%)}
.legend .caption {text-align: center; font-size: 0.85rem}
#image .image-frame, #step_picture .image-frame {width: 100%}
#image img, #step_picture img {width: 100%; object-fit: contain}
#step_picture img {height: auto; max-height: 600px}
"""
# JavaScript that determines the first input of `Actions.scene`.
_OPEN_TAB = """
  const tab = document.querySelector("#results [role=tab][aria-selected=true]");
  return [tab?.textContent.trim() ?? "", ...others];
"""
_ASK = f"async (_, ...others) => {{{_OPEN_TAB}}}"
_ASK_AGAIN_IF_EMPTY = f"""async (_, ...others) => {{
  await new Promise((wait) => setTimeout(wait, 1000));
  if (document.querySelector("#scene canvas")) return ["", ...others];
  {_OPEN_TAB}
}}"""
_TITLE = """<h1>Depth from one image</h1>
<p class="note">Your images stay on the machine that serves this page. They are deleted after an
hour, and when it stops.</p>"""


@dataclass(frozen=True)
class _Inputs:
    image: Any
    checkpoint: Any
    facts: Any
    steps: Any
    samples: Any
    seed: Any
    button: Any

    @property
    def of_checkpoint(self) -> list[Any]:
        """What `Actions.choose` sets."""
        return [self.facts, self.steps, self.samples]


@dataclass(frozen=True)
class _Scene:
    open_tab: Any
    field_of_view: Any
    viewer: Any


def build(actions: Actions, examples: Sequence[Path] = ()) -> gr.Blocks:
    """The page, not yet served.

    Args:
        examples: images that are offered below the upload.
    """
    # Otherwise Gradio copies them into the folder whose old files are deleted.
    gr.set_static_paths(list(examples))
    with gr.Blocks(title="Depth from one image", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_TITLE)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs = _inputs(actions, examples)
            with gr.Column(scale=5, min_width=480):
                outputs, scene = _outputs()
        _connect(actions, inputs, outputs, scene)
        page.load(actions.choose, inputs.checkpoint, inputs.of_checkpoint, **_MODEL)
    return page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)


def _inputs(actions: Actions, examples: Sequence[Path]) -> _Inputs:
    limits, names = actions.limits, actions.checkpoints.names
    image = gr.Image(
        label="Image",
        type="filepath",
        sources=["upload", "clipboard"],
        height=240,
        elem_id="image",
    )
    # Otherwise Gradio decodes images of any size and format. (Not a subclass, for which Gradio
    # would write a file into this package.)
    image.preprocess = lambda payload: None if payload is None else payload.path
    gr.HTML(note(f"At most {limits.megabytes:g} MB and {limits.megapixels:g} megapixels."))
    if examples:
        gr.Examples([str(path) for path in examples], [image], label="Rendered examples")
    checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint", elem_id="checkpoint")
    facts = gr.HTML(elem_id="facts")
    with gr.Accordion("Options", open=False):
        steps = gr.Radio([], label="Denoising steps", visible=False, elem_id="steps")
        samples = gr.Slider(
            1,
            predictions.MOST_SAMPLES,
            1,
            step=1,
            label="Samples",
            info="Several give a mean and a spread, which shows where the network is uncertain.",
            elem_id="samples",
        )
        seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, maximum=2**31)
    button = gr.Button("Predict depth", variant="primary", elem_id="predict")
    return _Inputs(image, checkpoint, facts, steps, samples, seed, button)


def _outputs() -> tuple[Outputs, _Scene]:
    line = gr.HTML(message(EMPTY), elem_id="message")
    with gr.Tabs(visible=False, elem_id="results") as tabs:
        with gr.Tab("Depth"):
            compared = _slider("Image and depth", "compared")
            legend = gr.HTML()
        with gr.Tab("Denoising", visible=False) as steps_tab:
            step = gr.Slider(1, 2, 1, step=1, label="Denoising step", elem_id="step")
            step_picture = gr.Image(
                label="Depth decoded from the latent",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="step_picture",
            )
            step_caption = gr.HTML(elem_id="step_caption")
        with gr.Tab("Spread", visible=False) as spread_tab:
            spread = _slider("Image and spread of the samples", "spread")
            spread_legend = gr.HTML()
        with gr.Tab(SCENE_TAB):
            viewer = gr.Model3D(
                label="Point cloud",
                interactive=False,
                clear_color=(0.09, 0.09, 0.11, 1.0),
                height=480,
                elem_id="scene",
            )
            field_of_view = gr.Slider(
                20, 120, FIELD_OF_VIEW, step=1, label="Assumed field of view, degrees"
            )
            scene_note = gr.HTML()
        with gr.Tab("Files"):
            downloads = gr.File(
                label="Files", file_count="multiple", interactive=False, elem_id="files"
            )
    memory = gr.State(None, time_to_live=LIFETIME)
    outputs = Outputs(
        message=line,
        tabs=tabs,
        compared=compared,
        legend=legend,
        steps_tab=steps_tab,
        step=step,
        step_picture=step_picture,
        step_caption=step_caption,
        spread_tab=spread_tab,
        spread=spread,
        spread_legend=spread_legend,
        scene_note=scene_note,
        downloads=downloads,
        memory=memory,
    )
    open_tab = gr.Textbox(visible=False)
    return outputs, _Scene(open_tab, field_of_view, viewer)


def _slider(label: str, name: str) -> Any:
    """Two pictures on top of each other, with a line between them that can be moved."""
    return gr.ImageSlider(label=label, interactive=False, elem_id=name, max_height=600)


def _connect(actions: Actions, inputs: _Inputs, outputs: Outputs, scene: _Scene) -> None:
    options = (inputs.steps, inputs.samples, inputs.seed, scene.field_of_view)
    of_image = [inputs.image, inputs.checkpoint, *options]
    of_scene = [scene.open_tab, scene.field_of_view, outputs.memory]

    def show_scene(event: Any) -> None:
        # Unless it is the last, an event is skipped while the previous one is pending.
        options: Any = {"trigger_mode": "always_last", **_LIGHT}
        shown = event(actions.scene, of_scene, scene.viewer, js=_ASK, **options)
        # Gradio's viewer stays empty if its tab is drawn again while the viewer's code is loading.
        shown.then(actions.scene, of_scene, scene.viewer, js=_ASK_AGAIN_IF_EMPTY, **options)

    def predict(event: Any) -> None:
        show_scene(event(actions.predict, of_image, outputs.listed(), **_MODEL).then)

    chosen = inputs.checkpoint.change(
        actions.choose, inputs.checkpoint, inputs.of_checkpoint, **_MODEL
    )
    for event in (inputs.image.change, inputs.button.click, chosen.then):
        predict(event)
    outputs.step.change(
        actions.step,
        [outputs.step, outputs.memory],
        [outputs.step_picture, outputs.step_caption],
        trigger_mode="always_last",
        **_LIGHT,
    )
    show_scene(outputs.tabs.select)
    show_scene(scene.field_of_view.release)
    scene.field_of_view.release(actions.downloads, of_scene[1:], outputs.downloads, **_LIGHT)


def serve(page: gr.Blocks, host: str, port: int | None, limits: Limits) -> str:
    """Starts serving in threads of this process.

    Args:
        host: the address to listen on.
        port: None for the first free one from 7860.

    Returns:
        The address for a browser.

    Raises:
        ConfigError: if nothing can listen there.
    """
    _check_address(host, port)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=limits.num_bytes,
        state_session_capacity=_SESSIONS,
        footer_links=[],
        theme=theme,
        css=_STYLE,
    )
    return str(address)


def _check_address(host: str, port: int | None) -> None:
    # Gradio itself would keep trying.
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        raise ConfigError(
            f"no page can be served at --host={host}"
            + (f" --port={port}" if port else "")
            + f": {error.strerror}; choose another"
        ) from error
