"""A certificate authority for one cluster, and kubeconfigs with client certificates from it."""

import base64
import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = dt.timedelta(days=30)


@dataclass(frozen=True)
class KeyPair:
    """The files of a certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """Issues the certificates of one cluster into `folder`; what is there already is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder
        self._pair = KeyPair(folder / "ca.crt", folder / "ca.key")
        if not self._pair.key.exists():
            self._found()

    @property
    def certificate(self) -> Path:
        """The authority's own certificate."""
        return self._pair.certificate

    def issue(
        self, file: str, name: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> KeyPair:
        """A certificate for `name`; for a server too if it has `hosts` (DNS names or addresses)."""
        pair = KeyPair(self._folder / f"{file}.crt", self._folder / f"{file}.key")
        if pair.certificate.exists():
            return pair
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        usages = [
            ExtendedKeyUsageOID.CLIENT_AUTH,
            *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else []),
        ]
        builder = _builder(subject, self._certificate().subject, key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
            )
        _write_key(pair.key, key)
        _write_certificate(pair.certificate, builder.sign(self._key(), hashes.SHA256()))
        return pair

    def signing_keys(self, file: str) -> tuple[Path, Path]:
        """An RSA key pair (private, public) for signing service account tokens."""
        private, public = self._folder / f"{file}.key", self._folder / f"{file}.pub"
        if not private.exists():
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            public.write_bytes(
                key.public_key().public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            )
            _write_key(private, key)
        return private, public

    def kubeconfig(self, path: Path, server: str, name: str, groups: Sequence[str] = ()) -> Path:
        """Write a kubeconfig with which `name` reaches the API server at `server`."""
        pair = self.issue("-".join(["client", name, *groups]).replace(":", "."), name, groups)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "onenode",
            "clusters": [
                {
                    "name": "onenode",
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": _inline(self.certificate),
                    },
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": _inline(pair.certificate),
                        "client-key-data": _inline(pair.key),
                    },
                }
            ],
            "contexts": [{"name": "onenode", "context": {"cluster": "onenode", "user": name}}],
        }
        text = yaml.safe_dump(config, sort_keys=False)
        if not path.exists() or path.read_text() != text:
            path.touch(mode=0o600)
            path.write_text(text)
        return path

    def _found(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "onenode")])
        builder = _builder(subject, subject, key.public_key())
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        _write_certificate(self._pair.certificate, builder.sign(key, hashes.SHA256()))
        _write_key(self._pair.key, key)

    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self._pair.certificate.read_bytes())

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self._pair.key.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
