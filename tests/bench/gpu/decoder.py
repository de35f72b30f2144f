#!/usr/bin/env python3
"""Measures the decoder on a GPU beside transformers: decoder.py PROGRAM TOKENIZER, on a machine with torch and transformers.

PROGRAM is the example `decode` of the crate workers, built with the feature cuda; TOKENIZER is any tokenizer.json, which is
not used for anything. The model has random weights at the size of Llama-3.2-1B, in bf16, so that nothing is downloaded.
Both run one after the other, five times; medians are printed. What one sequence could reach at most is told by the memory's
bandwidth, which is measured by a copy.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROUNDS = 5
NEW_TOKENS = 128
SHAPE = dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
             intermediate_size=8192, vocab_size=128_256, max_position_embeddings=8192, tie_word_embeddings=True,
             rope_theta=500_000.0, bos_token_id=None, eos_token_id=None, pad_token_id=None)


class Peer:
    """transformers' `generate` with torch's fused attention."""

    def __init__(self, model):
        self.model = model

    @torch.inference_mode()
    def run(self, prompts, max_tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        tokens = torch.tensor(prompts).cuda()
        made = self.model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_tokens,
                                   min_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
        made = made[:, len(prompts[0]):].tolist()
        return time.perf_counter() - start, made


class Ours:
    def __init__(self, program, folder):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([program, folder, "bf16"], **pipes)

    def run(self, prompts, max_tokens):
        self.process.stdin.write(json.dumps(dict(prompts=prompts, max_tokens=max_tokens)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["tokens"]


def bandwidth():
    """Bytes in a second that are read and written by a copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * 2 * source.numel() / (time.perf_counter() - start)


def rates(engine, prompts, others):
    """Tokens in a second: of the prompts, and of what follows. The others are as long, since the first are known then."""
    first = engine.run(prompts, 1)[0]
    whole = engine.run(others, NEW_TOKENS)[0]
    return sum(map(len, prompts)) / first, len(prompts) * (NEW_TOKENS - 1) / max(whole - first, 1e-9)


def main():
    program, tokenizer = sys.argv[1:]
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    torch.manual_seed(1)
    source = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("cuda"):
            model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).eval()
        model.save_pretrained(folder)
        os.remove(os.path.join(folder, "generation_config.json"))
        shutil.copy(tokenizer, os.path.join(folder, "tokenizer.json"))
        size = sum(each.numel() * each.element_size() for each in model.parameters())
        print(f"weights {size / 1e9:.2f} GB, one sequence at most {bandwidth() / size:.0f}/s", flush=True)
        ours, peer = Ours(program, folder), Peer(model)
        for count, length in [(1, 512), (1, 4096), (8, 128), (32, 128), (128, 128)]:
            found = {"ours": [], "transformers": []}
            for round in range(ROUNDS + 1):
                # New ones each time, so that nothing is known yet.
                prompts, others = ([[source.randrange(1000, 120_000) for _ in range(length)] for _ in range(count)]
                                   for _ in range(2))
                pairs = rates(ours, prompts, others), rates(peer, prompts, others)
                if round > 0:
                    found["ours"].append(pairs[0]), found["transformers"].append(pairs[1])
            for index, what in enumerate(["prompt", "decode"]):
                a, b = (statistics.median(pair[index] for pair in each) for each in found.values())
                print(f"{count} of {length}, {what}: ours {a:.0f}/s, transformers {b:.0f}/s, ratio {a / b:.2f}", flush=True)
            same = [a[0] == b[0] for a, b in zip(ours.run(prompts, 1)[1], peer.run(prompts, 1)[1])]
            print(f"  the same first token: {sum(same)} of {len(same)}", flush=True)
        ours.process.stdin.close()
        ours.process.wait()


if __name__ == "__main__":
    main()
