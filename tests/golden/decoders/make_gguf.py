#!/usr/bin/env python3
"""Writes some of the models that make.py made as GGUF files, and a file with a tensor in each format that is read.

    pip install torch==2.15.0 transformers==5.24.0 safetensors==0.8.0 gguf==0.19.0
    python tests/golden/decoders/make_gguf.py

A model.gguf has the same weights as the model.safetensors beside it, so golden.json is true of both. formats.gguf has
blocks of random bytes, and formats.json the values that the reference makes of them.
"""

import json
import math
import os

import numpy
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "wte": "token_embd",
    "wpe": "position_embd", "ln_f": "output_norm",
}
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "mlp.router": "ffn_gate_inp", "mlp.gate": "ffn_gate_inp", "self_attn.sinks": "attn_sinks",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
# In Gemma the norm before the perceptron has another name, and the one behind attention that of the others' before it.
GEMMA = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# gpt-oss too has a norm before the perceptron that is named after attention.
GPT_OSS = {"post_attention_layernorm": "post_attention_norm"}
# Folder: architecture, type of the matrices.
MODELS = {
    "llama": ("llama", numpy.float32),
    "llama-scaled": ("llama", numpy.float16),
    "qwen2": ("qwen2", numpy.float16),
    "qwen3-yarn": ("qwen3", numpy.float16),
    "gpt2": ("gpt2", numpy.float16),
    "gemma2-plain": ("gemma2", numpy.float16),
    "gemma3-plain": ("gemma3", numpy.float16),
    "gpt-oss": ("gpt-oss", numpy.float32),
    "gpt-oss-mxfp4": ("gpt-oss", numpy.float32),
    "qwen3-moe": ("qwen3moe", numpy.float16),
}
FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "MXFP4"]
# Where halves stand that scale a block, of its bytes.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def renamed(name, architecture):
    parts = name.removeprefix("model.").removeprefix("transformer.").split(".")
    kind = parts.pop() if parts[-1] in ("weight", "bias") else "weight"
    if parts[0] in ("layers", "h"):
        known = PARTS | {"gemma2": GEMMA, "gemma3": GEMMA, "gpt-oss": GPT_OSS}.get(architecture, {})
        return f"blk.{parts[1]}.{known['.'.join(parts[2:])]}.{kind}"
    return f"{NAMES['.'.join(parts)]}.{kind}"


def neighbours(matrix, heads):
    """The two values that a position turns, next to each other."""
    return matrix.reshape(heads, 2, -1, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def divisors(scaling, size):
    """What Llama 3.1 divides each frequency by."""
    found = []
    for at in range(0, size, 2):
        length = 2 * math.pi * scaling["rope_theta"] ** (at / size)
        turns = scaling["original_max_position_embeddings"] / length
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0), 1)
        found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return numpy.array(found, numpy.float32)


def tokens(writer, count):
    letters = [chr(code) for code in range(33, 127)][: count - 3]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "</s>", *letters, letters[0] + letters[1]])
    writer.add_token_types([3, 3, *[1] * (count - 2)])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def experts(stored, config):
    """Takes out what belongs to experts, and gives it as one tensor for all of a layer."""
    for layer in range(config.get("num_hidden_layers", 0)):
        of = f"model.layers.{layer}.mlp.experts."
        own = {key.removeprefix(of): stored.pop(key) for key in list(stored) if key.startswith(of)}
        if not own:
            continue
        name = lambda part, kind: f"blk.{layer}.ffn_{part}_exps.{kind}"
        if "0.gate_proj.weight" in own:
            for part in ("gate", "up", "down"):
                each = [own[f"{expert}.{part}_proj.weight"].float().numpy() for expert in range(config["num_local_experts"])]
                yield name(part, "weight"), numpy.stack(each)
            continue

        def whole(part):
            packed = f"{part}_blocks" in own
            made = convert_moe_packed_tensors(own[f"{part}_blocks"], own[f"{part}_scales"]) if packed else own[part]
            return made.float().transpose(1, 2).contiguous().numpy()

        up, bias = whole("gate_up_proj"), own["gate_up_proj_bias"].float().numpy()
        for first, part in enumerate(("gate", "up")):
            yield name(part, "weight"), numpy.ascontiguousarray(up[:, first::2])
            yield name(part, "bias"), numpy.ascontiguousarray(bias[:, first::2])
        yield name("down", "weight"), whole("down_proj")
        yield name("down", "bias"), own["down_proj_bias"].float().numpy()


def make(name):
    architecture, kind = MODELS[name]
    folder = os.path.join(HERE, name)
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    key_heads, size = config.get("num_key_value_heads", heads), config.get("head_dim") or hidden // heads
    writer = GGUFWriter(os.path.join(folder, "model.gguf"), architecture)
    writer.add_block_count(config.get("num_hidden_layers") or config["n_layer"])
    writer.add_embedding_length(hidden)
    writer.add_context_length(config.get("max_position_embeddings") or config["n_positions"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        rope = config["rope_parameters"]
        rope = rope.get("full_attention", rope)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_key_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_string(f"{architecture}.rope.scaling.type", "linear")
            writer.add_rope_scaling_factor(rope["factor"])
        if architecture == "gpt-oss" or "gemma" in architecture:
            writer.add_sliding_window(config["sliding_window"])
        if "num_experts_per_tok" in config:
            writer.add_expert_count(config["num_local_experts"])
            writer.add_expert_used_count(config["num_experts_per_tok"])
        if "gemma" in architecture:
            if config["attn_logit_softcapping"]:
                writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
                writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        if rope["rope_type"] == "yarn":
            writer.add_string(f"{architecture}.rope.scaling.type", "yarn")
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if rope["rope_type"] == "llama3":
            writer.add_tensor("rope_freqs.weight", divisors(rope, size))
    tokens(writer, config["vocab_size"])
    stored = load_file(os.path.join(folder, "model.safetensors"))
    for part, values in experts(stored, config):
        # Blocks of experts that have them, which hold the values as they are.
        if name.endswith("mxfp4") and part.endswith("weight"):
            blocks = quants.quantize(values, GGMLQuantizationType.MXFP4)
            assert (quants.dequantize(blocks, GGMLQuantizationType.MXFP4) == values).all()
            writer.add_tensor(part, blocks, raw_dtype=GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(part, values.astype(kind if part.endswith("weight") else numpy.float32))
    for key, tensor in stored.items():
        values, part = tensor.float().numpy(), renamed(key, architecture)
        if "gemma" in architecture and key.endswith("norm.weight"):
            values = values + 1
        if architecture == "llama" and ("q_proj" in key or "k_proj" in key):
            values = neighbours(values, heads if "q_proj" in key else key_heads)
        if architecture == "gpt2" and values.ndim == 2 and "c_" in key:
            values = values.T
        writer.add_tensor(part, numpy.ascontiguousarray(values.astype(kind if values.ndim == 2 else numpy.float32)))
    close(writer)


def formats():
    draw = numpy.random.default_rng(1)
    writer = GGUFWriter(os.path.join(HERE, "formats.gguf"), "none")
    golden = {}
    for name in FORMATS:
        kind = GGMLQuantizationType[name]
        if name in SCALES:
            bytes_ = draw.integers(0, 256, quants.quant_shape_to_byte_shape((1, 256), kind), numpy.uint8)
            block = quants.GGML_QUANT_SIZES[kind][1]
            for at in SCALES[name]:
                for first in range(at, bytes_.shape[-1], block):
                    scale = draw.uniform(-0.02, 0.02, (1, 1)).astype(numpy.float16)
                    bytes_[:, first : first + 2] = scale.view(numpy.uint8)
        else:
            bytes_ = quants.quantize(draw.normal(size=(1, 256)).astype(numpy.float32), kind).view(numpy.uint8)
        writer.add_tensor(name, bytes_, raw_dtype=kind)
        golden[name] = [float(f"{value:.7g}") for value in quants.dequantize(bytes_, kind).flatten()]
    close(writer)
    with open(os.path.join(HERE, "formats.json"), "w") as file:
        json.dump(golden, file)
        file.write("\n")


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    for model in MODELS:
        make(model)
        print(model)
    formats()
