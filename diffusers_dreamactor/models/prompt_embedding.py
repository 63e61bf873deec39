"""Stored text states, so that a repository works without its text encoder."""

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin


class PromptEmbedding(ModelMixin, ConfigMixin):
    """
    The states of a usual prompt and of the empty one, computed once by a text encoder and used when no prompt is
    given.

    Args:
        sequence_length (`int`, defaults to 512): Tokens of the text states.
        text_dim (`int`, defaults to 4096): Channels of the text states.
        prompt (`str`, *optional*): The prompt that was encoded, for the reader of the config.
    """

    @register_to_config
    def __init__(self, sequence_length: int = 512, text_dim: int = 4096, prompt: str | None = None):
        super().__init__()
        self.prompt_embeds = nn.Parameter(torch.zeros(1, sequence_length, text_dim), requires_grad=False)
        self.negative_prompt_embeds = nn.Parameter(torch.zeros(1, sequence_length, text_dim), requires_grad=False)

    def forward(self, negative: bool = False) -> torch.Tensor:
        """
        Args:
            negative (`bool`): Whether the states of the empty prompt are asked for.

        Returns:
            `torch.Tensor` of shape `(1, sequence_length, text_dim)`.
        """
        return self.negative_prompt_embeds if negative else self.prompt_embeds
