"""What a task of videos with sound loads follows from what reads it; what contradicts it is one message."""

import copy
from typing import Any

import avbert_small
import pytest

from polyvit.config import AudiovisualTask, load_config, validate_config
from polyvit.errors import UserError


def task(**keys: Any) -> AudiovisualTask:
    document: dict[str, Any] = copy.deepcopy(avbert_small.TINY)
    document["tasks"] = {"one": {**document["tasks"]["one"], **keys}}
    read = validate_config(document).tasks["one"]
    assert isinstance(read, AudiovisualTask)
    return read


@pytest.mark.parametrize(
    ("keys", "loaded"),
    [
        ({}, "both"),
        ({"reads": "clips_and_sequence"}, "both"),
        ({"reads": "visual_cnn"}, "visual"),
        ({"reads": "audio_cnn"}, "audio"),
        ({"reads": "audio_cnn", "streams": "audio"}, "audio"),
        ({"streams": "visual"}, "visual"),
        ({"loss": "contrastive", "metric": "retrieval"}, "both"),
    ],
)
def test_streams_follow_from_what_reads_them(keys: dict[str, str], loaded: str) -> None:
    assert task(**keys).loaded_streams == loaded
    assert task(**keys).needed_streams == ({"visual", "audio"} if loaded == "both" else {loaded})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"reads": "audio_cnn", "streams": "visual"},
         "tasks.one.streams=visual does not load what reads=audio_cnn uses; leave it out, then it is audio"),
        ({"reads": "visual_cnn", "streams": "audio"},
         "tasks.one.streams=audio does not load what reads=visual_cnn uses; leave it out, then it is visual"),
        ({"reads": "visual_cnn", "streams": "both"},
         "tasks.one.streams=both loads more than reads=visual_cnn uses; leave it out, then it is visual"),
        ({"loss": "contrastive", "metric": "retrieval", "streams": "audio"},
         "tasks.one.streams=audio: loss=contrastive compares picture and sound; leave streams out"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_message(keys: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        task(**keys)
    assert raised.value.problems == (said,)


@pytest.mark.parametrize(("recipe", "name", "loaded"), [("avbert-ucf101", "ucf101", "visual"),
                                                         ("avbert-esc50", "esc50", "audio")])  # fmt: skip
def test_the_recipes_load_what_their_cnn_reads(recipe: str, name: str, loaded: str) -> None:
    read = load_config(recipe).tasks[name]
    assert isinstance(read, AudiovisualTask)
    assert (read.streams, read.loaded_streams) == (None, loaded)
