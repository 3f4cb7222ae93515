"""Waveforms from any container, log-mel against torchaudio, windows."""

import io
import struct
import tracemalloc

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from image_checks_kit import damaged_rows
from kit import DATA_DIR, in_kit, needs_data

from polyvit.config import AudioAugment, AudioInput
from polyvit.data.decode.audio import (
    decode_waveform,
    eval_audio,
    eval_waveform,
    log_mel,
    mel_filters,
    num_mel_frames,
    periodic_hann,
    train_audio,
    train_waveform,
)
from polyvit.errors import BadMedia

# Cut short: what a WAV holds is used, as with the header that lies about its size (see decode_waveform).
USED_AS_FAR_AS_IT_GOES = {"audio/truncated_odd.wav"}


def wav_bytes(waveform: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture
def noise_S() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(40_000).astype(np.float32) * np.float32(0.1)


@needs_data
@pytest.mark.parametrize("row", damaged_rows("audio"), ids=lambda row: row["file"])
def test_every_damaged_or_odd_recording_of_the_kit(row: dict[str, str]) -> None:
    data = (DATA_DIR / "broken" / row["file"]).read_bytes()
    if row["status"] == "broken" and row["file"] not in USED_AS_FAR_AS_IT_GOES:
        with pytest.raises(BadMedia):
            decode_waveform(data, 16000)
        return
    waveform_S = decode_waveform(data, 16000)
    assert waveform_S.dtype == np.float32
    assert waveform_S.ndim == 1
    spectrogram_TF = eval_waveform(waveform_S, AudioInput(frames=100))
    assert spectrogram_TF.shape == (100, 128)
    assert np.isfinite(spectrogram_TF).all()


@needs_data
def test_sound_tracks_of_videos_and_their_absence() -> None:
    tracks = [decode_waveform(path.read_bytes(), 16000) for path in DATA_DIR.glob("vggsound/audio/*.mp4")]
    assert all(np.isfinite(track).all() and np.abs(track).max() <= 1.5 for track in tracks)
    assert not tracks or max(np.abs(track).max() for track in tracks) > 0.01  # some may be silent
    data = in_kit("broken/video/audio_only.mp4").read_bytes()
    with av.open(io.BytesIO(data)) as box:
        rate = box.streams.audio[0].rate
        samples = sum(frame.samples for frame in box.decode(audio=0))
    sound = decode_waveform(data, rate)
    assert len(sound) == samples
    cut = decode_waveform(data, rate, 0.5, 1.0)
    assert np.array_equal(cut, sound[rate // 2 : rate])
    with pytest.raises(BadMedia, match="no sound track"):
        decode_waveform(in_kit("broken/video/no_audio.mp4").read_bytes(), 16000)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats_are_known_by_content(kind: str, noise_S: np.ndarray) -> None:
    data = wav_bytes(noise_S, 16000, kind, None)
    assert abs(len(decode_waveform(data, 16000)) - 40_000) < 2500


def test_channels_are_averaged_and_segments_cut(noise_S: np.ndarray) -> None:
    stereo_SC = np.stack([noise_S, -noise_S / 2], axis=1)
    found = decode_waveform(wav_bytes(stereo_SC, 16000), 16000, 0.5, 1.25)
    assert np.allclose(found, noise_S[8000:20000] / 4, atol=1e-7)
    with pytest.raises(BadMedia, match="nothing from 3 s on"):
        decode_waveform(wav_bytes(noise_S, 16000), 16000, 3.0)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_tone_keeps_its_height_and_strength(rate: int) -> None:
    tone_S = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
    found = decode_waveform(wav_bytes(tone_S, rate), 16000)
    assert len(found) == 16000
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert np.abs(found - expected)[200:-200].max() < 2e-3


def test_what_lies_above_half_the_new_rate_is_gone() -> None:
    for hertz in (9000, 12_000):
        tone_S = np.sin(2 * np.pi * hertz * np.arange(44100) / 44100).astype(np.float32)
        assert np.abs(decode_waveform(wav_bytes(tone_S, 44100), 16000)[400:-400]).max() < 1e-4


@pytest.mark.parametrize("rate", [44100, 48000])
def test_a_tone_of_7_khz_is_60_db_above_its_error(rate: int) -> None:
    tone_S = np.sin(2 * np.pi * 7000 * np.arange(rate) / rate).astype(np.float32)
    error = decode_waveform(wav_bytes(tone_S, rate), 16000) - np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000)
    assert -10 * np.log10(2 * np.mean(error[400:-400] ** 2)) > 60


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_sound_of_an_mp4_is_the_mean_of_its_channels(layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    time_S = np.arange(22050) / 22050
    tones_CS = np.stack([np.sin(2 * np.pi * 200 * (c + 1) * time_S) / 2 for c in range(channels)])
    tones_CS[3:4] = 0  # of 5.1, the one for deep sound only
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=22050, layout=layout, bit_rate=100_000 * channels)
        frame = av.AudioFrame.from_ndarray(tones_CS.astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate = 22050
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    found = decode_waveform(buffer.getvalue(), 22050)
    error = found[3024:21024] - tones_CS.mean(axis=0)[2000:20000]  # AAC begins with a frame of 1,024 samples
    assert np.abs(error).max() < 0.02


def test_a_header_that_lies_allocates_no_more_than_there_is(noise_S: np.ndarray) -> None:
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16")):
        data = bytearray(wav_bytes(noise_S, 16000, kind, subtype))
        if kind == "WAV":
            at = data.index(b"data") + 4
            data[at : at + 4] = struct.pack("<I", 2**31 - 1)
        else:
            # Total samples: the low 36 bits that end at byte 26 of a FLAC file.
            data[22:26] = struct.pack(">I", 2**31)
        tracemalloc.start()
        try:
            found = decode_waveform(bytes(data), 16000)
        except BadMedia:
            found = noise_S
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found) <= 40_000
        assert peak < 2**24


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "FLAC"])
def test_a_recording_whose_header_holds_no_length_is_read_to_its_end(kind: str, noise_S: np.ndarray) -> None:
    """A recorder that was switched off, and a FLAC that was written to a pipe."""
    whole = io.BytesIO()
    soundfile.write(whole, noise_S, 16000, format=kind, subtype="PCM_16")
    content = bytearray(whole.getvalue())
    if kind == "FLAC":
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    else:
        size = content.index(b"data") + 4
        content[4:8] = content[size : size + 4] = bytes(4)
    expected = decode_waveform(whole.getvalue(), 16000)
    np.testing.assert_array_equal(decode_waveform(bytes(content), 16000), expected)
    np.testing.assert_array_equal(decode_waveform(bytes(content), 16000, 0.25, 0.5), expected[4000:8000])
    if kind != "FLAC":
        np.testing.assert_array_equal(decode_waveform(bytes(content[:-2001]), 16000), expected[:-1001])


def test_log_mel_equals_torchaudio(noise_S: np.ndarray) -> None:
    spec = AudioInput()
    transform = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=1024, win_length=400, hop_length=160, f_min=20.0, n_mels=128, center=False
    )
    # torchaudio puts the window in the middle of its FFT frame: 312 zeros on the left line both up.
    padded = np.concatenate([np.zeros(312, np.float32), noise_S, np.zeros(1024, np.float32)])
    expected = torch.log(transform(torch.from_numpy(padded)) + 1e-6).T.numpy()
    found = log_mel(noise_S, spec)
    assert found.shape == (250, 128)
    assert np.abs(found - expected[:250]).max() < 1e-4


@pytest.mark.parametrize(("fft_size", "rate", "bins"), [(512, 16000, 64), (1024, 16000, 128), (2048, 44100, 80)])
def test_mel_filters_and_the_window_equal_torchaudios(fft_size: int, rate: int, bins: int) -> None:
    expected = torchaudio.functional.melscale_fbanks(
        fft_size // 2 + 1, 20.0, rate / 2, bins, rate, norm=None, mel_scale="htk"
    )
    np.testing.assert_allclose(mel_filters(fft_size, 20.0, rate, bins), expected.numpy(), atol=2e-5)
    for window in (1, 400, 401):
        np.testing.assert_allclose(periodic_hann(window), torch.hann_window(window).numpy(), atol=5e-7)


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (160, 1), (161, 2), (128_000, 800), (16_000, 100)])
def test_frames_are_the_ceiling_of_samples_over_hop(samples: int, frames: int) -> None:
    assert num_mel_frames(samples, AudioInput()) == frames
    assert log_mel(np.zeros(samples, np.float32), AudioInput()).shape == (frames, 128)


@pytest.mark.parametrize("mel_bins", [16, 64, 128])
def test_no_mel_filter_is_empty_and_silence_is_finite(mel_bins: int, noise_S: np.ndarray) -> None:
    spec = AudioInput(mel_bins=mel_bins)
    assert (log_mel(noise_S, spec).mean(axis=0) > -12).all()
    assert np.allclose(log_mel(np.zeros(1000, np.float32), spec), np.log(1e-6))


@pytest.mark.parametrize("frames", [50, 250, 600])
def test_cutting_the_waveform_first_changes_nothing(frames: int, noise_S: np.ndarray) -> None:
    spec, augment = AudioInput(frames=frames, mean=-4.0, std=2.0), AudioAugment()
    whole_TF = log_mel(noise_S, spec)
    for seed in range(5):
        expected = train_audio(whole_TF, spec, augment, np.random.default_rng(seed))
        found = train_waveform(noise_S, spec, augment, np.random.default_rng(seed))
        # FFTs of another batch size round differently in the last float32 digit.
        assert np.allclose(found, expected, atol=1e-5)
    for view in (None, (0, 3), (2, 3)):
        assert np.allclose(eval_waveform(noise_S, spec, view), eval_audio(whole_TF, spec, view), atol=1e-5)


def test_windows_normalise_and_short_recordings_start_again() -> None:
    spectrogram_TF = np.arange(5, dtype=np.float32)[:, None].repeat(128, 1)
    spec = AudioInput(frames=8, mean=1.0, std=2.0)
    assert (eval_audio(spectrogram_TF, spec)[:, 0] * 2 + 1).tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    short = AudioInput(frames=2)
    assert eval_audio(spectrogram_TF, short)[:, 0].tolist() == [1, 2]
    assert [eval_audio(spectrogram_TF, short, (i, 2))[0, 0] for i in range(2)] == [0, 3]
    still = AudioAugment(time_shift=False, freq_mask_count=0)
    assert train_audio(spectrogram_TF, short, still, np.random.default_rng(0))[:, 0].tolist() == [1, 2]


def test_the_same_generator_gives_the_same_spectrogram(noise_S: np.ndarray) -> None:
    spec = AudioInput(frames=100)
    first, again, other = (
        train_waveform(noise_S, spec, AudioAugment(), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
