#!/usr/bin/env python3
"""Measures the encoder on a GPU beside transformers: encoder.py PROGRAM, on a machine with torch and transformers.

PROGRAM is the example `encode` of the crate workers, built with the feature cuda. Models have random weights at the sizes
of known ones, so that nothing is downloaded. Both run one after the other, five times; medians are printed. The peer's
input is sorted by length for it and cut into batches of at most as many padded tokens as ours takes.
"""

import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as functional
from transformers import BertConfig, BertModel, BertTokenizerFast

ROUNDS = 5
BATCH_TOKENS = 65_536
CLS, SEP = 101, 102
SHAPES = {
    "all-MiniLM-L6-v2": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "bert-base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "bert-large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}


def sequence(source, length):
    return [CLS, *(source.randrange(1000, 29_000) for _ in range(length - 2)), SEP]


def works():
    source = random.Random(1)
    mixed = [int(min(256, max(8, source.lognormvariate(3.9, 0.65)))) for _ in range(8192)]
    lengths = {"64": [64] * 8192, "128": [128] * 4096, "512": [512] * 1024, "mixed": mixed}
    return {name: [sequence(source, length) for length in each] for name, each in lengths.items()}


class Peer:
    """transformers with torch's fused attention; mean of the last layer, normalised. Batches are made beforehand."""

    def __init__(self, model):
        self.model = model

    @staticmethod
    def prepare(sequences):
        """Batches, with the places of their texts."""
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        batches, start = [], 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(sequences[order[end]]) <= BATCH_TOKENS:
                end += 1
            batch = [sequences[index] for index in order[start:end]]
            longest = len(batch[-1])
            tokens = torch.tensor([each + [0] * (longest - len(each)) for each in batch])
            mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in batch])
            batches.append((order[start:end], tokens, mask))
            start = end
        return batches

    @torch.inference_mode()
    def run(self, batches):
        vectors = {}
        for places, tokens, mask in batches:
            tokens, mask = tokens.cuda(), mask.cuda()
            hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            wide = mask.unsqueeze(-1)
            pooled = functional.normalize((hidden * wide).sum(1) / wide.sum(1), dim=-1).cpu().numpy()
            vectors.update(zip(places, pooled))
        return [vectors[place] for place in range(len(vectors))]


class Ours:
    def __init__(self, program, folder, dtype):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([program, folder, dtype], **pipes)

    def run(self, sequences):
        self.process.stdin.write(json.dumps(sequences) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["vectors"]


def made(shape, folder):
    """A model of that shape in the layout that both read."""
    torch.manual_seed(1)
    model = BertModel(BertConfig(**shape, vocab_size=30_522)).eval()
    model.save_pretrained(folder)
    with open(os.path.join(folder, "vocab.txt"), "w") as file:
        special = {0: "[PAD]", 100: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", 103: "[MASK]"}
        file.writelines(special.get(index, f"word{index}") + "\n" for index in range(30_522))
    BertTokenizerFast(os.path.join(folder, "vocab.txt")).save_pretrained(folder)
    return model


def cosine(ours, theirs):
    pairs = [functional.cosine_similarity(torch.tensor(a), torch.from_numpy(b), dim=0).item() for a, b in zip(ours, theirs)]
    return statistics.mean(pairs), min(pairs)


def main():
    program = sys.argv[1]
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = made(shape, folder).cuda()
            for dtype in ["f16", "f32"] if name == "bert-base" else ["f16"]:
                ours = Ours(program, folder, dtype)
                exact, peer = Peer(model), Peer(copy.deepcopy(model).half() if dtype == "f16" else model)
                for work, sequences in works().items():
                    expected = exact.run(Peer.prepare(sequences[:256]))
                    batches = Peer.prepare(sequences)
                    rates = {"ours": [], "transformers": []}
                    vectors = ours.run(sequences)[1]
                    peer.run(batches)
                    for _ in range(ROUNDS):
                        rates["ours"].append(len(sequences) / ours.run(sequences)[0])
                        torch.cuda.synchronize()
                        start = time.perf_counter()
                        peer.run(batches)
                        rates["transformers"].append(len(sequences) / (time.perf_counter() - start))
                    mean, worst = cosine(vectors[:256], expected)
                    a, b = (statistics.median(each) for each in rates.values())
                    print(f"{name} {dtype} {work}: ours {a:.0f}/s, transformers {b:.0f}/s, ratio {a / b:.2f}, "
                          f"cosine to f32 {mean:.5f} worst {worst:.5f}", flush=True)
                ours.process.stdin.close()
                ours.process.wait()


if __name__ == "__main__":
    main()
