"""The only folder that knows transformers' trainer and models."""

import logging


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be"))


# bitsandbytes 0.50 warns, as it is imported on processors with avx512_bf16, that a hub's kernel for inference is not
# there; and of a cast in every product of 8 bit. Transformers and peft import it in every run, so this stands here,
# which is read before any of them, and by no command that needs no model.
for _name in ("backends.cpu.ops", "autograd._functions"):
    logging.getLogger(f"bitsandbytes.{_name}").addFilter(_is_news)
