"""Terminal output: progress of this package, and warnings of other packages."""

from pathlib import Path

from absl import flags, logging

import regionclip_jax

_PACKAGE = str(Path(regionclip_jax.__file__).parent)


def log_own_progress() -> None:
    """Show INFO lines of this package and only warnings of others.

    Orbax and grain log every file at INFO through the same logger.
    """
    # A script that is not an absl app has no absl handler and no parsed flags yet.
    logging.use_absl_handler()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= 30 or record.pathname.startswith(_PACKAGE)
    )
