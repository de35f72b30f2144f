#!/usr/bin/env python3
"""Makes a tiny model with random weights for each family of encoders, and what transformers answers with it.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0
    python tests/golden/encoders/make.py

Each family is a folder in the layout of the Hugging Face hub with a file more, golden.json: texts with their token ids,
vectors and scores. Models are saved as classifiers, so that one folder serves `embed` and `classify`; those that end
in -rerank have one class. Weights are stored in f32, f16 or bf16 and computed in f32.
"""

import json
import os
import random
import shutil
import string

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
    AutoModelForSequenceClassification,
)

HERE = os.path.dirname(os.path.abspath(__file__))
LETTERS = string.ascii_lowercase + string.digits
LABELS = {0: "bad", 1: "middling", 2: "good"}
HIDDEN = 32
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = [*LETTERS, *("##" + letter for letter in LETTERS)]
VOCABULARY = len(WORDS) + 5


def tokenizer(special, post):
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    unknown = next(token for token in special if "unk" in token.lower())
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(special)
    made.post_processor = post(vocabulary)
    return made


def bert_tokenizer():
    return tokenizer(BERT_SPECIAL, lambda ids: processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])))


def roberta_tokenizer():
    return tokenizer(
        ROBERTA_SPECIAL, lambda ids: processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    )


def ending_tokenizer():
    """As Qwen3's: one token at the end."""
    return tokenizer(
        ROBERTA_SPECIAL,
        lambda ids: processors.TemplateProcessing("$A </s>", "$A $B:1 </s>", [("</s>", ids["</s>"])]),
    )


COMMON = dict(vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2)
BERT = dict(**COMMON, num_attention_heads=4, max_position_embeddings=80, pad_token_id=0)
ROBERTA = dict(**COMMON, num_attention_heads=2, max_position_embeddings=82, pad_token_id=1, layer_norm_eps=1e-5)

# Name: configuration, tokenizer, pooling, type of the stored weights.
FAMILIES = {
    "bert": (BertConfig(**BERT), bert_tokenizer, "mean", torch.float32),
    "bert-rerank": (BertConfig(**BERT, num_labels=1), bert_tokenizer, "cls", torch.float16),
    "roberta": (RobertaConfig(**ROBERTA, type_vocab_size=1), roberta_tokenizer, "cls", torch.bfloat16),
    "xlm-roberta-rerank": (
        XLMRobertaConfig(**ROBERTA, type_vocab_size=1, num_labels=1), roberta_tokenizer, "mean", torch.bfloat16,
    ),
    "camembert": (CamembertConfig(**ROBERTA, type_vocab_size=1), roberta_tokenizer, "max", torch.bfloat16),
    "distilbert": (
        DistilBertConfig(
            vocab_size=VOCABULARY, dim=HIDDEN, hidden_dim=40, n_layers=2, n_heads=2, max_position_embeddings=80,
            activation="gelu", seq_classif_dropout=0.0,
        ),
        bert_tokenizer, "weightedmean", torch.bfloat16,
    ),
    "mpnet": (MPNetConfig(**ROBERTA, relative_attention_num_buckets=32), roberta_tokenizer, "mean", torch.bfloat16),
    "modernbert": (
        ModernBertConfig(
            **{**COMMON, "num_hidden_layers": 4}, num_attention_heads=2, max_position_embeddings=80, local_attention=10,
            global_attn_every_n_layers=3, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2,
            eos_token_id=3, classifier_pooling="mean",
        ),
        bert_tokenizer, "mean_sqrt_len_tokens", torch.bfloat16,
    ),
    "qwen3": (
        Qwen3Config(
            **COMMON, num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=80,
            pad_token_id=1, bos_token_id=0, eos_token_id=2, tie_word_embeddings=True,
        ),
        ending_tokenizer, "lasttoken", torch.bfloat16,
    ),
}


def words(draw, count):
    return " ".join("".join(draw.choices(LETTERS, k=draw.randint(1, 3))) for _ in range(count))


def pooled(hidden, mode):
    """`hidden` are the vectors of one text's tokens."""
    length = hidden.shape[0]
    weights = torch.arange(1, length + 1)[:, None]
    vector = {
        "cls": lambda: hidden[0],
        "lasttoken": lambda: hidden[-1],
        "mean": lambda: hidden.mean(0),
        "max": lambda: hidden.max(0).values,
        "mean_sqrt_len_tokens": lambda: hidden.sum(0) / length**0.5,
        "weightedmean": lambda: (hidden * weights).sum(0) / weights.sum(),
    }[mode]()
    return torch.nn.functional.normalize(vector, dim=0)


def answers(model, encoding, mode):
    ids = torch.tensor([encoding.ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
    with torch.inference_mode():
        hidden = model.base_model(**inputs).last_hidden_state[0]
        scores = model(**inputs).logits[0]
    return {"embedding": pooled(hidden, mode).tolist(), "scores": scores.tolist()}


def write(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def make(name):
    config, tokenizer_of, mode, dtype = FAMILIES[name]
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    if config.num_labels != 1:
        config.num_labels = len(LABELS)
        config.id2label, config.label2id = LABELS, {label: index for index, label in LABELS.items()}
    torch.manual_seed(sum(name.encode()))
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            is_norm_scale = value.dim() == 1 and key.endswith("weight")
            value.copy_((is_norm_scale + 0.25 * torch.randn_like(value)).to(dtype).float())
    made = tokenizer_of()
    draw = random.Random(name)
    texts = [words(draw, count) for count in (1, 2, 5, 12, 20, 30)]
    query, documents = words(draw, 4), [words(draw, count) for count in (1, 6, 15)]
    golden = {
        "cases": [{"text": text, "token_ids": made.encode(text).ids} | answers(model, made.encode(text), mode) for text in texts],
        "query": query,
        "documents": [
            {"text": document, "token_ids": made.encode(query, document).ids}
            | answers(model, made.encode(query, document), mode)
            for document in documents
        ],
    }
    model.to(dtype).save_pretrained(folder)
    made.save(os.path.join(folder, "tokenizer.json"))
    modules = [("0", "Transformer", ""), ("1", "Pooling", "1_Pooling"), ("2", "Normalize", "2_Normalize")]
    write(
        os.path.join(folder, "modules.json"),
        [{"idx": int(at), "name": at, "path": path, "type": f"sentence_transformers.models.{kind}"} for at, kind, path in modules],
    )
    write(os.path.join(folder, "1_Pooling/config.json"), {"word_embedding_dimension": HIDDEN, "pooling_mode": mode})
    write(os.path.join(folder, "golden.json"), golden)


if __name__ == "__main__":
    for family in FAMILIES:
        make(family)
        print(family)
