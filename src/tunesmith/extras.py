"""Packages that not every run needs: what each is for, and the command that installs it."""

from importlib.util import find_spec

from tunesmith.errors import MissingExtra

EXTRAS = {  # those of pyproject.toml: what each of their packages is for
    "bitsandbytes": {"bitsandbytes": "optimizer: adamw8bit, quantization and export: bnb"},
    "torchao": {"torchao": "quantization and export: torchao"},
    "hqq": {"hqq": "models stored in HQQ"},
    "llmcompressor": {"llmcompressor": "export: gptq, awq"},
    "gguf": {"gguf": "models in .gguf files, export: gguf, ollama"},
    "onnx": {"onnx": "export: onnx", "onnxscript": "export: onnx", "onnxruntime": "export: onnx"},
    "serve": {"fastapi": "tunesmith serve", "uvicorn": "tunesmith serve"},
    "constrained": {"llguidance": "answers in JSON, required calls"},
    "lm-eval": {"lm-eval": "evaluate --task lm-eval:NAME"},
    "vllm": {"vllm": "predict and evaluate: engine=vllm"},
    "deepspeed": {"deepspeed": "parallel.strategy: deepspeed, launcher: deepspeed"},
    "ray": {"ray": "launcher: ray"},
    "metrics": {"sacrebleu": "BLEU of predictions", "jieba": "ROUGE of Chinese by words"},
    "http": {"aiohttp": "rows at http:// and https://"},
    "s3": {"s3fs": "rows at s3://"},
    "gcs": {"gcsfs": "rows at gs://"},
    "modelscope": {"modelscope": "datasets at ms://"},
    "openmind": {"openmind_hub": "datasets at om://"},
    "liger": {"liger-kernel": "benchmarks beside liger"},
    "test": {"pytest": "the test suite"},
}
TRACKERS = ("tensorboard", "wandb", "mlflow")  # of train.report_to, which this package has no extras for


def command(extra: str) -> str:
    """What installs an extra."""
    return f"pip install 'tunesmith[{extra}]'"


def need(what: str, extra: str) -> None:
    """Look for the packages of an extra. Raises MissingExtra for `what` needs them: with the command."""
    missing = [name for name in EXTRAS[extra] if find_spec(name.replace("-", "_")) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise MissingExtra(f"{what} needs {' and '.join(missing)}, which {are} not installed: {command(extra)}")
