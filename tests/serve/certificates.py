"""Certificates for 127.0.0.1 and localhost that sign themselves, made by OpenSSL's command."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.system_packages import needed


class Certificate(NamedTuple):
    certificate: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        """server.tls."""
        return {"certificate": str(self.certificate), "key": str(self.key)}


def make_certificate(folder: Path, name: str = "server", *, password: str = "") -> Certificate:
    """A key with a password is an encrypted one."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    options = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    protection = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    files = ["-out", str(made.certificate), "-keyout", str(made.key)]
    command = [str(needed("openssl")), *options, *names, *protection, *files]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return made
