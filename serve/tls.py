"""The server's certificate, for clients that ask by https."""

from __future__ import annotations

import ssl
from pathlib import Path

from tinycluster.cluster.config import TlsSettings
from tinycluster.engine.errors import ConfigError


def tls_context(settings: TlsSettings | None) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with these files; None without settings. ConfigError that names the file that cannot be used."""
    if settings is None:
        return None
    _check_file("certificate", settings.certificate)
    _check_file("key", settings.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without an answer OpenSSL would ask on the terminal for the password of an encrypted key.
        context.load_cert_chain(settings.certificate, settings.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(_sentence(settings, error)) from None
    return context


def _check_file(name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"server.tls.{name} {path}: {error.strerror}") from None


def _sentence(settings: TlsSettings, error: OSError) -> str:
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return f"server.tls.key {settings.key} is not the key of {settings.certificate}"
    if not _is_certificate(settings):
        return f"server.tls.certificate {settings.certificate} is not a PEM certificate"
    return f"server.tls.key {settings.key} must be a PEM key without a password"


def _is_certificate(settings: TlsSettings) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(settings.certificate)
    except (ssl.SSLError, OSError):
        return False
    return True
