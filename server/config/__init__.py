"""The configuration: TOML, environment and arguments, checked against schemas/config.json (contracts/cli.md).

The schema alone holds every setting's type, default and description. To add a setting: describe it
there, give a structure a field of that name, and show it in config.example.toml.
"""

from .layers import LEGACY_NAMES
from .loading import ConfigError, load_config
from .structures import (
    ApnsConfig,
    CollectionConfig,
    Config,
    ConsoleUsageConfig,
    LogConfig,
    MeteringConfig,
    OauthClient,
    Secret,
    ServerConfig,
    StripeConfig,
    TlsConfig,
    TranscriptionConfig,
)

__all__ = [
    "LEGACY_NAMES",
    "ApnsConfig",
    "CollectionConfig",
    "Config",
    "ConfigError",
    "ConsoleUsageConfig",
    "LogConfig",
    "MeteringConfig",
    "OauthClient",
    "Secret",
    "ServerConfig",
    "StripeConfig",
    "TlsConfig",
    "TranscriptionConfig",
    "load_config",
]
