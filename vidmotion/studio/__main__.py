"""Serves a page for the browser that moves heads and your own files with runs, and shows their latents and results.

    vidmotion studio                                 # the shipped networks, and the runs in the folder runs
    vidmotion studio --runs=DIR                      # with the runs in another folder
    vidmotion studio --workdir=runs/heads            # also this run; may be repeated

The page is at http://127.0.0.1:7860 and can only be reached from this machine, unless --host says otherwise. It needs
the extra `studio` (pip install 'vidmotion[studio]'). Uploaded files are kept until the server stops, and only the
browser that uploaded a file can read it.
"""

import argparse
import logging
import shutil
import socket
import sys

from vidmotion import startup
from vidmotion.errors import EXIT_DONE, ConfigError

log = logging.getLogger("vidmotion.studio")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="vidmotion studio", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    flag("--runs", default="runs", help="folder whose subfolders are runs (default runs)")
    flag("--workdir", action="append", default=[], help="another run to open; may be repeated")
    flag("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    flag("--port", type=startup.at_least(1), default=7860, help="port to listen on (default 7860)")
    args = parser.parse_args(argv)

    def work() -> int:
        startup.set_up_devices()
        startup.one_process()
        serve(args.runs, tuple(args.workdir), args.host, args.port)
        return EXIT_DONE

    startup.set_up_log()
    return startup.exit_code_of(work, "the page has ended")


def serve(runs: str, workdirs: tuple[str, ...], host: str, port: int) -> None:
    """Serves the page until Ctrl-C.

    Args:
      runs: the folder whose subfolders are runs.
      workdirs: further runs.
      host: the address to listen on.
      port: the port to listen on.

    Raises:
      ConfigError: the extra is not installed, or the address cannot be used.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"the page needs Gradio ({error}): pip install 'vidmotion[studio]'"
        ) from error
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:  # taken, or too large for a port
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host}:{port} cannot be used ({reason}): choose another --port"
        ) from error
    guarded, folder = application(runs, workdirs)
    log.info("http://%s:%d", host, port)
    try:
        uvicorn.run(guarded, host=host, port=port, log_level="warning")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def application(runs: str, workdirs: tuple[str, ...] = ()):
    """Builds the page as an ASGI application; returns it and the folder of its files.

    Raises:
      ConfigError: the extra is not installed.
    """
    try:
        import fastapi
        import gradio
    except ImportError as error:
        raise ConfigError(
            f"the page needs Gradio ({error}): pip install 'vidmotion[studio]'"
        ) from error
    from vidmotion.studio import MOST_BYTES, guard, page

    folder = page.temporary()
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(), page.build(runs, workdirs), path="", max_file_size=MOST_BYTES
    )
    return guard.Guard(app, folder, MOST_BYTES), folder


if __name__ == "__main__":
    sys.exit(main())
