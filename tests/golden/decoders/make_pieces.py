#!/usr/bin/env python3
"""Trains a small tokenizer with SentencePiece and writes it as the metadata of a GGUF file, with what SentencePiece makes of
some texts.

    pip install sentencepiece==0.2.3 gguf==0.19.0
    python tests/golden/decoders/make_pieces.py

pieces.gguf has no tensors. pieces.json are the texts, each with its tokens; those of an added token are its own.
"""

import io
import json
import os

import sentencepiece
from gguf import GGUFWriter

HERE = os.path.dirname(os.path.abspath(__file__))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
CORPUS = """
A queue holds what its workers have not taken, and nothing of it is lost when one of them is gone.
Whoever publishes a job is told when it is stored, and whoever reads a result reads it whole.
Workers pull jobs in batches: a batch is a step of the model, and each job leaves it when it is done.
The model continues a text token by token; tokens that were computed before are not computed again.
A tokenizer merges the pair of pieces that has the highest score until there is none left to merge.
Numbers such as 7, 42, 1024 and 65536 stand in the text; so do words that are written as one, like inputs and outputs.
Wer einen Auftrag stellt, erhält eine Antwort, auch wenn der erste Arbeiter ausfällt und ein zweiter übernimmt.
Les résultats sont écrits une seule fois, même si le serveur s'arrête au milieu.
"""
TEXTS = [
    "", " ", "  ", "a", " a", "a ", "The queue holds the jobs.", "  two  spaces   and\ta tab\nand a line", "übernimmt",
    "résultats, 1024 und 65536", "naïve façade — ﬁne", "日本語のテキスト", "🦀 crabs 🦀🦀", "\u0000\u0007", "workersworkers",
    "tokenizertokenizer merges mergesmerges", "ALL CAPS AND snake_case", "...!!!???", "▁▁ a", "x" * 40,
]


def main():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.strip().splitlines()), model_writer=model, model_type="bpe", vocab_size=480,
        byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        num_threads=1, minloglevel=2,
    )
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = []
    for token in range(made.get_piece_size()):
        if made.is_unknown(token):
            kinds.append(UNKNOWN)
        elif made.is_control(token):
            kinds.append(CONTROL)
        elif made.is_byte(token):
            kinds.append(BYTE)
        else:
            kinds.append(NORMAL)
    tokens = [made.id_to_piece(token) for token in range(made.get_piece_size())]
    scores = [made.get_score(token) for token in range(made.get_piece_size())]
    writer = GGUFWriter(os.path.join(HERE, "pieces.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, "<|user|>"])
    writer.add_token_scores([*scores, -1000.0])
    writer.add_token_types([*kinds, USER_DEFINED])
    writer.add_unk_token_id(made.unk_id())
    writer.add_bos_token_id(made.bos_id())
    writer.add_eos_token_id(made.eos_id())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    cases = [{"text": text, "tokens": made.encode(text)} for text in TEXTS]
    # A text begins anew behind a token that was added.
    around = [*made.encode("to the"), len(tokens), *made.encode("worker")]
    cases.append({"text": "to the<|user|>worker", "tokens": around})
    with open(os.path.join(HERE, "pieces.json"), "w") as file:
        json.dump(cases, file)
        file.write("\n")


main()
