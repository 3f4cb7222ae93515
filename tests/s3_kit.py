"""A server that speaks S3's protocol, in this process, on the loopback interface."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[str]:
    """`s3://bucket` with the endpoint in its query, as pyarrow takes it. Needs moto; credentials are set."""
    import os

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
