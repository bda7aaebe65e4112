"""A page in the browser for trying a model on one's own pictures; nothing leaves the machine."""

import collections
import os
import socket
from typing import Any

import numpy as np

from mmffnet.errors import UsageError, shorten
from mmffnet.inference import Classification, Detections, Inferencer, Result, Segmentation

_CSS = """
.gradio-container {
  width: 100% !important; max-width: 1280px !important; margin: 0 auto !important;
}
#summary { min-height: 3em; }
"""


def prepare(host: str, port: int | None) -> None:
    """Make sure that a page can be shown, before a model is loaded."""
    _import_gradio()
    try:
        with socket.socket() as trial:
            if os.name != 'nt':  # where it lets two programs listen at one port
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port or 0))
    except (OSError, OverflowError) as error:
        raise UsageError(f'cannot listen at {host}:{port or "any port"}: {error}') from error


def build_page(inferencer: Inferencer, title: str, score_thr: float) -> Any:
    """Make the page: a place for a picture, the painted result, and a slider for detectors."""
    gr = _import_gradio()

    def paint(result: Result | None, score: float) -> tuple[np.ndarray | None, str]:
        if result is None:
            return None, ''
        if isinstance(result, Detections):
            result = result.above(score)
        return result.paint_frame(), describe(result)  # the picture itself is beside it

    def predict(image: np.ndarray | None) -> Result | None:
        return None if image is None else inferencer(np.ascontiguousarray(image[..., ::-1]))[0]

    shown = shorten(inferencer.legend.classes, 12)
    # telemetry is off; uploads and results are deleted after an hour, and at the end
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f'## {title}\n{inferencer.task.capitalize()} of {shown or "unnamed classes"}')
        result = gr.State()
        with gr.Row():
            picture = gr.Image(
                label='picture',
                show_label=False,
                sources=['upload', 'webcam', 'clipboard'],
                height=520,
                buttons=['fullscreen'],
            )
            # without the button that would send the picture elsewhere
            painted = gr.Image(
                label='result',
                elem_id='painted',
                show_label=False,
                interactive=False,
                format='png',
                height=520,
                buttons=['fullscreen', 'download'],
            )
        score = gr.Slider(
            0,
            1,
            score_thr,
            step=0.01,
            label='score threshold',
            elem_id='score',
            visible=inferencer.task == 'detection',
        )
        summary = gr.Markdown(elem_id='summary')
        # painted when the model has run, by where the slider is then
        found = picture.change(predict, picture, result, show_progress_on=painted)
        found.success(
            paint,
            [result, score],
            [painted, summary],
            trigger_mode='always_last',  # another picture may come while one is painted
        )
        # only the last of many movements counts; the model does not run again
        score.change(
            paint,
            [result, score],
            [painted, summary],
            show_progress='hidden',
            trigger_mode='always_last',
        )
    return page


def describe(result: Result) -> str:
    """Say what was found, in one line."""
    name = result.legend.name
    if isinstance(result, Detections):
        if not len(result.labels):
            return 'Nothing is that sure.'
        counts = collections.Counter(map(int, result.labels)).most_common()
        parts = [f'{name(label)} ({number})' for label, number in counts]
        return f'**{len(result.labels)} found:** {", ".join(parts)}'
    if isinstance(result, Segmentation):
        shares = result.describe()['pixels'].items()
        return ', '.join(f'{one} {100 * n / result.labels.size:.1f} %' for one, n in shares)
    assert isinstance(result, Classification)
    ((label, score),) = result.top(1)
    return f'**{name(label)}**, {100 * score:.1f} %'


def serve(page: Any, host: str, port: int | None) -> None:
    """Show a page until it is interrupted; without a port at the first free one from 7860."""
    gr = _import_gradio()
    fonts = ('system-ui', 'sans-serif')
    theme = gr.themes.Soft(primary_hue='blue', font=fonts, font_mono=('monospace',))
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        footer_links=[],
        ssr_mode=False,
        theme=theme,
        css=_CSS,
    )
    print(f'the page is at {address} (Ctrl+C ends it)', flush=True)
    page.block_thread()


def _import_gradio() -> Any:
    # for what gradio itself would send
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
    try:
        import gradio
    except ImportError as error:
        text = f"the page needs gradio, which cannot be imported ({error}): pip install 'gradio>=6'"
        raise UsageError(text) from error
    if int(gradio.__version__.partition('.')[0]) < 6:
        raise UsageError(
            f'the page needs gradio 6, not {gradio.__version__}: pip install -U gradio'
        )
    return gradio
