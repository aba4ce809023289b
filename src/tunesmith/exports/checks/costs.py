"""What rounding may cost an export, as a share of the largest logit.

Of weights in blocks it is ten times what one of them can be off, of the largest of its block. Models of 32 numbers for
a token, in which little averages out, were seen at 2.3 to 8 times; wide ones lie far below. A wrong tensor is found by
comparing weights, where that is done.
"""

GGUF = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2, "q8_0": 10 / 127, "q5_0": 10 / 16, "q4_0": 10 / 8}
# nf4's widest gap is from -1 to -0.6962 (arXiv 2305.14314, appendix E). LLM.int8 rounds rows of inputs beside rows of
# weights: of a run on 0.5B parameters inputs alone cost 3.1 of 127 steps, weights alone 4.4, and both 6.0.
BNB = {4: 10 * (1 - 0.6962) / 2, 8: 2 * 10 / 127}
INTEGERS = {4: 10 / 15, 8: 10 / 255}  # half of a step, of the widest weight of a group
TORCHAO = {"int8_weight_only": 10 / 127, "float8_weight_only": 10 / 16}  # float8 has 3 bits behind the first
