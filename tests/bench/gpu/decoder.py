#!/usr/bin/env python3
"""Checks and measures the decoder on a GPU beside transformers: decoder.py PROGRAM TOKENIZER [CASE…], on a machine with torch
and transformers.

PROGRAM is the example `decode` of the crate workers, built with the feature cuda; TOKENIZER is any tokenizer.json, which is
not used for anything. At first small models with heads of all sizes, in f32, must say what transformers says after prompts of
up to 1,500 tokens that are computed together. Then the cases are measured, sequences and their tokens as in `32x128`. The model has random weights at the size of Llama-3.2-1B, in bf16, so that nothing is downloaded.
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
CASES = ["1x512", "1x4096", "8x128", "32x128", "128x128"]
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
    def __init__(self, program, folder, dtype):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([program, folder, dtype], **pipes)

    def run(self, prompts, max_tokens):
        self.process.stdin.write(json.dumps(dict(prompts=prompts, max_tokens=max_tokens)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["tokens"]

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def check(program, tokenizer):
    """Greedy continuations in f32, where rounding decides nothing."""
    for head_size, heads, key_heads in [(64, 8, 2), (128, 8, 1), (256, 8, 1), (80, 8, 8)]:
        shape = dict(hidden_size=512, num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=key_heads,
                     head_dim=head_size, intermediate_size=1024, vocab_size=512, max_position_embeddings=2048)
        source = random.Random(head_size)
        prompts = [[source.randrange(512) for _ in range(length)] for length in (1, 5, 32, 300, 700, 1500)]
        with tempfile.TemporaryDirectory() as folder:
            peer = Peer(made({**SHAPE, **shape}, torch.float32, folder, tokenizer))
            ours = Ours(program, folder, "f32")
            made_by_ours = ours.run(prompts, 48)[1]
            ours.end()
            same = [a == peer.run([prompt], 48)[1][0] for prompt, a in zip(prompts, made_by_ours)]
        print(f"heads of {head_size}, {heads} on {key_heads}: {sum(same)} of {len(same)} continuations are the same", flush=True)
        if not all(same):
            sys.exit("answers are not those of transformers")


def made(shape, dtype, folder, tokenizer):
    """A model of that shape in the layout that both read."""
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).eval()
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "generation_config.json"))
    shutil.copy(tokenizer, os.path.join(folder, "tokenizer.json"))
    return model


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
    program, tokenizer, *cases = sys.argv[1:]
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    check(program, tokenizer)
    source = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        model = made(SHAPE, torch.bfloat16, folder, tokenizer)
        size = sum(each.numel() * each.element_size() for each in model.parameters())
        print(f"weights {size / 1e9:.2f} GB, one sequence at most {bandwidth() / size:.0f}/s", flush=True)
        ours, peer = Ours(program, folder, "bf16"), Peer(model)
        for case in cases or CASES:
            count, length = map(int, case.split("x"))
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
        ours.end()


if __name__ == "__main__":
    main()
