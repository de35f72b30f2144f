#!/usr/bin/env python3
"""Makes a tiny model with random weights for each family of decoders, and what transformers answers with it.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0
    python tests/golden/decoders/make.py

Each family is a folder in the layout of the Hugging Face hub with a file more, golden.json: token ids, the logarithm of
the probability of each but the first, the logits after the last one, and the tokens that follow greedily. Weights are
stored in f32, f16 or bf16 and computed in f32.
"""

import json
import os
import random
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = os.path.dirname(os.path.abspath(__file__))
VOCABULARY = 64
FOLLOWING = 10
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"

COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=80, bos_token_id=0, eos_token_id=1, pad_token_id=1,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=40,
)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=20)

GPT_OSS = {
    **COMMON, "intermediate_size": 64, "head_dim": 16, "sliding_window": 6, "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "rope_parameters": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
}

# Name: configuration, type of the stored weights.
FAMILIES = {
    "llama": (LlamaConfig(**COMMON, tie_word_embeddings=False), torch.float32),
    "llama-scaled": (LlamaConfig(**COMMON, rope_parameters=LLAMA3, tie_word_embeddings=True), torch.bfloat16),
    "mistral": (MistralConfig(**COMMON, head_dim=16, sliding_window=6), torch.bfloat16),
    "qwen2": (Qwen2Config(**COMMON, tie_word_embeddings=True), torch.bfloat16),
    "qwen3-yarn": (Qwen3Config(**COMMON, head_dim=16, rope_parameters=YARN), torch.bfloat16),
    "gemma2": (
        Gemma2Config(
            **COMMON, head_dim=16, query_pre_attn_scalar=24, sliding_window=6, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        torch.bfloat16,
    ),
    "gemma3": (
        Gemma3TextConfig(
            **{**COMMON, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=24, sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
            },
        ),
        torch.bfloat16,
    ),
    # With what GGUF files have no keys for as llama.cpp takes it to be.
    "gemma2-plain": (
        Gemma2Config(
            **{**COMMON, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=16, sliding_window=6,
            attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
        ),
        torch.float16,
    ),
    "gemma3-plain": (
        Gemma3TextConfig(
            **{**COMMON, "num_hidden_layers": 7}, head_dim=16, query_pre_attn_scalar=16, sliding_window=6,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
            },
        ),
        torch.float16,
    ),
    "gpt-oss": (GptOssConfig(**GPT_OSS), torch.bfloat16),
    "gpt-oss-mxfp4": (GptOssConfig(**GPT_OSS), torch.bfloat16),
    "qwen3-moe": (
        Qwen3MoeConfig(
            **COMMON, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
        ),
        torch.bfloat16,
    ),
    "gpt2": (
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=80, bos_token_id=0, eos_token_id=1,
        ),
        torch.float16,
    ),
}


def tokenizer():
    """A character for each token, and one that texts begin with."""
    vocabulary = {"<s>": 0, "</s>": 1} | {chr(0x100 + token): token for token in range(2, VOCABULARY)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    return made


def answers(model, ids):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        logprobs = logits.log_softmax(-1)
        following = []
        for _ in range(FOLLOWING):
            following.append(model(input_ids=torch.tensor([ids + following])).logits[0, -1].argmax().item())
    return {
        "token_ids": ids,
        "logprobs": [round(logprobs[at, token].item(), 5) for at, token in enumerate(ids[1:])],
        "logits": [round(logit, 5) for logit in logits[-1].tolist()],
        "following": following,
    }


def mxfp4(model):
    """Gives experts weights of random blocks, and says what is stored in their place."""
    stored = {}
    for key, value in model.named_parameters():
        if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            count, inputs, outputs = value.shape
            blocks = torch.randint(0, 256, (count, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(123, 126, (count, outputs, inputs // 32), dtype=torch.uint8)
            value.data.copy_(convert_moe_packed_tensors(blocks, scales).float())
            stored |= {key: None, f"{key}_blocks": blocks, f"{key}_scales": scales}
    return stored


def make(name):
    config, dtype = FAMILIES[name]
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(sum(name.encode()))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            is_norm_scale = value.dim() == 1 and key.endswith("weight") and "gemma" not in name
            value.copy_((is_norm_scale + 0.25 * torch.randn_like(value)).to(dtype).float())
    stored = mxfp4(model) if name.endswith("mxfp4") else {}
    draw = random.Random(name)
    cases = [answers(model, [0, *draw.choices(range(2, VOCABULARY), k=count)]) for count in (0, 4, 20, 60)]
    model.to(dtype).save_pretrained(folder)
    if stored:
        path = os.path.join(folder, "model.safetensors")
        tensors = {key: value for key, value in (load_file(path) | stored).items() if value is not None}
        save_file(tensors, path, metadata={"format": "pt"})
    tokenizer().save(os.path.join(folder, "tokenizer.json"))
    if name == "llama":
        with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
            json.dump({"bos_token": "<s>", "chat_template": TEMPLATE}, file)
            file.write("\n")
    with open(os.path.join(folder, "golden.json"), "w") as file:
        json.dump({"cases": cases}, file)
        file.write("\n")


if __name__ == "__main__":
    for family in FAMILIES:
        make(family)
        print(family)
