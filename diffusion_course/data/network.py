"""Is the Hugging Face hub there? Asked before any download, because a download may wait minutes."""

import threading


def hub_reachable(timeout: float = 5.0) -> bool:
    """True if the hub (``HF_ENDPOINT``, or huggingface.co) answers within `timeout` seconds.

    The request goes through the hub's own client, so that proxies and certificates count as they
    will in the download. Any answer but a server error will do. False under ``HF_HUB_OFFLINE``.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    # A client's own timeout does not cover the look-up of the name, which may hang: the thread is
    # left behind if it is late, and as a daemon does not keep the program alive.
    probe = threading.Thread(target=_ask, args=(constants.ENDPOINT, timeout, answers), daemon=True)
    probe.start()
    probe.join(timeout)
    return answers == [True]


def endpoint() -> str:
    """Address of the hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _ask(address: str, timeout: float, answers: list[bool]) -> None:
    from huggingface_hub.utils import get_session

    try:
        answers.append(get_session().head(address, timeout=timeout).status_code < 500)
    except Exception:  # each version of the client has its own; all mean that nobody answered
        answers.append(False)
