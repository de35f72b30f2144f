"""Seconds of audio per second, of the speech engine and of its peers, on the weights of whisper-tiny.en.

Engines are loaded once, stand still while another runs and take turns in every round; all read the same files and are greedy.
Peers are faster-whisper file by file, its batched pipeline, CTranslate2 with windows of many files in one batch, which is what a
queue would do with it by hand, and whisper.cpp, which has f16 for f32 and Q8_0 for int8.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import soundfile
from ctranslate2 import StorageView
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.audio import decode_audio, pad_or_trim
from faster_whisper.tokenizer import Tokenizer
from pywhispercpp.model import Model

import ggml

BIN, MODEL = sys.argv[1:]
ROUNDS, FILES = int(os.environ.get("ROUNDS", 5)), int(os.environ.get("FILES", 64))
KINDS = os.environ.get("KINDS", "f32 int8").split()
SPEECH = "tests/speech/clips"
RATE, BATCHES = 16000, (8, 16)
THREADS = len(os.sched_getaffinity(0))


def make_files(folder):
    """Files of 2 to 30 seconds, cut from the sentences one after the other."""
    names = sorted(name for name in os.listdir(SPEECH) if name.endswith(".flac"))
    clips = [soundfile.read(os.path.join(SPEECH, name), dtype="float32")[0] for name in names]
    random = np.random.default_rng(0)
    paths = []
    for index in range(FILES):
        wanted, parts = random.uniform(2, 30) * RATE, []
        at = index
        while sum(map(len, parts)) < wanted:
            parts.append(clips[at % len(clips)])
            at += 1
        if sum(map(len, parts)) > 30 * RATE and len(parts) > 1:
            parts.pop()
        paths.append(os.path.join(folder, f"{index:03}.wav"))
        soundfile.write(paths[-1], np.concatenate(parts), RATE, subtype="PCM_16")
    single = os.path.join(folder, "single.wav")
    soundfile.write(single, np.concatenate(clips), RATE, subtype="PCM_16")
    return single, paths


class Ours:
    def __init__(self, kind):
        self.process = subprocess.Popen(
            [os.path.join(BIN, "examples", "transcribe"), MODEL, kind, "serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, files):
        self.process.stdin.write("\t".join(files) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class FasterWhisper:
    def __init__(self, kind):
        self.model = WhisperModel(MODEL, compute_type=kind, cpu_threads=THREADS)

    def run(self, files):
        heard = lambda path: self.model.transcribe(path, beam_size=1, language="en")[0]
        return ["".join(segment.text for segment in heard(path)) for path in files]


class Batched(FasterWhisper):
    def run(self, files):
        pipeline = BatchedInferencePipeline(self.model)
        heard = lambda path: pipeline.transcribe(path, beam_size=1, language="en", batch_size=8)[0]
        return ["".join(segment.text for segment in heard(path)) for path in files]


class ManyFiles(FasterWhisper):
    """Windows of several files at once."""

    def __init__(self, kind, batch):
        super().__init__(kind)
        self.batch = batch
        self.tokenizer = Tokenizer(self.model.hf_tokenizer, False, task="transcribe", language="en")

    def run(self, files):
        texts = []
        for first in range(0, len(files), self.batch):
            windows = [
                pad_or_trim(self.model.feature_extractor(decode_audio(path))) for path in files[first : first + self.batch]
            ]
            encoded = self.model.model.encode(StorageView.from_array(np.ascontiguousarray(np.stack(windows))))
            prompts = [self.tokenizer.sot_sequence] * len(windows)
            answers = self.model.model.generate(encoded, prompts, beam_size=1, suppress_blank=True)
            texts += [self.tokenizer.decode(answer.sequences_ids[0]) for answer in answers]
        return texts


class WhisperCpp:
    def __init__(self, kind, folder):
        path = os.path.join(folder, f"{kind}.bin")
        ggml.main(MODEL, {"f32": "f16", "int8": "q8_0"}[kind], path)
        # It tells more on standard error than anybody reads.
        settings = dict(redirect_whispercpp_logs_to=None, print_progress=False, print_realtime=False, language="en")
        self.model = Model(path, n_threads=THREADS, greedy={"best_of": 1}, **settings)

    def run(self, files):
        return ["".join(segment.text for segment in self.model.transcribe(path)) for path in files]


def measure(engines, files, seconds):
    for engine in engines.values():
        engine.run(files[:2])
    times = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            began = time.perf_counter()
            texts = engine.run(files)
            times[name].append(time.perf_counter() - began)
            assert len(texts) == len(files) and all(texts), (name, texts)
    return {name: round(seconds / statistics.median(of), 2) for name, of in times.items()}


def main():
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        single, queued = make_files(folder)
        cases = {"single": [single], "queued": queued}
        for kind in KINDS:
            theirs = {"f32": "float32", "int8": "int8"}[kind]
            ours = Ours(kind)
            peers = {
                "faster-whisper": FasterWhisper(theirs),
                "faster-whisper, batched": Batched(theirs),
                "whisper.cpp": WhisperCpp(kind, folder),
            }
            batches = {f"CTranslate2, {batch} files": ManyFiles(theirs, batch) for batch in BATCHES}
            for case, files in cases.items():
                seconds = sum(soundfile.info(path).duration for path in files)
                engines = {"inferq": ours, **peers, **(batches if case == "queued" else {})}
                rates = measure(engines, files, seconds)
                best = max((rate, name) for name, rate in rates.items() if name != "inferq")
                ratio = round(rates["inferq"] / best[0], 2)
                print(f"{case}, {kind}: {len(files)} files, {seconds:.0f} s of audio; seconds of audio per second")
                for name, rate in rates.items():
                    print(f"  {name:28} {rate:8.1f}")
                print(f"  {ratio} times the best peer, {best[1]}", flush=True)
                report.setdefault(case, {})[kind] = {"rates": rates, "ratio": ratio}
            ours.process.stdin.close()
            ours.process.wait()
    path = os.path.join(BIN, "..", "bench", "speech.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(report, file, indent=1)


main()
