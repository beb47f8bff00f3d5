"""The configuration of a run: sections of keys, each key documented where it is declared. The items of a list, such as
`data.sources`, are small sections themselves.

A config is read from a YAML file; `section.key=value` overrides from the command line replace its values. An unknown key is
an error that suggests the nearest key. The entry point unpacks the sections into plain arguments, and nothing below it
receives a config. Nothing here imports torch.
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
