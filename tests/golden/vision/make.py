#!/usr/bin/env python3
"""Makes a tiny CLIP and a tiny SigLIP with random weights, an image in two formats, and the vectors that transformers makes of
texts and of the image.

    pip install torch==2.9.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 pillow==12.2.0
    python tests/golden/vision/make.py

Images are brought to their size by Pillow, as the image processors of these models did when they were trained.
"""

import json
import os

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

HERE = os.path.dirname(os.path.abspath(__file__))
SIZE, PATCH, POSITIONS = 16, 4, 16
TEXTS = ["a cat", "two dogs", "a plane!"]


def tokenizer(padded):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|startoftext|>", "<pad>", "<|endoftext|>"]
    # The end is the highest, as in OpenAI's.
    vocabulary = {letter: index for index, letter in enumerate([*special[:2], *alphabet, special[2]])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    around = "$A <|endoftext|>" if padded else "<|startoftext|> $A <|endoftext|>"
    tokens = [(name, vocabulary[name]) for name in special if name in around]
    made.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)
    return made


def pixels(image, exact):
    """As the image processors do it, on Pillow."""
    image = image.convert("RGB")
    if exact:
        image = image.resize((SIZE, SIZE), Image.BICUBIC)
    else:
        width, height = image.size
        long = int(SIZE * max(width, height) / min(width, height))
        image = image.resize((long, SIZE) if width > height else (SIZE, long), Image.BICUBIC)
        left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
        image = image.crop((left, top, left + SIZE, top + SIZE))
    values = (np.array(image).astype(np.float64) * (1 / 255)).astype(np.float32)
    if exact:
        mean, deviation = [0.5] * 3, [0.5] * 3
    else:
        mean = [0.48145466, 0.4578275, 0.40821073]
        deviation = [0.26862954, 0.26130258, 0.27577711]
    values = (values - np.array(mean, dtype=np.float32)) / np.array(deviation, dtype=np.float32)
    return values.transpose(2, 0, 1)


def picture():
    x, y = np.meshgrid(np.arange(53), np.arange(37))
    red = 127 + 127 * np.sin(x / 3 + y / 7)
    green = (x * 5 + y * 3) % 256
    blue = 255 * ((x // 6 + y // 5) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def main():
    torch.manual_seed(0)
    image = picture()
    image.save(os.path.join(HERE, "image.png"))
    image.save(os.path.join(HERE, "image.jpg"), quality=95)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text = dict(vocab_size=259, max_position_embeddings=POSITIONS, pad_token_id=1, bos_token_id=0, eos_token_id=258, **size)
    vision = dict(image_size=SIZE, patch_size=PATCH, **size)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    siglip = SiglipModel(SiglipConfig(text_config=dict(text, projection_size=32), vision_config=vision)).eval()
    for name, model in (("clip", clip), ("siglip", siglip)):
        folder, is_siglip = os.path.join(HERE, name), name == "siglip"
        with torch.no_grad():
            for weight_name, weight in model.named_parameters():
                if "logit" not in weight_name:
                    weight.copy_((torch.randn_like(weight) * 0.25 + ("norm" in weight_name and weight_name.endswith("weight"))))
        model.save_pretrained(folder)
        made = tokenizer(is_siglip)
        made.save(os.path.join(folder, "tokenizer.json"))
        preprocessor = {"resample": 3, "rescale_factor": 1 / 255}
        if is_siglip:
            preprocessor |= {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        else:
            preprocessor |= {"size": {"shortest_edge": SIZE}, "do_center_crop": True}
        with open(os.path.join(folder, "preprocessor_config.json"), "w") as file:
            json.dump(preprocessor, file)
        seen = pixels(Image.open(os.path.join(HERE, "image.png")), is_siglip)
        unit = lambda vector: (vector / vector.norm(dim=-1, keepdim=True)).tolist()
        golden = {"pixels": [float(value) for value in seen.reshape(-1)], "texts": []}
        with torch.no_grad():
            found = model.get_image_features(pixel_values=torch.tensor(seen)[None])
            found = getattr(found, "pooler_output", found)
            image_vector = found / found.norm(dim=-1, keepdim=True)
            golden["image"] = image_vector[0].tolist()
            vectors = []
            for written in TEXTS:
                ids = made.encode(written).ids
                given = ids + [1] * (POSITIONS - len(ids)) if is_siglip else ids
                found = model.get_text_features(input_ids=torch.tensor([given]))
                found = getattr(found, "pooler_output", found)
                vectors.append(found / found.norm(dim=-1, keepdim=True))
                golden["texts"].append({"text": written, "token_ids": ids, "embedding": vectors[-1][0].tolist()})
            near = torch.cat(vectors) @ image_vector[0] * model.logit_scale.exp()
            probs = torch.sigmoid(near + model.logit_bias) if is_siglip else torch.softmax(near, dim=0)
            golden["probs"] = probs.tolist()
        with open(os.path.join(folder, "golden.json"), "w") as file:
            json.dump(golden, file)


main()
