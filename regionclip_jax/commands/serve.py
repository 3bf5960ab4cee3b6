"""Serve a web page that detects objects by name in an image.

    regionclip serve checkpoints/clip_rn50

The page runs on this machine alone: http://127.0.0.1:8000. Ctrl-C ends the server. Proposals and
scores have the settings of the model directory, as in `regionclip detect`.
"""

import argparse
import ipaddress
import os
import sys

from regionclip_jax.commands.options import add_require_platform, start
from regionclip_jax.extras import require_extra
from regionclip_jax.failures import one_line
from regionclip_jax.model import load


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="model directory, with a localizer")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="name or address to listen on (default: this machine alone)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0: a free one (default: 8000)"
    )
    parser.add_argument("--short_side", type=int, default=800, help="pixels to resize to")
    parser.add_argument("--max_long_side", type=int, default=1333)
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port: found {options.port}, expected 0 to 65535")
    require_extra("serve", "regionclip serve")
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
        return 0


def _run(options: argparse.Namespace) -> int:
    # Their packages are in the extra.
    from regionclip_jax.serving.app import make_app
    from regionclip_jax.serving.detections import Detections
    from regionclip_jax.serving.limits import Limits
    from regionclip_jax.serving.server import listen, serve, url_of

    # A port in use is reported before the model is loaded, which takes a while.
    with listen(options.host, options.port) as listening:
        start(options)
        model = load(
            options.model, short_side=options.short_side, max_long_side=options.max_long_side
        )
        model.require_proposals()
        limits = Limits()
        detections = Detections(model, limits)

        def announce() -> None:
            print(f"{options.model}: {url_of(listening, options.host)} (Ctrl-C ends)", flush=True)
            if not _is_loopback(options.host):
                print(
                    "there is no password: everyone who reaches this machine can use the page",
                    file=sys.stderr,
                )

        try:
            serve(make_app(model, detections, options.host, limits), listening, limits, announce)
        finally:
            # Compiling and computing cannot be interrupted, and Python would wait for the thread.
            if detections.is_running():
                print("\nstopped during a detection", flush=True)
                os._exit(0)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
