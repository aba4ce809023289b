"""Templates that write calls in other ways than the families do, and the answers that templates write."""

import fixtures_models
from tunesmith.generate.answer_format import find
from tunesmith.templates._apply import apply

CODER = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n' if message.content or not loop.first }}{{- '<tool_call>\n<function=' + call.function.name + '>\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' + key + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' }}
{%- endfor %}{{- '</function>\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""  # as Qwen3-Coder writes calls
GLM = CODER.replace(
    "'<tool_call>\\n<function=' + call.function.name + '>\\n'", "'<tool_call>' + call.function.name + '\\n'"
)
GLM = GLM.replace("'<parameter=' + key + '>\\n' +", "'<arg_key>' + key + '</arg_key>\\n<arg_value>' +")
GLM = GLM.replace("'\\n</parameter>\\n'", "'</arg_value>\\n'").replace("'</function>\\n</tool_call>'", "'</tool_call>'")
FUNCTION = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<function=' + call.function.name + '>' + (call.function.arguments | tojson) + '</function>' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""  # as Llama 3.1 writes own functions
OF_FUNCTION = "'<function=' + call.function.name + '>' + (call.function.arguments | tojson) + '</function>'"
PYTHON = FUNCTION.replace(OF_FUNCTION, "'<|python_tag|>' + (call.function | tojson)")
HARMONY = """\
{%- for message in messages %}{{ '<|start|>' + message.role }}
{%- if message.thinking %}
{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|><|start|>assistant' }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- ' to=functions.' + call.function.name + '<|channel|>commentary json<|message|>' }}
{{- (call.function.arguments | tojson) + '<|call|>' }}
{%- else %}{{ '<|channel|>final<|message|>' + message.content + '<|end|>' }}{% endfor %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""  # as gpt-oss writes
PLAIN = fixtures_models.CHATML.replace("{%- if message.reasoning_content %}", "{%- if false %}").replace("think>", "x>")
TEMPLATES = {"coder": CODER, "glm": GLM, "function": FUNCTION, "python": PYTHON, "harmony": HARMONY}


def written(tokenizer, turns, tools, stops=("<|call|>", "<|end|>")):
    """The text of the last answer, without the token that ends it."""
    prompt = apply(tokenizer, turns[:-1], tuple(tools), prompt=True)
    text = apply(tokenizer, turns, tuple(tools))
    assert text.startswith(prompt)
    answer = text[len(prompt) :].rstrip("\n")
    end = max((one for one in (str(tokenizer.eos_token), *stops) if answer.endswith(one)), key=len)
    return answer.removesuffix(end)


def of_template(text):
    tokenizer = fixtures_models.tiny_tokenizer(text)
    extra = ("<|python_tag|>", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>")
    tokenizer.add_tokens([one for one in extra if one in text], special_tokens=True)
    return tokenizer, find(tokenizer)
