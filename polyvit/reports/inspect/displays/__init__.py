"""How examples of each modality are examined and shown by `polyvit inspect`: one module a modality.

In: media, a task, its input section. Out: what a `Display` has (`../display.py`), found by `InputSection.display`.
Read: pixels, image, video, audio, audiovisual.
"""
