"""The certificate under which metrics are served: the platform's own, else one that this process makes for itself."""

import asyncio
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALID = timedelta(days=3650)
"""Longer than any process lives."""

_LOOK_SECONDS = 60.0
"""How often the platform's certificate is looked at: it is renewed while the process runs."""


def context() -> ssl.SSLContext:
    """TLS as a server has it, without a certificate yet."""
    return ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


def self_signed(tls: ssl.SSLContext, name: str) -> None:
    """Use a certificate that only this process has; nobody can verify it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with tempfile.NamedTemporaryFile() as file:  # Python's TLS reads files only
        file.write(pem)
        file.flush()
        tls.load_cert_chain(file.name)


class Mounted:
    """A certificate of the platform: `tls.crt` and `tls.key` in a folder, as a Secret is mounted."""

    def __init__(self, tls: ssl.SSLContext, folder: Path) -> None:
        """Raises OSError or ssl.SSLError if it cannot be read."""
        self._tls = tls
        self._folder = folder
        self._changed = 0.0
        self._load()

    async def follow(self) -> None:
        """Use it anew whenever it has been renewed, for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._load()
            except OSError:  # ssl.SSLError is one
                continue  # in the middle of being renewed

    def _load(self) -> None:
        certificate = self._folder / "tls.crt"
        changed = certificate.stat().st_mtime
        if changed != self._changed:
            self._tls.load_cert_chain(certificate, self._folder / "tls.key")
            self._changed = changed
