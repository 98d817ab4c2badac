"""``alt explore`` on the command line; the work is in ``explore.py``, the page in ``app.py``."""

import importlib.util
import os
from typing import Annotated

import typer

from pipelines.errors import PipelineError
from pipelines.options import Quiet, errors, say


def explore_cli(
    run: Annotated[
        str,
        typer.Argument(
            help="Out folder of `alt run` or `alt demo`, one of its runs/NAME, or hf://OWNER/NAME."
        ),
    ],
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the page, which this machine alone can reach.")
    ] = 7860,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Look at videos on a local page: type labels, switch entities off, see the prediction change; search the corpus.

    Needs Gradio (extra `app`). Nothing leaves this machine, nothing is kept. Ctrl-C ends it.
    """
    with errors():
        if importlib.util.find_spec("gradio") is None:
            raise PipelineError(
                "the page needs Gradio, which is not installed: pip install 'alt-toolkit[app]'"
            )
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from pipelines.app import serve
        from pipelines.explore import open_explorer

        serve(open_explorer(run, device, say(quiet)), port, open_page, typer.echo)
