"""Hugging Face's hub: a folder is pushed to a repository there, and fetched from one.

In: a folder that `save_pretrained` or `write_for_library` wrote, or `hf://ORG/NAME[@REVISION]`. Out: one commit
and its address, or a folder in the hub's own cache. The only file that imports huggingface_hub. Its environment
variables hold: HF_TOKEN, HF_ENDPOINT (another hub), HF_HOME (the cache), HF_HUB_OFFLINE.
"""

import contextlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from polyvit.errors import UserError

ADDRESS = "hf://"
"""What an address of a repository starts with."""


def is_on_hub(model: str | Path) -> bool:
    """Whether MODEL names a repository of the hub and not a folder."""
    return str(model).startswith(ADDRESS)


def push_folder(
    folder: Path,
    files: Sequence[str],
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload a model",
) -> str:
    """Push files of a folder as one commit, and return its address.

    files: their names in `folder`. repo_id: ORG/NAME, or NAME for the token's owner; created where it does not
    exist. private: of a repository that is created; None: as the owner's settings say. revision: a branch, created
    where it does not exist; None: main. token: None: HF_TOKEN, or that of `hf auth login`.

    Raises UserError where huggingface_hub or a token is missing, and for what the hub refuses.
    """
    _require_hub()
    from huggingface_hub import CommitOperationAdd, HfApi, get_token  # start-up: huggingface_hub

    if not (token or get_token()):
        raise UserError(f"no token to push to {repo_id}: run `hf auth login`, set HF_TOKEN, or give token=")
    api = HfApi(token=token, library_name="polyvit")
    with _one_message(f"push to {repo_id}"):
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        additions = [CommitOperationAdd(name, str(folder / name)) for name in files]
        commit = api.create_commit(repository, additions, commit_message=message, revision=revision)
    return str(commit.commit_url)


def fetch_folder(address: str, token: str | None = None) -> Path:
    """The folder of `hf://ORG/NAME[@REVISION]` in the hub's cache; what it has already is not fetched again.

    token: None: HF_TOKEN, or that of `hf auth login`; a public repository needs none. Raises UserError where
    huggingface_hub is missing or there is no such repository or revision.
    """
    _require_hub()
    from huggingface_hub import snapshot_download  # start-up: huggingface_hub

    repo_id, _, revision = address.removeprefix(ADDRESS).partition("@")
    if not repo_id:
        raise UserError(f"{address}: give hf://ORG/NAME, or hf://ORG/NAME@REVISION")
    with _one_message(f"fetch {address}"):
        return Path(snapshot_download(repo_id, revision=revision or None, token=token, library_name="polyvit"))


def _require_hub() -> None:
    if find_spec("huggingface_hub") is None:
        raise UserError("Hugging Face's hub needs huggingface_hub, which is not here: pip install 'polyvit[hub]'")


@contextlib.contextmanager
def _one_message(doing: str) -> Iterator[None]:
    """Turn what the hub and the way to it refuse into a UserError."""
    from huggingface_hub import constants, errors  # start-up: huggingface_hub

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"cannot {doing}: a repository is ORG/NAME ({error})") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        said = error.server_message or str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot {doing}: {_advice(status)} (answer {status} of {constants.ENDPOINT}: {said})"
        ) from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        first = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"cannot {doing}: {constants.ENDPOINT} does not answer ({first}); try again, or see HF_ENDPOINT and "
            "HF_HUB_OFFLINE"
        ) from None
    except (ValueError, RuntimeError) as error:  # of a README's front matter, of an upload of a large file
        raise UserError(f"cannot {doing}: {error}; try again") from None


def _advice(status: int | None) -> str:
    if status == 401:
        return "no such repository, or the token is not accepted; check the name, `hf auth login` or HF_TOKEN"
    if status == 403:
        return "the token may not do this; use one with the right to write, or a repository of your own"
    if status == 404:
        return "no such repository or revision, or the token may not see it; check the name and HF_TOKEN"
    return "the hub refused"
