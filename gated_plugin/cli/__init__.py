"""`gated-hub`: train, evaluate, publish and fetch Gated SAEs."""

from __future__ import annotations

import os
import signal
import sys

EXIT_ERROR = 1
EXIT_TERMINATED = 128 + signal.SIGTERM


def main() -> None:
    """Entry point of the console script: errors are one sentence, `--debug` adds a traceback."""
    from gated_plugin.cli import (  # noqa: F401 # each adds its commands to the one app
        output,
        plan_command,
        reproduction_command,
        science_commands,
    )
    from gated_plugin.errors import GatedError

    debug = "--debug" in sys.argv
    if not debug:
        _hush()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # so that `with` ends
    try:
        reproduction_command.app()
    except GatedError as error:
        if debug:
            raise
        output.error(str(error))
        sys.exit(getattr(error, "exit_code", EXIT_ERROR))
    except OSError as error:
        if debug:
            raise
        output.error(
            f"{error.strerror or error} ({error.filename or 'no file'}); mend that and run the same "
            "command again, with `gated-hub --debug` to see more."
        )
        sys.exit(EXIT_ERROR)


def _hush() -> None:
    """Keep what libraries say about themselves from between a command's lines."""
    import logging
    import warnings

    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it tells of every retry
    logging.getLogger("sae_lens").setLevel(logging.CRITICAL)  # an "error" per batch at hook_z
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", message="The training dataset contains fewer samples")
    warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained")
    warnings.filterwarnings("ignore", message="pretokenized dataset has context_size")
    warnings.filterwarnings("ignore", message="To copy construct from a tensor")
