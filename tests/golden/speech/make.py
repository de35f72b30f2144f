#!/usr/bin/env python3
"""Makes a tiny Whisper model with random weights, in the formats of transformers and of CTranslate2, and what
transformers computes with it: spectra, and logits.

    pip install torch==2.9.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0
    python tests/golden/speech/make.py

Audio is made by a formula, so that it need not be stored. Windows of the tiny model are two seconds long.
"""

import json
import os
import struct

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

HERE = os.path.dirname(os.path.abspath(__file__))
RATE = 16000
BANDS, HEARD, CONTEXT, HIDDEN = 80, 100, 48, 32


def audio(seconds):
    """Two tones that swell, and noise of a simple generator."""
    state, samples = 1, []
    for at in range(int(seconds * RATE)):
        state = (state * 1103515245 + 12345) % (1 << 31)
        noise = state / (1 << 31) - 0.5
        time = at / RATE
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time)
        tones = 0.3 * np.sin(2 * np.pi * 330 * time) + 0.1 * np.sin(2 * np.pi * 2500 * time)
        samples.append(swell * tones + 0.01 * noise)
    return np.array(samples, dtype=np.float32)


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev"]
    made.add_special_tokens([f"<|{name}|>" for name in [*special, "nospeech", "notimestamps"]])
    made.add_tokens([f"<|{index * 0.02:.2f}|>" for index in range(HEARD + 1)])
    return made


def ct2(weights, config, path):
    """The layout of CTranslate2's model.bin, version 6."""
    arrays = {}

    def put(name, *parts):
        arrays[name] = np.concatenate([weights[part].astype(np.float16) for part in parts])

    def linear(name, *parts):
        put(name + "/weight", *[part + ".weight" for part in parts])
        bias = [weights.get(part + ".bias", np.zeros(len(weights[part + ".weight"]))) for part in parts]
        arrays[name + "/bias"] = np.concatenate(bias).astype(np.float16)

    def norm(name, part):
        put(name + "/gamma", part + ".weight")
        put(name + "/beta", part + ".bias")

    for index in (1, 2):
        put(f"encoder/conv{index}/weight", f"model.encoder.conv{index}.weight")
        put(f"encoder/conv{index}/bias", f"model.encoder.conv{index}.bias")
    put("decoder/embeddings/weight", "model.decoder.embed_tokens.weight")
    for side, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        put(f"{side}/position_encodings/encodings", f"model.{side}.embed_positions.weight")
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        arrays[f"{side}/num_heads"] = np.array(config.encoder_attention_heads, dtype=np.int16)
        for layer in range(count):
            to, of = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            norm(to + "/self_attention/layer_norm", of + ".self_attn_layer_norm")
            linear(to + "/self_attention/linear_0", *[of + f".self_attn.{name}_proj" for name in "qkv"])
            linear(to + "/self_attention/linear_1", of + ".self_attn.out_proj")
            if side == "decoder":
                norm(to + "/attention/layer_norm", of + ".encoder_attn_layer_norm")
                linear(to + "/attention/linear_0", of + ".encoder_attn.q_proj")
                linear(to + "/attention/linear_1", *[of + f".encoder_attn.{name}_proj" for name in "kv"])
                linear(to + "/attention/linear_2", of + ".encoder_attn.out_proj")
            norm(to + "/ffn/layer_norm", of + ".final_layer_norm")
            linear(to + "/ffn/linear_0", of + ".fc1")
            linear(to + "/ffn/linear_1", of + ".fc2")

    def text(name):
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    with open(path, "wb") as file:
        file.write(struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays)))
        for name, array in arrays.items():
            kind = {np.dtype(np.float16): 4, np.dtype(np.int16): 2}[array.dtype]
            file.write(text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape))
            file.write(struct.pack("<BI", kind, array.nbytes) + array.tobytes())
        file.write(struct.pack("<I", 0))


def main():
    torch.manual_seed(0)
    made = tokenizer()
    vocabulary = made.get_vocab_size()
    config = WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=BANDS, d_model=HIDDEN, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=HEARD, max_target_positions=CONTEXT, pad_token_id=256, bos_token_id=256, eos_token_id=256,
        decoder_start_token_id=257, suppress_tokens=[], begin_suppress_tokens=[220, 256],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
            elif "encoder.embed_positions" not in name:
                weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.1))
            # As they are stored.
            weight.copy_(weight.half().float())
    for folder in ("whisper", "ct2"):
        os.makedirs(os.path.join(HERE, folder), exist_ok=True)
        made.save(os.path.join(HERE, folder, "tokenizer.json"))
    model.half().save_pretrained(os.path.join(HERE, "whisper"), safe_serialization=True)
    model.float()
    weights = load_file(os.path.join(HERE, "whisper", "model.safetensors"))
    ct2(weights, config, os.path.join(HERE, "ct2", "model.bin"))
    with open(os.path.join(HERE, "ct2", "config.json"), "w") as file:
        json.dump({"suppress_ids": [], "suppress_ids_begin": [220, 256], "alignment_heads": [[1, 0], [1, 2]]}, file)

    samples = audio(1.5)
    extractor = WhisperFeatureExtractor(feature_size=BANDS, chunk_length=2)
    features = extractor(samples, sampling_rate=RATE, return_tensors="np")["input_features"]
    tokens = [257, 258, 261, 265, 40, 41, 42, 290, 291, 50]
    with torch.no_grad():
        logits = model(torch.tensor(features), decoder_input_ids=torch.tensor([tokens])).logits[0].numpy()
    # The spectra of a long file, as the reference takes them: 30 seconds at least.
    wide = WhisperFeatureExtractor(feature_size=128, chunk_length=30)
    wide = wide(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0].T
    narrow = features[0].T
    golden = {
        "seconds": 1.5,
        "tokens": tokens,
        "logits": [[round(float(value), 5) for value in row] for row in logits],
        # Every tenth frame.
        "frames": [[round(float(value), 6) for value in row] for row in narrow[::10]],
        "frames_128": [[round(float(value), 6) for value in row] for row in wide[:200:20]],
    }
    with open(os.path.join(HERE, "golden.json"), "w") as file:
        json.dump(golden, file)


main()
