"""The public names, made known to Diffusers, so that `DiffusionPipeline.from_pretrained`, `AutoModel.from_pretrained` and
single-file loading find them."""

import diffusers_dreamactor.library_messages  # noqa: F401, I001 first: it silences what the next lines say

import diffusers
from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines import pipeline_loading_utils

from diffusers_dreamactor.memory import MemoryPlan, list_memory_plans, plan_memory
from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.condition_cache import ConditionCache
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.models.single_file import register_single_file
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture
from diffusers_dreamactor.motion.capture.sapiens import SapiensCapture
from diffusers_dreamactor.motion.idle import idle_motion
from diffusers_dreamactor.motion.retarget import retarget
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
from diffusers_dreamactor.pipelines.few_steps import use_few_steps
from diffusers_dreamactor.pipelines.pipeline_dreamactor import DreamActorPipeline
from diffusers_dreamactor.pipelines.pipeline_dreamactor_wan_animate import DreamActorWanAnimatePipeline
from diffusers_dreamactor.pipelines.pipeline_output import DreamActorPipelineOutput
from diffusers_dreamactor.processors.body_skeleton import BodySkeletonProcessor
from diffusers_dreamactor.processors.face_motion import FaceMotionProcessor
from diffusers_dreamactor.processors.guidance import MotionGuidance, MotionGuidanceProcessor
from diffusers_dreamactor.processors.head_sphere import HeadSphereProcessor
from diffusers_dreamactor.processors.reference import Reference, ReferenceProcessor
from diffusers_dreamactor.talking_face import TalkingFace, speak


__all__ = [
    "AnimationInputs",
    "AudioMotionEncoder",
    "BodySkeletonProcessor",
    "ConditionCache",
    "DreamActorPipeline",
    "DreamActorPipelineOutput",
    "DreamActorTransformer3DModel",
    "DreamActorVAE",
    "DreamActorWanAnimatePipeline",
    "FaceMotionEncoder",
    "FaceMotionProcessor",
    "HeadSphereProcessor",
    "MediaPipeCapture",
    "MemoryPlan",
    "ModelMixin",
    "MotionGuidance",
    "MotionGuidanceProcessor",
    "MotionSequence",
    "PoseEncoder",
    "PromptEmbedding",
    "Reference",
    "ReferenceProcessor",
    "SapiensCapture",
    "SchedulerMixin",
    "TalkingFace",
    "idle_motion",
    "list_memory_plans",
    "plan_memory",
    "retarget",
    "speak",
    "use_few_steps",
]

_METHODS = ["save_pretrained", "from_pretrained"]
_MODELS = [
    AudioMotionEncoder,
    DreamActorTransformer3DModel,
    DreamActorVAE,
    FaceMotionEncoder,
    PoseEncoder,
    PromptEmbedding,
]
_CONFIG_COMPONENTS = [MotionGuidanceProcessor, MediaPipeCapture, SapiensCapture]


def _register() -> None:
    """Diffusers has no entry points: it looks classes up in these tables and on its own module. It finds models by
    their base classes, which this package therefore exposes, and components that are only a config by their name."""
    names = ["ModelMixin", "SchedulerMixin", *(component.__name__ for component in _CONFIG_COMPONENTS)]
    pipeline_loading_utils.LOADABLE_CLASSES["diffusers_dreamactor"] = dict.fromkeys(names, _METHODS)
    for component in _CONFIG_COMPONENTS:
        pipeline_loading_utils.ALL_IMPORTABLE_CLASSES[component.__name__] = _METHODS
    for cls in [DreamActorPipeline, DreamActorWanAnimatePipeline, *_MODELS]:
        setattr(diffusers, cls.__name__, cls)
    register_single_file(DreamActorTransformer3DModel)


_register()
