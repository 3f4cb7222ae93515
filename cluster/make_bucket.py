"""Make the bucket named BUCKET in the object store at AWS_ENDPOINT_URL_S3, unless it is there. Keys: AWS_*."""

import os

import boto3
from botocore.exceptions import ClientError


def main() -> None:
    """Raises botocore's error where the store cannot be reached or refuses the keys."""
    store, bucket = boto3.client("s3"), os.environ["BUCKET"]
    try:
        store.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        store.create_bucket(Bucket=bucket)
    print(f"bucket {bucket} is there")


if __name__ == "__main__":
    main()
