"""Downloads a model from the Hugging Face hub, or finds it in the hub's own cache. Imported by the converter alone."""

import os
from pathlib import Path

from quartet.checkpoint.readable import check_folder
from quartet.runtime.home import expand_home
from quartet.wire.errors import ModelError

_WANTED = ["*.json", "*.safetensors", "*.jinja"]
# The same weights once more, in the layout of the model's makers.
_UNWANTED = ["consolidated*", "original/*"]


def download(model_id: str, revision: str) -> Path:
    """Return the folder with the snapshot of `model_id` at `revision` (empty: the default branch).

    Honours HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and HF_ENDPOINT. Raises ModelError with one line of instructions.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    cache = constants.HF_HUB_CACHE
    if cache.startswith("~"):
        names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
        variable = next((name for name in names if os.environ.get(name)), "HF_HOME")
        expand_home(cache, ModelError, f"{variable} to the full path of a folder for downloads")
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(model_id, revision=revision or None, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{model_id} is gated: accept its terms on the hub, then set HF_TOKEN or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model_id} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no model {model_id} on the hub; check its name, or set HF_TOKEN if it is private"
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{model_id!r} is neither a folder, a .gguf file nor a hub id like Qwen/Qwen3-0.6B") from error
    except errors.LocalEntryNotFoundError as error:
        check_folder(Path(cache, repo_folder_name(repo_id=model_id, repo_type="model")))
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ModelError(f"{model_id}{at} is not in the local hub cache and {why}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"cannot download {model_id}{at}: {reason or type(error).__name__}") from error
