"""Servers that speak the protocols of S3 and of Google's store, on the loopback interface."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nodes_kit import free_port


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[str]:
    """`s3://bucket` with the endpoint in its query, as pyarrow takes it. Needs moto; credentials are set."""
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}?scheme=http&endpoint_override={host}:{port}"
    finally:
        server.stop()


@contextmanager
def gs_server(bucket: str = "bucket") -> Iterator[str]:
    """`gs://bucket` with the endpoint in its query. Needs gcp-storage-emulator.

    In a process of its own: pyarrow's client holds the interpreter's lock while it waits.
    """
    port = free_port()
    command = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", bucket]
    server = subprocess.Popen([sys.executable, "-m", "gcp_storage_emulator", *command], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.1)
        yield f"gs://{bucket}?anonymous=true&scheme=http&endpoint_override=127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
