"""The providers that an app offers."""

from .models import ModelInfo
from .rows import PROVIDERS
from .spec import Auth, Catalog, CheckSpec, Field, ProviderSpec, Rule

__all__ = [
    "PROVIDERS",
    "Auth",
    "Catalog",
    "CheckSpec",
    "Field",
    "ModelInfo",
    "ProviderSpec",
    "Rule",
]
