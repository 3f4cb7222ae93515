"""What the codecs of media with a time axis share."""

from polyvit.config import TaskBase
from polyvit.data.loading.example import AnyMedia
from polyvit.data.transforms import View


def view_times(clips: int) -> list[View | None]:
    """One clip is the middle one; n lie at int(linspace(0, max(0, len - frames * stride), n))."""
    return [None] if clips == 1 else [(i, clips) for i in range(clips)]


def bytes_only(media: AnyMedia, task: TaskBase) -> bytes:
    """The file's bytes. Raises TypeError for pixels, on which only image tasks train."""
    if not isinstance(media, bytes):
        raise TypeError(f"pixels without a file are for image tasks; this one is {task.modality}")
    return media
