"""What the processors share: a component without weights that is saved and loaded with its pipeline."""

import os

from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import PushToHubMixin


class ProcessorMixin(ConfigMixin, PushToHubMixin):
    """
    A configuration-only pipeline component: everything it needs is in `processor_config.json`.

    Subclasses register their arguments with `register_to_config`, as models and schedulers do.
    """

    config_name = "processor_config.json"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "ProcessorMixin":
        """
        Builds the processor from `processor_config.json` in a local folder or a Hub repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): the folder, or the Hub id.
            kwargs: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`, ... as in every Diffusers component;
                arguments of the processor override the file.

        Raises:
            OSError: there is no such folder or repository, or no `processor_config.json` in it.
        """
        config, kwargs, _ = cls.load_config(
            pretrained_model_name_or_path, return_unused_kwargs=True, return_commit_hash=True, **kwargs
        )
        return cls.from_config(config, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """
        Writes `processor_config.json` into a folder, which is made when it is not there.

        Args:
            save_directory (`str` or `os.PathLike`): the folder.
            push_to_hub (`bool`): upload the folder afterwards, with `repo_id`, `token`, `private`, ... from `kwargs`.
        """
        self.save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
