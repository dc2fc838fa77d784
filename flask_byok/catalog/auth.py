"""How a key travels: in a header made of a template, or as AWS signs requests. One for checks, clients and gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Protocol, runtime_checkable

from ..errors import ConfigurationError


@runtime_checkable
class Authentication(Protocol):
    """Makes the headers that carry a credential."""

    def headers(
        self, fields: Mapping[str, str], method: str = "GET", url: str = "", body: bytes = b""
    ) -> dict[str, str]:
        """Return the headers for these field values and this request."""


@dataclass(frozen=True, slots=True)
class Auth:
    """The header that carries the key. ``template`` names fields in braces."""

    header: str = "Authorization"
    template: str = "Bearer {api_key}"

    def headers(
        self, fields: Mapping[str, str], method: str = "", url: str = "", body: bytes = b""
    ) -> dict[str, str]:
        """Return the header for these field values; none if one of its fields has no value."""
        if not all(map(fields.get, names_in(self.template))):
            return {}
        return {self.header: self.template.format_map(fields)}


@dataclass(frozen=True, slots=True)
class SigV4:
    """AWS Signature Version 4, made by botocore of ``access_key_id``, ``secret_access_key`` and ``session_token``.

    :param region: may name a field in braces.
    """

    service: str
    region: str = "{region}"

    def headers(
        self, fields: Mapping[str, str], method: str = "GET", url: str = "", body: bytes = b""
    ) -> dict[str, str]:
        """Return the headers of a signed request, which is good for five minutes; none without a key.

        :raises ConfigurationError: botocore is not installed.
        """
        if not (fields.get("access_key_id") and fields.get("secret_access_key")):
            return {}
        try:
            from botocore.auth import SigV4Auth
            from botocore.awsrequest import AWSRequest
            from botocore.credentials import Credentials
        except ImportError:
            text = "AWS needs botocore: pip install 'flask-byok[aws]'."
            raise ConfigurationError(text) from None
        parts = map(fields.get, ("access_key_id", "secret_access_key", "session_token"))
        request = AWSRequest(method=method, url=url, data=body)
        region = self.region.format_map(fields)
        SigV4Auth(Credentials(*parts), self.service, region).add_auth(request)
        return dict(request.headers.items())


def names_in(template: str) -> Iterator[str]:
    """Yield the names of the fields in a template."""
    return (name for _, name, _, _ in Formatter().parse(template) if name is not None)
