"""How media of each modality become named arrays; one module a modality, found by `InputSection.codec`.

In: a file's bytes (or pixels), its task and input section. Out: {"tokens": array}, for training or for evaluation.
Read: views, image, video, audio, audiovisual.
"""
