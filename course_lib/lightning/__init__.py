"""The flag that Lightning never had: ``gradient_checkpointing: true``, from a config file.

``LanguageModel`` has it as a hyperparameter; ``GradientCheckpointing`` gives it to any other
``LightningModule``; ``CheckpointingAdvice`` says which blocks it is good for, ``MemoryMonitor``
whether it worked. To train from a config::

    python -m course_lib.lightning fit --config notebooks/04_config.yaml \\
        --model.gradient_checkpointing=true
"""

from typing import TYPE_CHECKING

from ..lazily import loading

if TYPE_CHECKING:
    from .advice import CheckpointingAdvice
    from .command import main
    from .data import Counting
    from .flag import GradientCheckpointing
    from .model import LanguageModel
    from .monitor import MemoryMonitor
    from .quietly import quiet
    from .record import StepRecord

__all__ = [
    "CheckpointingAdvice",
    "Counting",
    "GradientCheckpointing",
    "LanguageModel",
    "MemoryMonitor",
    "StepRecord",
    "main",
    "quiet",
]

__getattr__ = loading(
    __name__,
    {
        ".advice": "CheckpointingAdvice",
        ".command": "main",
        ".data": "Counting",
        ".flag": "GradientCheckpointing",
        ".model": "LanguageModel",
        ".monitor": "MemoryMonitor",
        ".quietly": "quiet",
        ".record": "StepRecord",
    },
)
