"""The configuration of a run: two levels, every key documented where it is declared; the items of a list, such as
`data.sources`, are small sections of their own.

A YAML file, then `section.key=value` overrides from the command line. Unknown keys are errors that name the nearest key.
The entry point unpacks the sections into plain arguments: nothing below it receives a config. Nothing here imports torch.
"""

from gpg_vl.config.algorithm import make_algorithm
from gpg_vl.config.algorithm_sections import (
    AlgorithmConfig,
    GpgConfig,
    GrpoConfig,
    SampledConfig,
    SftConfig,
)
from gpg_vl.config.data_sections import DataConfig, PromptConfig, SourceConfig
from gpg_vl.config.declaration import Section
from gpg_vl.config.documentation import allowed_values, describe_keys, documented_keys
from gpg_vl.config.loading import dump_config, load_config, make_config, parse_config
from gpg_vl.config.model_section import ModelConfig
from gpg_vl.config.sections import (
    Config,
    EvalConfig,
    OutputConfig,
    RewardsConfig,
    RolloutConfig,
    TrainConfig,
)

__all__ = [
    "AlgorithmConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "GpgConfig",
    "GrpoConfig",
    "ModelConfig",
    "OutputConfig",
    "PromptConfig",
    "RewardsConfig",
    "RolloutConfig",
    "SampledConfig",
    "Section",
    "SftConfig",
    "SourceConfig",
    "TrainConfig",
    "allowed_values",
    "describe_keys",
    "documented_keys",
    "dump_config",
    "load_config",
    "make_algorithm",
    "make_config",
    "parse_config",
]
