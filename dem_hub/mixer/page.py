"""The page: Gradio serves it, to this machine only if not told otherwise.

A tab of a browser has its own sliders, and all tabs have one model. What writes, or uses the owner's token, is on the
page only if nobody else can open it.
"""

import os
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

from dem_hub.errors import MissingDependencyError
from dem_hub.mixer.components import CSS, Components
from dem_hub.mixer.handlers import Handlers
from dem_hub.mixer.mixer import Mixer

# Requests that wait for the model; one more is told that the page is busy.
_WAITING = 32


def require_gradio() -> None:
    """Refuse to go on without Gradio. It is not imported, which takes seconds.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If it is not installed.
    """
    if find_spec("gradio") is None:
        raise MissingDependencyError(
            "The mixer needs Gradio, which is not installed. Run `pip install 'dem-hub[mixer]'`."
        )


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def launch(mixer: Mixer, host: str | None, port: int | None = None) -> Any:
    """Open the page, and return Gradio's `Blocks`, which serves it in threads until its `close`.

    Args:
        mixer ([`Mixer`]): The mixer.
        host (`str`, *optional*): The address to listen on. Beyond loopback, the page cannot add, save or push. `None`
            is for a page that a machine of the Hub serves to strangers: Gradio's own variables of the environment say
            where, and the page is as beyond loopback.
        port (`int`, *optional*): The port; by default the first that is free from 7860.
    """
    require_gradio()
    # Before the import, which reads it: Gradio tells its makers of every page that is opened.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    is_owner = host is not None and is_loopback(host)
    with gradio.Blocks(title=f"The mixer: {mixer.title}", analytics_enabled=False) as page:
        components = Components(gradio, mixer, is_owner=is_owner)
        Handlers(components).connect(page, is_owner=is_owner)
    page.queue(max_size=_WAITING)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        max_file_size=1,  # byte: nothing is uploaded here
        ssr_mode=False,
        enable_monitoring=False,
        css=CSS,
        theme=gradio.themes.Default(primary_hue="teal", neutral_hue="slate"),
    )
    return page
