"""Upload a folder to the hub, at the endpoint that huggingface_hub is set to (`HF_ENDPOINT`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from vlm_export.errors import ExportError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_access(repository: str) -> None:
    """Raises ExportError where `push` could not succeed: to know it before hours of work, not after."""
    try:
        huggingface_hub.utils.validate_repo_id(repository)
        if "/" not in repository:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ExportError(f"--push-to-hub {repository!r} is no owner/name: {error}") from None
    if huggingface_hub.get_token() is None:
        raise ExportError(f"--push-to-hub: there is no token; {LOG_IN}")
    with _told("--push-to-hub"):
        huggingface_hub.HfApi().whoami()


def push(folder: Path, repository: str, private: bool) -> str:
    """Make the repository if there is none, upload the folder as one commit, and return its address.

    Raises:
        ExportError: the hub is not reached or refuses it. The folder is complete all the same.
    """
    api = huggingface_hub.HfApi()
    what = f"--push-to-hub: {folder} is written, but was not uploaded"
    with _told(what):
        place = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:  # it was there before: then the hub leaves it as it is
            raise ExportError(f"{what}: {repository} exists and is public; choose another name, or leave out --private")
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by vlm-export")
    return str(place)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What the hub, or the way to it, raises within becomes an ExportError of one line."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise ExportError(f"{what}: HF_HUB_OFFLINE is set; unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        fix = f"; {LOG_IN}" if status in (401, 403) else ""
        raise ExportError(f"{what}: the hub answered {status}{fix} ({_first_line(error)})") from error
    except Exception as error:  # of the HTTP client: huggingface_hub has had three, each with errors of its own
        if isinstance(error, ExportError):
            raise
        endpoint = huggingface_hub.constants.ENDPOINT
        raise ExportError(f"{what}: {endpoint} cannot be reached ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
