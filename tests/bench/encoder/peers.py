#!/usr/bin/env python3
"""Runs all-MiniLM-L6-v2 on one of the engines that the encoder is measured against.

    python peers.py ENGINE MODEL_FOLDER WORK_FOLDER THREADS

A line of JSON on standard input, {"sequences": [[token id, ...], ...], "batch": int, "sorted": bool, "vectors": bool},
is answered by one on standard output: {"seconds": ..., "times": [...], "vectors": ..., "peak_bytes": ...}. Sequences run
in batches of that many, each of which has its time, padded to the longest of the batch; vectors are the mean of the
tokens', of length 1.

"sorted" has the sequences sorted by length before they are cut into batches: what a user may do for an engine that pads.
"""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np


def pad(sequences):
    length = max(map(len, sequences))
    ids = np.zeros((len(sequences), length), np.int64)
    mask = np.zeros((len(sequences), length), np.int64)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def pool(hidden, mask):
    weights = mask[:, :, None].astype(np.float32)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def torch_engine(folder, work, threads):
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()

    def run(sequences):
        ids, mask = pad(sequences)
        with torch.inference_mode():
            hidden = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
        return pool(hidden.numpy(), mask)

    return run


def export(folder, work):
    """The model as ONNX, with the fusions that ONNX Runtime has for BERT."""
    fused = os.path.join(work, "fused.onnx")
    if not os.path.exists(fused):
        import torch
        from onnxruntime.transformers import optimizer
        from transformers import AutoModel

        plain = os.path.join(work, "plain.onnx")
        model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        class Hidden(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, ids, mask, types):
                return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

        ids = torch.ones((2, 8), dtype=torch.int64)
        names = ["input_ids", "attention_mask", "token_type_ids"]
        axes = {name: {0: "batch", 1: "length"} for name in names + ["hidden"]}
        torch.onnx.export(
            Hidden(), (ids, ids, ids * 0), plain, input_names=names, output_names=["hidden"], dynamic_axes=axes,
            opset_version=17, dynamo=False,
        )
        config = model.config
        done = optimizer.optimize_model(
            plain, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
        )
        done.save_model_to_file(os.path.join(work, "part.onnx"))
        os.replace(os.path.join(work, "part.onnx"), fused)
    return fused


def quantize(folder, work):
    quantized = os.path.join(work, "int8.onnx")
    if not os.path.exists(quantized):
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        part = quantized + ".part"
        # Fused nodes are not known to the inference of types.
        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(
            export(folder, work), part, weight_type=QuantType.QInt8, per_channel=True, extra_options=options
        )
        os.replace(part, quantized)
    return quantized


def apart(prepare, folder, work):
    """In a process of its own, whose memory does not count."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(prepare, folder, work).result()


def onnxruntime_engine(prepare):
    def engine(folder, work, threads):
        path = apart(prepare, folder, work)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}

        def run(sequences):
            ids, mask = pad(sequences)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
            inputs = {name: value for name, value in inputs.items() if name in wanted}
            return pool(session.run(None, inputs)[0], mask)

        return run

    return engine


def openvino_engine(precision):
    def engine(folder, work, threads):
        plain = os.path.join(work, "plain.onnx")
        apart(export, folder, work)
        import openvino

        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        compiled = openvino.Core().compile_model(plain, "CPU", options)
        request = compiled.create_infer_request()

        def run(sequences):
            ids, mask = pad(sequences)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
            return pool(request.infer(inputs)[0], mask)

        return run

    return engine


def ctranslate2_engine(kind):
    def engine(folder, work, threads):
        target = os.path.join(work, "ctranslate2")
        import ctranslate2

        if not os.path.exists(target):
            ctranslate2.converters.TransformersConverter(folder).convert(target + ".part", force=True)
            os.replace(target + ".part", target)
        encoder = ctranslate2.Encoder(target, device="cpu", compute_type=kind, intra_threads=threads)

        def run(sequences):
            output = encoder.forward_batch(sequences)
            hidden = np.array(output.last_hidden_state)
            return pool(hidden, pad(sequences)[1])

        return run

    return engine


ENGINES = {
    "torch": torch_engine,
    "onnxruntime": onnxruntime_engine(export),
    "onnxruntime-int8": onnxruntime_engine(quantize),
    "openvino": openvino_engine("f32"),
    "openvino-default": openvino_engine(None),
    "ctranslate2": ctranslate2_engine("float32"),
    "ctranslate2-int8": ctranslate2_engine("int8_float32"),
}


def peak_bytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main():
    name, folder, work, threads = sys.argv[1:]
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.makedirs(work, exist_ok=True)
    run = ENGINES[name](folder, work, int(threads))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        sequences = asked["sequences"]
        started = time.perf_counter()
        order = list(range(len(sequences)))
        if asked["sorted"]:
            order.sort(key=lambda index: len(sequences[index]))
        vectors, times = [None] * len(sequences), []
        for at in range(0, len(order), asked["batch"]):
            batch, began = order[at : at + asked["batch"]], time.perf_counter()
            for index, vector in zip(batch, run([sequences[index] for index in batch])):
                vectors[index] = vector
            times.append(time.perf_counter() - began)
        seconds = time.perf_counter() - started
        answer = {"seconds": seconds, "times": times, "peak_bytes": peak_bytes()}
        if asked["vectors"]:
            answer["vectors"] = [vector.tolist() for vector in vectors]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
