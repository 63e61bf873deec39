"""What the libraries below say at every start though nothing is wrong."""

import logging
import os
import sys


# By logger, the messages of no use: Diffusers' pipelines name the class that transformers' line about torchvision is about,
# whatever is installed, and Diffusers imports torchao where it is installed, whatever of its kernels fit this machine.
_OF_NO_USE = {
    "transformers.utils.import_utils": "requires torchvision (not installed)",
    "torchao": "Failed to load ",
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}
for _logger, _message in _OF_NO_USE.items():
    logging.getLogger(_logger).addFilter(lambda record, message=_message: message not in record.getMessage())


def quiet_libraries() -> None:
    """
    For a command: silences what libraries say though nothing is wrong, transformers' hints, MediaPipe's C++ log, and where standard error is no terminal, the progress bars of loading. What
    the environment sets already stays; warnings of this package and of Diffusers are shown. Best called before mediapipe
    is imported; `pipe.set_progress_bar_config(disable=None)` does the same for sampling's bar.
    """
    # glog's and abseil's levels: 2 is errors only.
    for name in ("GLOG_minloglevel", "ABSL_MIN_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "2")

    import diffusers
    import transformers

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
        diffusers.logging.disable_progress_bar()
