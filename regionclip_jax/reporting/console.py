"""What a person at the terminal sees: our own progress, and other packages' warnings."""

from pathlib import Path

from absl import flags, logging

import regionclip_jax

_PACKAGE = str(Path(regionclip_jax.__file__).parent)


def log_own_progress() -> None:
    """Shows INFO lines of this package and only warnings of all others.

    Orbax and grain report every file at INFO through the same logger.
    """
    # A script that is not an absl app has neither absl's handler nor flags until then.
    logging.use_absl_handler()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= 30 or record.pathname.startswith(_PACKAGE)
    )
