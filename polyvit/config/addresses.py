"""Addresses that may be shown: a password in one would be printed, stored with the run and logged to MLflow.

In: a URL and the key that it was given under. Out: nothing, or UserError, which does not repeat the URL.
"""

from urllib.parse import parse_qsl, urlsplit

from polyvit.errors import UserError

_SECRET = ("password", "passwd", "pwd", "token", "secret")


def check_no_password(key: str, uri: str | None) -> None:
    """Raises UserError for a URL with a password in it, before the host or in its query."""
    if uri is None or "://" not in uri:
        return
    head, _, query = uri.partition("?")
    user, at, _ = urlsplit(head).netloc.rpartition("@")
    in_query = any(name.lower() in _SECRET for name, _ in parse_qsl(query, keep_blank_values=True))
    if in_query or (at and ":" in user):
        raise UserError(
            f"{key} holds a password (it is not repeated here), and would be shown and stored with the run; leave "
            "it out of the URL and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or for a database "
            "its own variable or file (PGPASSWORD, ~/.pgpass)"
        )
