"""Writes the weights of a CTranslate2 folder as a file of whisper.cpp, which no package has: in f16 or in its Q8_0. It runs no
file in f32: its convolutions want f16."""

import json
import struct
import sys

import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor

MAGIC, F32, F16, Q8_0, VERSION = 0x67676D6C, 0, 1, 8, 2
FACTOR = 1000
KINDS = {0: np.float32, 2: np.int16, 3: np.int32, 4: np.float16}


def read(path):
    """The arrays of a `model.bin`, by their names."""
    with open(path, "rb") as file:
        data = memoryview(file.read())
    at = 0

    def number(form):
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return value

    def text():
        nonlocal at
        length = number("H")
        at += length
        return bytes(data[at - length : at]).rstrip(b"\0").decode()

    version = number("I")
    assert text() == "WhisperSpec", path
    number("I")
    arrays = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if kind in KINDS:
            arrays[name] = np.frombuffer(data[at : at + size], KINDS[kind]).reshape(shape)
        at += size
    if version >= 3:
        for _ in range(number("I")):
            alias, name = text(), text()
            arrays[alias] = arrays[name]
    return arrays


def tensors(arrays):
    """By the names that OpenAI gave them."""
    whole = lambda name: arrays[name].astype(np.float32)
    for side in ("encoder", "decoder"):
        yield f"{side}.positional_embedding", whole(f"{side}/position_encodings/encodings")
    for layer in ("conv1", "conv2"):
        yield f"encoder.{layer}.weight", whole(f"encoder/{layer}/weight")
        yield f"encoder.{layer}.bias", whole(f"encoder/{layer}/bias").reshape(-1, 1)
    yield "decoder.token_embedding.weight", whole("decoder/embeddings/weight")
    for side, last in (("encoder", "ln_post"), ("decoder", "ln")):
        yield from norm(whole, f"{side}/layer_norm", f"{side}.{last}")
        count = layers(arrays, side)
        for index in range(count):
            ours, theirs = f"{side}/layer_{index}", f"{side}.blocks.{index}"
            yield from norm(whole, f"{ours}/self_attention/layer_norm", f"{theirs}.attn_ln")
            yield from cut(whole, f"{ours}/self_attention/linear_0", f"{theirs}.attn", ("query", "key", "value"))
            yield from cut(whole, f"{ours}/self_attention/linear_1", f"{theirs}.attn", ("out",))
            if side == "decoder":
                yield from norm(whole, f"{ours}/attention/layer_norm", f"{theirs}.cross_attn_ln")
                yield from cut(whole, f"{ours}/attention/linear_0", f"{theirs}.cross_attn", ("query",))
                yield from cut(whole, f"{ours}/attention/linear_1", f"{theirs}.cross_attn", ("key", "value"))
                yield from cut(whole, f"{ours}/attention/linear_2", f"{theirs}.cross_attn", ("out",))
            yield from norm(whole, f"{ours}/ffn/layer_norm", f"{theirs}.mlp_ln")
            yield from cut(whole, f"{ours}/ffn/linear_0", f"{theirs}.mlp", ("0",))
            yield from cut(whole, f"{ours}/ffn/linear_1", f"{theirs}.mlp", ("2",))


def layers(arrays, side):
    return sum(name.startswith(f"{side}/layer_") and name.endswith("/ffn/linear_0/weight") for name in arrays)


def norm(whole, array, name):
    yield f"{name}.weight", whole(f"{array}/gamma")
    yield f"{name}.bias", whole(f"{array}/beta")


def cut(whole, array, name, parts):
    """Layers that share their input are one array. Keys have no bias."""
    weights = np.split(whole(f"{array}/weight"), len(parts))
    biases = np.split(whole(f"{array}/bias"), len(parts))
    for part, weight, bias in zip(parts, weights, biases):
        yield f"{name}.{part}.weight", weight
        if part != "key":
            yield f"{name}.{part}.bias", bias


def quantized(values):
    """Blocks of 32: a scale in f16, and bytes."""
    blocks = values.reshape(-1, 32)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    bytes_ = np.rint(blocks / np.where(scales == 0, 1, scales)).astype(np.int8)
    return np.concatenate([scales.astype(np.float16).view(np.int8), bytes_], axis=1).tobytes()


def bytes_of_tokens(folder):
    """In the order of their ids, without those that are no text."""
    with open(f"{folder}/tokenizer.json") as file:
        words = json.load(file)["model"]["vocab"]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    spelled = {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
    ordered = sorted(words, key=words.get)
    return [bytes(spelled[letter] for letter in word) for word in ordered if not word.startswith("<|")]


def main(folder, kind, path):
    arrays = read(f"{folder}/model.bin")
    words, embedding = bytes_of_tokens(folder), arrays["decoder/embeddings/weight"]
    bands, width = arrays["encoder/conv1/weight"].shape[1], embedding.shape[1]
    heads = [int(arrays[f"{side}/num_heads"]) for side in ("encoder", "decoder")]
    encoder, decoder = (arrays[f"{side}/position_encodings/encodings"].shape for side in ("encoder", "decoder"))
    counts = [layers(arrays, side) for side in ("encoder", "decoder")]
    form = {"f16": 1, "q8_0": 7 + VERSION * FACTOR}[kind]
    filters = FeatureExtractor(feature_size=bands).mel_filters.astype(np.float32)
    with open(path, "wb") as file:
        put = lambda *numbers: file.write(struct.pack(f"<{len(numbers)}i", *numbers))
        put(MAGIC, embedding.shape[0], encoder[0], encoder[1], heads[0], counts[0])
        put(decoder[0], width, heads[1], counts[1], bands, form)
        put(*filters.shape)
        file.write(filters.tobytes())
        put(len(words))
        for word in words:
            put(len(word))
            file.write(word)
        for name, values in tensors(arrays):
            if values.ndim < 2 or not name.endswith(".weight"):
                of, data = F32, values.tobytes()
            elif values.ndim == 3 or kind == "f16":
                of, data = F16, values.astype(np.float16).tobytes()
            else:
                of, data = Q8_0, quantized(values)
            encoded = name.encode()
            put(values.ndim, len(encoded), of, *reversed(values.shape))
            file.write(encoded)
            file.write(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
