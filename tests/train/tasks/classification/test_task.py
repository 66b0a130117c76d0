"""What classification makes of its configuration."""

import natjax
from natjax.train.config.settings import ModelConfig
from natjax.train.tasks.classification.config import ClassificationConfig, ImagesConfig
from natjax.train.tasks.classification.task import Classification


def test_flops_are_those_of_the_model_with_its_own_classes():
    data = ImagesConfig(name="digits", image_size=224)
    config = ClassificationConfig(model=ModelConfig(name="nat_tiny"), data=data)
    published = natjax.model_summary("nat_tiny").flops
    # Ten classes instead of 1000, and one channel instead of three in the first convolution.
    saved = 990 * 512 + 2 * 9 * 32 * 112 * 112
    assert Classification(config).example_flops() == published - saved
