"""The providers that an app offers."""

from .auth import Auth, SigV4
from .models import ModelInfo
from .rows import PROVIDERS
from .spec import Catalog, CheckSpec, Field, ProviderSpec, Rule

__all__ = [
    "PROVIDERS",
    "Auth",
    "Catalog",
    "CheckSpec",
    "Field",
    "ModelInfo",
    "ProviderSpec",
    "Rule",
    "SigV4",
]
