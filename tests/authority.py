"""A time-stamping authority on this machine: a certificate chain made by openssl, and an HTTP server."""

import subprocess
from pathlib import Path

CONFIG = """
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical,CA:TRUE
[signer]
extendedKeyUsage = critical,timeStamping
[tsa]
default_tsa = tsa_local
[tsa_local]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
"""


def openssl(*arguments):
    """Run openssl; its failure fails the test."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_chain(folder: Path) -> Path:
    """Keys and certificates of an authority and of who certifies it, in a new folder; returns the latter's file."""
    folder.mkdir()
    config = folder / "openssl.cnf"
    config.write_text(CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    new = ("-newkey", "rsa:2048", "-nodes", "-config", config)
    openssl("req", "-x509", *new, "-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=ca",
            "-extensions", "ca")
    openssl("req", *new, "-keyout", folder / "tsa.key", "-out", folder / "tsa.csr", "-subj", "/CN=tsa")
    openssl("x509", "-req", "-in", folder / "tsa.csr", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
            "-set_serial", 2, "-out", folder / "tsa.pem", "-extfile", config, "-extensions", "signer")
    return folder / "ca.pem"


def stamping(folder: Path):
    """A function for `answering_server.serving` that signs what it is asked with the chain of `make_chain`."""

    def reply(query: bytes, headers=None) -> bytes:
        (folder / "query.tsq").write_bytes(query)
        openssl("ts", "-reply", "-queryfile", folder / "query.tsq", "-signer", folder / "tsa.pem", "-inkey",
                folder / "tsa.key", "-config", folder / "openssl.cnf", "-out", folder / "reply.tsr")
        return (folder / "reply.tsr").read_bytes()

    return reply
