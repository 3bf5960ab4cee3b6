"""Model directories on the Hugging Face Hub: ``hf://owner/name`` and ``hf://owner/name@revision``.

Files arrive in the cache of huggingface_hub (extra ``hub``), and are read and checked there as in
any model directory: their digests are compared, and nothing in them is run. Without the Hub the
copy in the cache is used, and a warning names its revision.
"""

import re
from pathlib import Path
from typing import NamedTuple

from absl import logging

from regionclip_jax import __version__
from regionclip_jax.artifacts.model_card import FILE_NAME, CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_card, require_intact
from regionclip_jax.artifacts.model_files import MODEL_FILES, files_of, is_model_file
from regionclip_jax.artifacts.model_page import PAGE_NAME, model_page
from regionclip_jax.extras import require_extra
from regionclip_jax.failures import ExitStatus
from regionclip_jax.settings import UserError
from regionclip_jax.untrusted import reason, short

PREFIX = "hf://"
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_DEFAULT_REVISION = "main"


class HubError(UserError):
    """A model on the Hub does not exist, or may not be read or written; the message names it."""


class HubUnreachable(HubError):
    """The Hub does not answer, and the cache has no complete copy."""

    exit_status = ExitStatus.UNREACHABLE


class HubName(NamedTuple):
    """Name of a model on the Hub; ``revision`` is a branch, a tag or a commit."""

    repository: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Parse ``owner/name`` or ``owner/name@revision``, perhaps with ``hf://``.

        Raises:
            HubError: another form.
        """
        repository, at, revision = text.removeprefix(PREFIX).partition("@")
        if not _NAME.fullmatch(repository) or (at and not revision):
            raise HubError(f"{short(text)}: expected hf://owner/name or hf://owner/name@revision")
        return cls(repository, revision or _DEFAULT_REVISION)

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}@{self.revision}"


def local_directory(name: str | Path) -> Path:
    """Return the directory of a model: of ``hf://owner/name`` the downloaded one.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        HubError: as ``download``.
    """
    if isinstance(name, str) and name.startswith(PREFIX):
        return download(HubName.parse(name))
    return Path(name)


def download(name: HubName) -> Path:
    """Download the files of a model directory into the cache, those that it lacks.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        HubError: there is no such model or revision, or no permission to read it.
        HubUnreachable: the Hub does not answer, and the cache has no complete copy.
    """
    require_extra("hub", f"{PREFIX} names")
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot(**how) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name.repository, revision=name.revision, allow_patterns=list(MODEL_FILES), **how
            )
        )

    try:
        _api().model_info(name.repository, revision=name.revision)
        directory = snapshot()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise _absent(name, error) from error
    except (errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError) as error:
        try:
            directory = snapshot(local_files_only=True)
        except errors.LocalEntryNotFoundError:
            raise HubUnreachable(
                f"{name}: the Hub does not answer ({reason(error)}), and the cache has no complete "
                "copy of this revision; connect, or give a model directory"
            ) from error
        logging.warning(
            "%s: not read from the Hub (%s); using the copy in the cache, revision %s",
            name, reason(error), directory.name,
        )  # fmt: skip
    if not (directory / FILE_NAME).is_file():
        raise HubError(
            f"{name}: expected a model directory with {FILE_NAME}, found a repository without one; "
            "regionclip push writes one, and regionclip convert reads checkpoints of other programs"
        )
    return directory


def push_to_hub(
    directory: str | Path,
    name: str,
    *,
    private: bool = False,
    licence: str | None = None,
) -> str:
    """Write a model directory to the Hub, as one commit; return the address of the commit.

    The page (README.md) is that of the directory, or is made from the cards and ``results.json`` of
    the directory. The repository is made if there is none. Model files of an earlier commit that
    the directory lacks are removed from it.

    Args:
        directory: a model directory.
        name: ``owner/name``, or ``owner/name@branch`` of a branch that exists.
        private: make a new repository that others cannot read.
        licence: of the weights, by the Hub's name of it, such as ``apache-2.0``; on a page that is
            made.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        CheckpointMismatch: the directory is not complete, or was changed.
        HubError: no permission, or no such branch.
        HubUnreachable: the Hub does not answer.
    """
    require_extra("hub", "push")
    import huggingface_hub
    from huggingface_hub import errors

    directory, target = Path(directory), HubName.parse(name)
    page = _page(directory, target, licence)
    files = files_of(directory)
    for card in files:
        if card.name == FILE_NAME:
            require_intact(card.parent)
    api = _api()
    names = {path.relative_to(directory).as_posix(): path for path in files}
    add = huggingface_hub.CommitOperationAdd
    operations: list = [add(each, str(path)) for each, path in names.items()]
    operations.append(add(PAGE_NAME, page))
    try:
        api.create_repo(target.repository, private=private, exist_ok=True)
        present = api.list_repo_files(target.repository, revision=target.revision)
        stale = sorted(each for each in present if is_model_file(each) and each not in names)
        operations += map(huggingface_hub.CommitOperationDelete, stale)
        commit = api.create_commit(
            target.repository,
            operations,
            commit_message=f"Write a model of regionclip_jax {__version__}",
            revision=target.revision,
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise _absent(target, error) from error
    except errors.HfHubHTTPError as error:
        raise HubError(
            f"{target}: the Hub refused it ({reason(error)}); log in with `hf auth login` as a "
            "user who may write there"
        ) from error
    except (errors.HTTPError, ConnectionError) as error:
        raise HubUnreachable(
            f"{target}: the Hub does not answer ({reason(error)}); connect, then push again"
        ) from error
    return str(commit.commit_url)


def _page(directory: Path, name: HubName, licence: str | None) -> bytes:
    """Return the page of a complete model directory."""
    load_card(directory)
    own = directory / PAGE_NAME
    if not own.is_file():
        return model_page(directory, name.repository, licence).encode()
    if licence is not None:
        raise CheckpointMismatch(
            f"{own}: expected no --license beside the directory's own page, found {licence!r}; "
            "state it in the page, or delete the page"
        )
    return own.read_bytes()


def _api():
    import huggingface_hub

    return huggingface_hub.HfApi(library_name="regionclip_jax", library_version=__version__)


def _absent(name: HubName, error: Exception) -> HubError:
    return HubError(
        f"{name}: no such model or revision on the Hub, or no permission to read it "
        f"({reason(error)}); correct the name, or log in with `hf auth login`"
    )
