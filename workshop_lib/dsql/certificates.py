"""The certificate of the local DSQL: it vouches for itself, and can vouch for no other."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

YEARS = 10


def ensure_certificate(certificate: Path, key_file: Path, names: Sequence[str]) -> None:
    """Make a certificate and its key, unless they are there and good for another month.

    Args:
        certificate: the file of the certificate; its folder is created, closed to others.
        key_file: the file of its key, readable by its owner only.
        names: the host names that the certificate is for, besides 127.0.0.1.

    """
    now = datetime.now(UTC)
    if key_file.is_file() and certificate.is_file():
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        if found.not_valid_after_utc > now + timedelta(days=30):
            return
    certificate.parent.mkdir(mode=0o700, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    public, number = key.public_key(), x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    places = [*map(x509.DNSName, names), x509.IPAddress(ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(name, name, public, number)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
